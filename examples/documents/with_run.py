"""A folder of documents through `pybatch run`: one row a document, one line of results each.

python with_run.py [FOLDER] [RESULTS.jsonl]: run again, it goes on where it was stopped.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "letters"
results = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("summaries.jsonl")

rows = results.with_suffix(".rows.jsonl")
with rows.open("w") as file:
    for path in sorted(folder.glob("*.txt")):
        print(json.dumps({"id": path.stem, "document": path.read_text()}), file=file)

options = ["--quantization", "int8", "--temperature", "0", "--max-tokens", "32"]
asking = ["--prompt-template", "{document}\n\nSay in one sentence what the writer of this letter wants."]
command = [sys.executable, "-m", "pybatch", "run", rows, "-o", results, "--model", "smollm2-135m", *asking, *options]
code = subprocess.run(command).returncode
if code > 1:  # 1: some rows have an "error"
    sys.exit(code)

for line in results.open():
    row = json.loads(line)
    print(f"{row['id']}: {row.get('error') or row['response'].strip()}")

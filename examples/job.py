"""A bulk job: `pybatch run` over a file of rows, and its results, which have the fields of the rows."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROWS = Path(__file__).with_name("reviews.jsonl")

with tempfile.TemporaryDirectory() as folder:
    few, results = Path(folder) / "few.jsonl", Path(folder) / "results.jsonl"
    few.write_text("".join(ROWS.open().readlines()[:8]))
    command = [sys.executable, "-m", "pybatch", "run", few, "-o", results, "--model", "smollm2-135m"]
    options = ["--quantization", "int8", "--temperature", "0", "--max-tokens", "32"]
    code = subprocess.run([*command, *options]).returncode
    assert code in (0, 1), f"the job could not go on: exit code {code}"  # 1: some rows have an "error"

    rows = [json.loads(line) for line in results.open()]

for row in rows:
    print(f"{row['id']}: {row.get('error') or row['response'][:60]!r}")
print(Counter(row.get("finish_reason", "error") for row in rows))

"""A report of a bulk job: one HTML file with its figures, charts, errors and settings, to be opened in a browser."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = Path(__file__).with_name("reviews.jsonl")
REPORT = Path(tempfile.gettempdir()) / "pybatch-report.html"

with tempfile.TemporaryDirectory() as folder:
    few = Path(folder) / "few.jsonl"
    few.write_text("".join(ROWS.open().readlines()[:12]) + '{"prompt": "a row that is cut\n')
    command = [sys.executable, "-m", "pybatch", "run", few, "-o", Path(folder) / "results.jsonl"]
    options = ["--model", "smollm2-135m", "--quantization", "int8", "--max-tokens", "32", "--report", REPORT]
    code = subprocess.run([*command, *options]).returncode
    assert code == 1, f"expected a job with one row that fails, got exit code {code}"

print(f"{REPORT}: {REPORT.stat().st_size / 1024:.0f} KiB")

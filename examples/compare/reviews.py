"""Two prompts compared on the same reviews: scores with their intervals, a test, and a report to open in a browser."""

import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from scores import sentiment

import pybatch.prompts
from pybatch.prompts.comparison.tables import notes, tables

HERE = Path(__file__).parent
REPORT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "pybatch-compare.html"

reviews = [json.loads(line) for line in (HERE.parent / "reviews.jsonl").open()]
rows = [{"review": each["messages"][-1]["content"], "rating": each["rating"]} for each in reviews if "rating" in each]

comparison = pybatch.prompts.compare(
    [HERE / "prompts/question.jinja", HERE / "prompts/form.jinja"],
    rows,
    "smollm2-135m",
    score=[sentiment, "regex:(?i)positive|negative|mixed"],
    quantization="int8",
    report=REPORT,
)
console = Console(width=150)
for table in tables(comparison):
    console.print(table)
for note in notes(comparison):
    console.print(note)
print(f"{REPORT}: {REPORT.stat().st_size / 1024:.0f} KiB")

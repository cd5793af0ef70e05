"""examples/compare runs as it stands, and a browser shows its report."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, requested

from pybatch.prompts import Comparison

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "compare"


@pytest.fixture(scope="module")
def report(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    path = tmp_path_factory.mktemp("compare") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reviews.py", str(path)])
        patch.syspath_prepend(FOLDER)
        return path, runpy.run_path(str(FOLDER / "reviews.py"))["comparison"]


def test_the_example_compares_all_reviews_that_have_stars(report: tuple[Path, Comparison]) -> None:
    _, found = report
    assert found.rows == 39
    assert found.names == ["question", "form"]
    for pair in found.pairs:
        assert pair.difference.wins + pair.difference.ties + pair.difference.losses == found.rows
        assert pair.difference.estimate.low <= pair.difference.estimate.mean <= pair.difference.estimate.high
    assert found.apart


def test_the_documents_example_runs(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), flags=re.DOTALL)
    exec(compile(text, "docs/compare.md", "exec"), {})
    first, *scores = capsys.readouterr().out.splitlines()
    mean, p = map(float, first.split())
    assert 0 <= mean <= 1
    assert 0 < p <= 1
    assert [line.split()[:2] for line in scores] == [
        [name, str(row)] for row in (0, 1) for name in ("question", "form")
    ]


def test_a_browser_shows_the_report(report: tuple[Path, Comparison], tmp_path: Path) -> None:
    path, found = report
    page = path.read_text()
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:,)', page)
    with chromium(tmp_path) as browser:
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        assert requested(browser) == {path.as_uri()}
        assert browser.title == "question beside form"
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 1240  # nothing sticks out
        charts = browser.find_elements("css selector", "svg")
        titles = [chart.get_attribute("aria-label").partition(":")[0] for chart in charts]
        assert titles == ["Mean score", "Mean score", "Difference", "Difference"]
        for chart in charts:
            dots = len(chart.find_elements("css selector", "circle.mean"))
            assert dots == (2 if chart.get_attribute("aria-label").startswith("Mean") else 1)
            assert chart.size["width"] > 600
        cells = [[cell.text for cell in row.find_elements("css selector", "td")] for row in table(browser, "#variants")]
        assert [row[0] for row in cells] == found.names
        assert f"{found.estimates['sentiment']['form'].mean:.3f}" in cells[1][1]
        (first, *_) = browser.find_elements("css selector", ".apart")
        assert first.find_element("css selector", "h3").text == f"Row {found.apart[0].row}"
        answers = [each.text for each in first.find_elements("css selector", ".answers h4")]
        assert answers == found.names


def table(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", f"{selector} tr"))[1:]

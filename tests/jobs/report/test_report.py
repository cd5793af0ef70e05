from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, requested

from pybatch import LLM, SamplingParams
from pybatch.api.progress import BatchProgress
from pybatch.engine.metrics import EngineMetrics
from pybatch.jobs.failures import FailureTally
from pybatch.jobs.report.report import write_report
from pybatch.jobs.report.summary import summary_figures
from pybatch.jobs.report.timeline import Timeline
from pybatch.machine.facts import facts

SCRIPT = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


@dataclass
class Job:
    path: Path
    options: dict[str, Any]
    figures: dict[str, str]

    def write(self, path: Path, **other: Any) -> str:
        write_report(str(path), **{**self.options, **other})
        return path.read_text()


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A real one of 40 rows, some of which fail or have been done before."""
    llm = LLM(tiny_model, num_kv_blocks=128, max_num_seqs=8, threads=1)
    prompts = ["word " * (1 + i % 30) for i in range(40)]
    params = [SamplingParams(temperature=0, max_tokens=2 + i % 40, ignore_eos=True) for i in range(40)]
    progress = BatchProgress(llm.engine.metrics, 46, None)
    timeline, failures = Timeline(llm.engine.metrics, between=0.002), FailureTally()
    for i in range(3):
        failures.add("invalid_request", f"line {i}", f"prompt: got {SCRIPT}")
        progress.finish(1, 0, failed=True)
    progress.resume(2)
    progress.resume(2)
    progress.finish(1, 0, failed=False, cached=True)
    with timeline.sampling():
        for output in llm.stream(prompts, params):
            progress.finish(1, len(output.prompt_token_ids), failed=output.error is not None)
    progress.stop()
    options = {
        "title": f"rows {SCRIPT}",
        "status": "finished",
        "progress": progress,
        "metrics": llm.engine.metrics,
        "timeline": timeline,
        "failures": failures,
        "settings": {"Model": {"model": tiny_model.name, "quantization": None}, "Sampling": {"stop": ["\n", SCRIPT]}},
        "facts": facts(),
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(str(path), **options)
    return Job(path, options, summary_figures(progress, llm.engine.metrics.summary(), failures))


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags = list[str]()
        self.attributes = list[tuple[str, str | None]]()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes


def test_text_of_rows_stays_text_and_the_file_needs_no_other(job: Job) -> None:
    page = job.path.read_text()
    elements = Elements()
    elements.feed(page)
    assert not {"script", "img", "iframe", "object"} & set(elements.tags)
    assert elements.tags.count("svg") == 7
    names = {name for name, _ in elements.attributes}
    assert not any(name.startswith("on") or name == "src" for name in names)
    assert [value for name, value in elements.attributes if name == "href"] == ["data:,"]
    assert "url(" not in page
    assert page.count("&lt;script&gt;") == 6  # the title twice, three errors, a stop string
    for name, value in job.figures.items():
        if name not in VARYING:
            assert re.search(rf"<th>{re.escape(name)}</th><td[^>]*>{re.escape(value)}</td>", page), name
    assert "quantization" not in page  # not set
    assert str(facts()["torch"]) in page


VARYING = {"peak memory"}  # of this process, which goes on


def test_a_report_is_written_whole_or_not_at_all(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    page = job.write(path, status="interrupted")
    assert ">interrupted, 3 failed</span>" in page
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        job.write(tmp_path / "no folder" / "report.html")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_job_that_ran_nothing_has_a_report(job: Job, tmp_path: Path) -> None:
    metrics = EngineMetrics(kv_blocks=10)
    page = job.write(
        tmp_path / "report.html",
        metrics=metrics,
        timeline=Timeline(metrics),
        progress=BatchProgress(metrics, None, None),
        failures=FailureTally(),
    )
    assert "<svg" not in page
    assert "Errors" not in page


def test_failures_of_earlier_runs_are_told(job: Job, tmp_path: Path) -> None:
    progress = BatchProgress(job.options["metrics"], 9, None)
    progress.resume(10, rows=9, failed=5)
    assert "5 rows failed in earlier runs" in job.write(
        tmp_path / "report.html", progress=progress, failures=FailureTally()
    )
    assert "earlier runs" not in job.path.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


def test_a_browser_shows_it(job: Job, browser: Any) -> None:
    browser.get(job.path.as_uri())
    assert browser.get_log("browser") == []
    assert requested(browser) == {job.path.as_uri()}
    assert browser.title == f"rows {SCRIPT}"  # no script has changed it

    charts = browser.find_elements("css selector", "svg")
    names = [chart.get_attribute("aria-label").partition(":")[0] for chart in charts]
    assert names == [
        "Throughput", "Batch", "KV cache", "Time to first token", "Time per output token", "Prompt length, tokens",
        "Output length, tokens",
    ]  # fmt: skip
    page_width = browser.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= 1240  # nothing sticks out
    for chart, name in zip(charts, names, strict=True):
        wide = name in ("Throughput", "Batch", "KV cache")
        assert chart.size["width"] > (900 if wide else 400), name
        assert 180 < chart.size["height"] < 300, name
        assert drawn_height(browser, chart, "path.area" if wide else "rect.bar") > 60, name

    cells = browser.find_elements("css selector", "#summary tr")
    shown = {row.find_element("tag name", "th").text: row.find_element("tag name", "td").text for row in cells}
    assert {**shown, **dict.fromkeys(VARYING)} == {**job.figures, **dict.fromkeys(VARYING)}
    headlines = [each.text for each in browser.find_elements("css selector", ".headline .figure")]
    assert headlines[:2] == ["46", "3"]
    assert shown["rows"] == "46 (3 failed)"
    assert headlines[3] == shown["output throughput"]


def drawn_height(browser: Any, chart: Any, what: str) -> float:
    """The greatest of such elements, in pixels."""
    script = "return Math.max(...[...arguments[0].querySelectorAll(arguments[1])].map(e => e.getBBox().height))"
    return float(browser.execute_script(script, chart, what))

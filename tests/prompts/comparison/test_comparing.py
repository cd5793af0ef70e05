from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pybatch.prompts
from pybatch import LLM
from pybatch.prompts.comparison.figures import Comparison
from pybatch.prompts.comparison.jobs import ComparisonStoppedError, Engines, JobFolder, Running
from pybatch.prompts.comparison.scorers.parse import scorers_of
from pybatch.prompts.comparison.task import Task, run
from pybatch.prompts.comparison.variants import names, variants_of

ROWS = [{"text": f"number {i} of {'many ' * (i % 5)}words", "label": "x" if i % 3 else "y"} for i in range(16)]
ENGINE: dict[str, Any] = {"num_kv_blocks": 128, "threads": 1, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, **ENGINE)


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    texts = {"plain": "Say {text}", "polite": "---\ntemperature: 1\n---\nPlease say {text}!"}
    files = [tmp_path / f"{name}.prompt" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    return files


def length(row: dict[str, Any], answer: str) -> float:
    return len(answer) / 40


def compared(prompts: Any, model: Any, **options: Any) -> Comparison:
    options = {"score": length, "max_tokens": 6, "temperature": 0.8, "use_tqdm": False, **options}
    return pybatch.prompts.compare(prompts, ROWS, model, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_that_the_model_gives_to_each_prompt_alone(
    prompts: list[Path], llm: LLM, tmp_path: Path
) -> None:
    compared(prompts, llm, output=tmp_path / "out")
    answers = lines(tmp_path / "out" / "answers.jsonl")
    assert [(each["row"], each["variant"]) for each in answers] == [
        (row, name) for row in range(len(ROWS)) for name in ("plain", "polite")
    ]
    for number, file in enumerate(prompts):
        one = compared([file, prompts[1 - number]], llm, output=tmp_path / f"alone {number}")
        assert one.names[0] == file.stem
        mine = [each["response"] for each in answers if each["variant"] == file.stem]
        other = lines(tmp_path / f"alone {number}" / "answers.jsonl")
        assert [each["response"] for each in other if each["variant"] == file.stem] == mine


def test_variants_have_the_same_seeds_and_repeats_have_others(llm: LLM, tmp_path: Path) -> None:
    """Two prompts of other names that ask the same: by the same seed the same tokens."""
    asked = [pybatch.prompts.parse("Say {text}", name=name) for name in ("one", "other")]
    found = compared(asked, llm, repeats=3, output=tmp_path / "out")
    answers = {(each["row"], each["repeat"], each["variant"]): each for each in lines(tmp_path / "out/answers.jsonl")}
    assert len(answers) == len(ROWS) * 3 * 2
    for (row, repeat, variant), each in answers.items():
        assert each["response"] == answers[row, repeat, "one" if variant == "other" else "other"]["response"]
    said = [{answers[row, repeat, "one"]["response"] for repeat in range(3)} for row in range(len(ROWS))]
    assert sum(len(each) > 1 for each in said) > len(ROWS) / 2
    (pair,) = found.pairs
    assert (pair.difference.ties, pair.difference.p, pair.power) == (len(ROWS), 1.0, None)
    assert found.apart == []


def test_scores_are_means_by_row(prompts: list[Path], llm: LLM, tmp_path: Path) -> None:
    found = compared(prompts, llm, repeats=2, output=tmp_path / "out", report_json=tmp_path / "c.json")
    answers = lines(tmp_path / "out" / "answers.jsonl")
    mean = {
        name: sum(length({}, each["response"]) for each in answers if each["variant"] == name) / (2 * len(ROWS))
        for name in found.names
    }
    for name, estimate in found.estimates["length"].items():
        assert estimate.mean == pytest.approx(mean[name])
        assert estimate.rows == len(ROWS)
    (pair,) = found.pairs
    assert pair.difference.estimate.mean == pytest.approx(mean["polite"] - mean["plain"])
    assert len(found.scores) == len(answers)
    assert [json.loads(line)["score"] for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()] == [
        each.score for each in found.scores
    ]
    spreads = [row.spread for row in found.apart]
    assert spreads == sorted(spreads, reverse=True)
    assert found.apart[0].fields == ROWS[found.apart[0].row]
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["pairs"][0]["difference"]["mean"] == pair.difference.estimate.mean
    assert [each["input_tokens"] for each in written["variants"]] == [
        sum(each["usage"]["prompt_tokens"] for each in answers if each["variant"] == name) for name in found.names
    ]
    for each in found.variants:
        assert len(each.latencies) == each.answers == 2 * len(ROWS)
        assert 0 < each.latency(0.5) <= each.latency(0.95)
        assert each.seconds > 0


def task_of(prompts: list[Path], tiny_model: Path, **options: Any) -> Task:
    sampling = {"max_tokens": 6, "temperature": 0.8}
    from pybatch.jobs.sources import open_source

    rows = list(open_source(ROWS).rows())
    variants = variants_of(prompts, [tiny_model], "", sampling)
    return replace(Task(variants, rows, scorers_of([length, "judge"]), sampling, ENGINE), **options)


def folder_at(path: Path, loaded: list[Path], stopped: Callable[[], bool] = lambda: False, **options: Any) -> JobFolder:
    def load(model: str | Path) -> LLM:
        loaded.append(Path(model))
        return LLM(model, **ENGINE)

    path.mkdir(exist_ok=True)
    return JobFolder(path, ENGINE, Engines(load), Running(stopped, grace=0), **options)


def test_a_comparison_goes_on_where_it_was(prompts: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    """Stopped after every few steps, again and again, it comes to what an uninterrupted one does."""
    task = task_of(prompts, tiny_model)
    expected = run(task, folder_at(tmp_path / "whole", []))
    stops = 0
    engines = folder_at(tmp_path / "cut", []).engines
    metrics = engines.session(tiny_model).metrics
    while True:
        end = metrics.steps + 11
        folder = replace(folder_at(tmp_path / "cut", [], lambda end=end: metrics.steps >= end), engines=engines)
        try:
            found = run(task, folder)
            break
        except ComparisonStoppedError:
            stops += 1
    assert stops >= 2
    for name in ("answers.jsonl", "verdicts.1.jsonl", "scores.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert found.pairs == expected.pairs
    assert found.places == expected.places
    assert all(len(each.latencies) == len(ROWS) for each in found.variants)


def test_other_scorers_of_the_same_answers_need_no_model(prompts: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    loaded: list[Path] = []
    task = task_of(prompts, tiny_model)
    run(task, folder_at(tmp_path / "out", loaded))
    assert loaded == [tiny_model]
    again = replace(task, scorers=scorers_of(["contains:a", length, "judge"]))
    assert again.key == task.key
    assert run(again, folder_at(tmp_path / "out", loaded)).scorers == ["contains:a", "length", "judge"]
    assert loaded == [tiny_model]
    run(task, folder_at(tmp_path / "out", loaded, fresh=True))
    assert loaded == [tiny_model] * 2


def test_models_come_one_after_another_and_the_judge_last(
    prompts: list[Path], tiny_model: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.symlink_to(tiny_model)
    task = task_of(prompts, tiny_model)
    variants = variants_of(prompts[:1], [tiny_model, second], "", {})
    assert [each.name for each in variants] == [f"plain, {tiny_model.name}", "plain, second"]
    loaded: list[Path] = []
    found = run(replace(task, variants=variants), folder_at(tmp_path / "out", loaded))
    assert loaded == [second, tiny_model]
    assert found.pairs[0].difference.ties == len(ROWS)  # one model by two names
    assert len(lines(tmp_path / "out/answers.2.jsonl")) == len(ROWS)
    assert all(each.seconds > 0 and each.answers == len(ROWS) for each in found.variants)


def test_the_steps_of_a_chain(llm: LLM, tmp_path: Path) -> None:
    text = "---\nsteps:\n  - name: draft\n    prompt: Say {text}\n---\nMake it short: {draft}"
    chain, single = pybatch.prompts.parse(text, name="chain"), pybatch.prompts.parse("Say {text}", name="single")
    found = compared([chain, single], llm, temperature=0, output=tmp_path / "out")
    first, last = (lines(tmp_path / "out" / f"answers{number}.jsonl") for number in ("", ".2"))
    assert {each["variant"] for each in last} == {"chain"}
    drafts = {each["row"]: each["response"] for each in first if each["variant"] == "chain"}
    assert drafts == {each["row"]: each["response"] for each in first if each["variant"] == "single"}
    by_hand = llm.chat(
        [[{"role": "user", "content": f"Make it short: {drafts[row]}".strip()}] for row in range(len(ROWS))],
        replace(llm.get_default_sampling_params(), temperature=0, max_tokens=6),
        use_tqdm=False,
    )
    assert [each["response"] for each in last] == [output.outputs[0].text for output in by_hand]
    assert found.variants[0].input_tokens == sum(
        each["usage"]["prompt_tokens"] for each in (*first, *last) if each["variant"] == "chain"
    )


def test_a_row_without_an_answer_has_no_score(prompts: list[Path], llm: LLM, tmp_path: Path) -> None:
    rows = [*ROWS[:3], {"label": "x"}, {"text": "word " * 600, "label": "x"}, {"text": "short"}]
    found = pybatch.prompts.compare(
        prompts, rows, llm, score=["contains:{label}", "judge"], max_tokens=4, temperature=0, use_tqdm=False
    )
    for variant in found.variants:
        assert (variant.answers, variant.errors) == (6, 2)
        missing = {each.row: each.feedback for each in found.scores if each.score is None and each.scorer != "judge"}
        assert set(missing) == {3, 4, 5}
        assert missing[5] == "the row has no 'label'"
        assert "asks for 'text'" in missing[3]
        assert "no answer: " in missing[4]
    assert found.missing("judge", "plain") == 2
    assert found.pairs[0].difference.estimate.rows == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "contains:{answer}"}, "'contains:{answer}': no row has 'answer'; the first one has 'text', 'label'"),
        ({"score": []}, "score: expected judge"),
        ({"repeats": 0}, "repeats: expected 1 to 1,000,000, got 0"),
        ({"judge_model": "nowhere"}, "judge_model: expected a directory"),
        ({"output": __file__}, "output: expected a folder to write to, got "),
        ({"n": 2}, "n: expected 1, got 2"),
        ({"effect": 0}, "effect: expected a difference of scores above 0"),
        ({"confidence": 95}, "confidence: expected a probability from 0.5"),
        ({"prompts": 1}, "expected two prompts or more"),
        ({"same": True}, "two variants are the same: plain@"),
        ({"model": "no/such/model"}, "no/such/model"),
        ({"models": 3}, "model: expected one for all, or one for each of the 2 prompts, got 3"),
        ({"text": "{missing}"}, "plain: no row of the data will do: row 0: .* asks for 'missing'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_a_model_loads(
    options: dict[str, Any], message: str, prompts: list[Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybatch.api.model_handle.open_session", None)
    model = options.pop("model", tiny_model)
    model = [tiny_model] * options.pop("models", 0) or model
    given = prompts[: options.pop("prompts", 2)]
    if options.pop("same", False):
        given = [given[0], given[0]]
    if text := options.pop("text", None):
        prompts[0].write_text(text)
    with pytest.raises(ValueError, match=message):
        compared(given, model, **options)


def test_names_say_what_differs(prompts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other" / "plain.prompt"
    other.parent.mkdir()
    other.write_text("Tell me {text}")
    of = variants_of([prompts[0], other], ["m"], "", {})
    assert names(of) == [f"plain@{each.prompt.version}" for each in of]
    assert names(variants_of(prompts, ["a", "b"], "", {})) == ["plain", "polite"]


def test_a_prompt_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "own.prompt").write_text("---\nmodel: own/model\n---\n{text}")
    (tmp_path / "none.prompt").write_text("{text}")
    files = [tmp_path / "own.prompt", tmp_path / "none.prompt"]
    assert [each.model for each in variants_of(files, [], "usual", {})] == ["own/model", "usual"]
    assert [each.model for each in variants_of(files, ["m"], "usual", {})] == ["m", "m"]

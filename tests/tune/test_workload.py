from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybatch.tune.workload import Lengths, of_file, of_lengths


def lengths(text: str) -> Lengths:
    return Lengths.parse("input_tokens", text)


def test_lengths_are_drawn_evenly_from_what_was_named() -> None:
    assert {lengths("512").at(share / 10) for share in range(1, 10)} == {512}
    assert [lengths("uniform:100:300").at(share) for share in (0.001, 0.5, 0.999)] == [100, 200, 300]
    assert lengths("normal:500:100").at(0.5) == 500
    assert lengths("normal:5:100").at(0.01) == 1
    assert lengths("lognormal:200:0.5").at(0.8413) == pytest.approx(200 * 2.71828**0.5, rel=0.01)


@pytest.mark.parametrize("text", ["", "many", "0", "-5", "uniform:9:3", "normal:5", "nan", "1e99", "uniform:1:2:3"])
def test_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"input_tokens: expected a number of tokens, uniform:LOW:HIGH"):
        lengths(text)


def test_a_sample_has_the_means_of_the_whole_and_comes_again_as_other_prompts() -> None:
    work = of_lengths(5000, lengths("uniform:100:300"), lengths("64"), shared_prefix=10)
    assert work.input_tokens == pytest.approx(200, rel=0.01)
    assert (work.output_tokens, work.rows) == (64, 5000)
    taken = list(work.take(3000))
    assert len({tuple(each.prompt_token_ids) for each in taken}) == 3000
    assert len({tuple(each.prompt_token_ids[:10]) for each in work.take(500)}) == 1
    assert sum(len(each.prompt_token_ids) for each in work.take(100)) / 100 == pytest.approx(200, rel=0.1)


def test_a_file_has_lengths_or_prompts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"input_tokens": 300, "output_tokens": 20},
        {"prompt": "x" * 400, "max_tokens": 30},
        {"body": {"messages": [{"role": "user", "content": "y" * 400}], "max_completion_tokens": 40}},
        {"prompt": "x" * 400 + "z" * 40},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    work = of_file(str(path), lengths("50"), None, None)
    assert [len(each.prompt_token_ids) for each in work.sample] == [300, 100, 102, 110]
    assert [each.output_tokens for each in work.sample] == [[20], [30], [40], [50]]
    first, longer = work.sample[1].prompt_token_ids, work.sample[3].prompt_token_ids
    assert list(longer[:100]) == list(first)  # what they share is found
    assert of_file(str(path), lengths("50"), 1000, lambda text: [1] * len(text)).rows == 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has none"),
        ("{", "line 1: "),
        ("[]", "line 1: "),
        ('{"prompt": "a"}', "expected output_tokens or max_tokens"),
        ('{"id": 1, "max_tokens": 3}', "expected input_tokens, a prompt or messages"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=says):
        of_file(str(tmp_path / "rows.jsonl"), None, None, None)


def test_a_job_has_rows() -> None:
    with pytest.raises(ValueError, match="rows: expected a positive number"):
        of_lengths(0, lengths("1"), lengths("1"))

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pybatch.prompts.comparison.figures import AS_USUAL, Comparison, Measured, Plan, compared
from pybatch.prompts.comparison.report import verdict, write_report
from pybatch.prompts.comparison.score import Score
from pybatch.prompts.comparison.statistics import difference, rows_for
from pybatch.prompts.comparison.tables import notes, tables
from pybatch.tune.cost import Prices

ROWS = 60
MARKUP = "<script>document.title = 'run'</script>[bold]"


def comparison_of(rates: dict[str, float], **options: Any) -> Comparison:
    """Variants that are right in these shares of the rows, by chance."""
    random = np.random.default_rng(3)
    right = {name: random.random(ROWS) < rate for name, rate in rates.items()}
    scores = [
        Score(name, row, 0, "right", float(of[row]), bool(of[row]), "")
        for row in range(ROWS)
        for name, of in right.items()
    ]
    variants = [
        Measured(name, name, "ab12", "m", ROWS, 0, 600 * (1 + i), 60, 3600.0 * (1 + i), (0.1, 0.3))
        for i, name in enumerate(rates)
    ]
    return compared(
        variants,
        ["right"],
        scores,
        **{
            "fields": lambda row: {"text": f"{row} {MARKUP}"},
            "answers": lambda row: dict.fromkeys(rates, MARKUP),
            "rows": ROWS,
            "repeats": 1,
            "plan": AS_USUAL,
            "places": {},
            "prices": Prices.of(2.0, ["api:1:10"]),
            **options,
        },
    )


def test_three_variants_have_three_pairs_by_holm() -> None:
    found = comparison_of({"good": 0.9, "fair": 0.6, "bad": 0.2})
    assert [(pair.first, pair.second) for pair in found.pairs] == [("good", "fair"), ("good", "bad"), ("fair", "bad")]
    for pair in found.pairs:
        assert pair.difference.p <= pair.difference.p_holm <= 3 * pair.difference.p
        assert pair.better(found.plan) == pair.first
        needed = rows_for(0.05, pair.difference.deviation, alpha=0.05 / 3)
        assert pair.rows_needed == needed
        assert pair.rows_still_needed == (needed or 0) - ROWS
    alone = difference(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    assert alone.p == alone.p_holm


def test_cost_is_each_variants_own() -> None:
    first, second = comparison_of({"one": 0.5, "two": 0.5}).to_json()["variants"]
    assert first["cost"]["dollars"] == 2.0
    assert second["cost"]["dollars"] == 4.0
    assert first["cost"]["apis"] == {"api": pytest.approx((600 * 1 + 60 * 10) / 1e6)}
    assert first["latency_p50"] == pytest.approx(0.2)


def test_verdicts() -> None:
    def said(rates: dict[str, float], **options: Any) -> str:
        found = comparison_of(rates, **options)
        return verdict(found.pairs[0], found)

    assert said({"good": 0.95, "bad": 0.1}) == "good scores higher than bad (p = <0.001)"
    assert "no difference is shown; to find one of 0.05 takes about" in said({"one": 0.5, "two": 0.5})
    assert "would probably have been found" in said({"one": 0.5, "two": 0.5}, plan=Plan(effect=0.9))
    assert said({"one": 1.0, "two": 1.0}) == "one and two score alike in every row"


def test_text_stays_text(tmp_path: Path) -> None:
    found = comparison_of({MARKUP: 0.9, "other": 0.3}, places={"judge": (30, 40)})
    console = Console(width=250, record=True)
    for table in tables(found):
        console.print(table)
    assert "more than the answer" in " ".join(notes(found))
    write_report(str(tmp_path / "r.html"), found, MARKUP, {"Sampling": {"stop": [MARKUP], "n": None}})
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20


def test_json_has_no_nan() -> None:
    found = compared(
        [Measured(name, name, "ab", "m", 1, 1, 0, 0, 0.0) for name in ("a", "b")],
        ["right"],
        [Score(name, 0, 0, "right", None, None, "no answer") for name in ("a", "b")],
        fields=lambda row: {}, answers=lambda row: {}, rows=1, repeats=1, plan=AS_USUAL, places={}, prices=Prices(),
    )  # fmt: skip
    assert math.isnan(found.estimates["right"]["a"].mean)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["variants"][0]["scores"]["right"] == {
        "mean": None,
        "low": None,
        "high": None,
        "rows": 0,
        "without_score": 1,
    }
    assert told["pairs"][0]["p"] == 1.0

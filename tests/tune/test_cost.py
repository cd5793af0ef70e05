from __future__ import annotations

import math

import pytest

from pybatch.tune.cost import ApiPrice, Prices, Usage, dollars

USAGE = Usage(seconds=1800, rows=100, input_tokens=3_000_000, output_tokens=1_000_000)


def test_an_hour_of_the_machine_is_shared_out() -> None:
    cost = Prices(4.0).cost(USAGE)
    assert cost is not None
    assert (cost.dollars, cost.per_row, cost.per_million_tokens) == (2.0, 0.02, 0.5)
    assert (cost.per_million_input_tokens, cost.per_million_output_tokens) == (pytest.approx(2 / 3), 2.0)


def test_apis_are_compared_by_the_same_tokens() -> None:
    prices = Prices.of(4.0, ["mini:0.10:0.70", "host:port:1:2"])
    assert prices.apis == (ApiPrice("mini", 0.1, 0.7), ApiPrice("host:port", 1, 2))
    assert prices.to_json(USAGE)["apis"] == {"mini": pytest.approx(1.0), "host:port": pytest.approx(5.0)}
    assert prices.figures(USAGE)["cost by host:port"] == "$5.00, 2.5 times the cost here"


def test_what_is_not_known_is_not_told() -> None:
    assert Prices().figures(USAGE) == {}
    assert Prices().to_json(USAGE)["dollars"] is None
    assert Prices.of(None, ["mini:1:1"]).figures(USAGE) == {"cost by mini": "$4.00"}
    nothing = Prices(1.0).cost(Usage(0, 0, 0, 0))
    assert nothing is not None
    assert (nothing.dollars, nothing.per_row) == (0, None)


@pytest.mark.parametrize("text", ["mini", "mini:1", ":1:2", "mini:1:-2", "mini:nan:1", "mini:1:inf"])
def test_prices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"compare_price: expected NAME:IN:OUT"):
        ApiPrice.parse(text)


@pytest.mark.parametrize("price", [-1, math.inf, math.nan])
def test_a_machine_has_a_price(price: float) -> None:
    with pytest.raises(ValueError, match="price_per_hour: expected dollars"):
        Prices(price)


def test_amounts_have_the_digits_that_tell_something() -> None:
    amounts = [1234.5, 1, 0.25, 0.00001234, 0]
    assert list(map(dollars, amounts)) == ["$1,234.50", "$1.00", "$0.250", "$0.0000123", "$0.00"]

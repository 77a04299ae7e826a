"""Prices and the budget: unknown prices are not guessed, and the limit holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.base.settings import Price
from scvec.ingest.sources.prices import PRICES, Budget, price_of
from scvec.ingest.sources.retry import BudgetSpentError


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o-mini", Price(0.15, 0.60)),
        ("gpt-4o-mini-2024-07-18", Price(0.15, 0.60)),
        ("gpt-4o-2024-08-06", Price(2.50, 10.00)),
        ("gpt-4o-2024-05-13", Price(5.00, 15.00)),
        ("gpt-3.5-turbo-0125", Price(0.50, 1.50)),
        ("gpt-5-mini-2025-08-07", Price(0.25, 2.00)),
        ("text-embedding-3-large", Price(0.13)),
        ("text-embedding-ada-002", Price(0.10)),
        ("gpt-4o-audio-preview", None),
        ("gpt-4o-mini-high", None),
        ("ft:gpt-4o-mini-2024-07-18:lab::x", None),
        ("gpt-99", None),
        ("", None),
    ],
)
def test_shipped_prices(model: str, price: Price | None) -> None:
    assert price_of(model, {}) == price


def test_a_small_model_is_not_priced_as_a_large_one() -> None:
    # Longest prefix would do that for names the table does not hold.
    assert PRICES["gpt-4o-mini"].input < PRICES["gpt-4o"].input
    assert price_of("gpt-4o-nano", {}) is None


def test_the_config_comes_first() -> None:
    own = {"gpt-4o-mini": Price(9, 9), "llama": Price(1, 2)}
    assert price_of("gpt-4o-mini-2024-07-18", own) == Price(9, 9)
    assert price_of("llama", own, "127.0.0.1:8080") == Price(1, 2)
    assert price_of("gpt-4o-mini-2024-07-18", {**own, "gpt-4o-mini-2024-07-18": Price(3)}) == Price(3)


def test_prices_belong_to_hosts() -> None:
    assert price_of("gpt-4o", {}, "eu.api.openai.com") == PRICES["gpt-4o"]
    assert price_of("gpt-4o", {}, "openrouter.ai") is None
    assert price_of("gpt-4o", {}, "openai.com.example") is None
    for host in ("127.0.0.1:8080", "localhost", "[::1]:80", "localhost:1", "http://127.0.0.1:8080/v1"):
        assert price_of("anything", {}, host) == Price(0.0)
    assert price_of("gpt-4o", {}, "https://api.openai.com/v1") == PRICES["gpt-4o"]
    assert price_of("gpt-4o", {}, "https://[nonsense") is None


def test_a_limit_needs_a_price() -> None:
    with pytest.raises(InputError, match=r"prices.\"llama\"") as caught:
        Budget(None, 1.0, model="llama")
    assert "dollars per million tokens" in caught.value.fix
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError):
            Budget(Price(1), wrong)


def test_without_a_price_nothing_is_counted_but_tokens() -> None:
    budget = Budget(None, None)
    budget.reserve(10**9, 10**9).settle(5, 7)
    assert budget.spent is None
    assert (budget.tokens_in, budget.tokens_out) == (5, 7)


def test_settling_pays_once() -> None:
    budget = Budget(Price(1.0, 2.0), 1.0)
    reserve = budget.reserve(100_000, 400_000)
    with pytest.raises(BudgetSpentError, match=r"\$0\.2000"):
        budget.reserve(200_000)
    reserve.settle(100_000, 50_000)
    for again in (reserve.keep, reserve.release, lambda: reserve.settle(10**9, 10**9)):
        again()
    assert budget.spent == pytest.approx(0.2)
    assert (budget.tokens_in, budget.tokens_out) == (100_000, 50_000)
    budget.reserve(800_000).release()
    budget.reserve(800_000)


def test_what_nobody_knows_stays_set_aside() -> None:
    budget = Budget(Price(1.0), 1.0)
    budget.reserve(600_000).keep()
    assert budget.spent == 0
    with pytest.raises(BudgetSpentError):
        budget.reserve(500_000)


def test_a_limit_of_nothing_allows_what_is_free() -> None:
    Budget(Price(0.0), 0.0).reserve(10**6, 10**6).settle(10**6, 10**6)
    with pytest.raises(BudgetSpentError):
        Budget(Price(0.1), 0.0).reserve(1)


call = st.tuples(
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.floats(0, 1),
    st.sampled_from(["settle", "keep", "release", "wait"]),
)


@given(
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 50),
    st.lists(call, max_size=60),
)
def test_the_limit_is_never_exceeded(given_in: float, given_out: float, limit: float, calls: list) -> None:
    price = Price(given_in, given_out)
    budget = Budget(price, limit)
    truth = 0.0  # what a server might count, at most
    waiting = []
    for tokens_in, tokens_out, share, end in calls:
        try:
            reserve = budget.reserve(tokens_in, tokens_out)
        except BudgetSpentError:
            continue
        used = int(share * tokens_in), int(share * tokens_out)
        if end == "settle":
            reserve.settle(*used)
            truth += budget.cost(*used)
        elif end == "keep":
            reserve.keep()
            truth += budget.cost(*used)
        elif end == "release":
            reserve.release()
        else:
            waiting.append((reserve, used))
    for reserve, used in waiting:
        reserve.settle(*used)
        truth += budget.cost(*used)
    assert truth <= limit + 1e-9
    assert budget.spent is not None
    assert budget.spent <= limit + 1e-9

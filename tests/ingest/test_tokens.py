"""Tokens are estimated from above, and texts are cut between words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.ingest.sources.prices import count_tokens, truncate

INS = (
    "This gene encodes insulin, a peptide hormone that plays a vital role in the regulation of carbohydrate "
    "and lipid metabolism. Binding of insulin to the insulin receptor (INSR) stimulates glucose uptake."
)


def test_counts_are_estimates_from_above() -> None:
    whole, empty, symbol = count_tokens([INS, "", "INS"])
    # 38 and 1 tokens by o200k_base.
    assert 38 <= whole <= 100 and 0 <= empty <= 4 and 1 <= symbol <= 8


@given(text=st.text(max_size=200) | st.text(alphabet="abc IG1-. \n", max_size=400), limit=st.integers(0, 60))
def test_truncation_holds_the_limit_and_keeps_the_start(text: str, limit: int) -> None:
    start = truncate(text, limit)
    assert text.startswith(start)
    assert not start or count_tokens([start])[0] <= limit
    if not text or count_tokens([text])[0] <= limit:
        assert start == text


def test_truncation_cuts_between_words_and_wastes_little() -> None:
    start = truncate(INS, 30)
    assert INS[len(start)] == " "
    assert count_tokens([start])[0] >= 25


def test_truncation_to_nothing() -> None:
    assert truncate("INS", 0) == ""
    with pytest.raises(ValueError, match="0 or more"):
        truncate("INS", -1)

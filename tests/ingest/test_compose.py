"""Composed descriptions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scvec.ingest.genes import LIMITS, MAX_CHARS, GoFact, borrow, choose, compose

HORMONE = GoFact("GO:1", "hormone activity", "MF", ("IDA",))
GLUCOSE = GoFact("GO:2", "glucose homeostasis", "BP", ("IMP",))
OUTSIDE = GoFact("GO:3", "extracellular region", "CC", ("TAS",))


def test_a_text_has_type_and_function_of_a_gene() -> None:
    text = compose("INS", "human", "protein-coding", "insulin", choose([OUTSIDE, HORMONE, GLUCOSE]))
    assert text == (
        "INS (insulin), a protein-coding human gene. It takes part in glucose homeostasis; "
        "acts through hormone activity; found in extracellular region."
    )


def test_a_gene_without_facts_has_a_text_too() -> None:
    assert compose("Gm1", "mouse", "lncRNA") == "Gm1, a mouse long non-coding RNA gene."
    assert compose("X", "human", "something new") == "X, a human gene."


def test_a_borrowed_text_names_the_ortholog() -> None:
    text = borrow("Ins1", "mouse", "protein-coding", ("human", "INS", "insulin"), choose([GLUCOSE]))
    assert text == (
        "Ins1, a protein-coding mouse gene; ortholog of human INS (insulin). "
        "It takes part in glucose homeostasis."
    )


def test_experiments_come_first_and_kin_and_empty_terms_are_left_out() -> None:
    parent = GoFact("GO:9", "homeostatic process", "BP", ("IDA",))
    guess = GoFact("GO:4", "aging", "BP", ("IEA",))
    empty = GoFact("GO:5", "protein binding", "MF", ("IPI",))
    counts = {"GO:2": 200, "GO:9": 1500, "GO:4": 200, "GO:5": 12000}
    chosen = choose([guess, parent, GLUCOSE, empty], counts, 18_000, {"GO:2": frozenset({"GO:9"})})
    assert [f.name for f in chosen["BP"]] == ["glucose homeostasis", "aging"]
    assert chosen["MF"] == []


@given(
    st.lists(
        st.builds(
            GoFact,
            st.integers(0, 40).map(lambda i: f"GO:{i}"),
            st.text(st.characters(categories=["L", "N", "Zs"]), min_size=1, max_size=90),
            st.sampled_from(["BP", "MF", "CC", "other"]),
            st.lists(st.sampled_from(["IDA", "IEA", "TAS"]), max_size=2).map(tuple),
        ),
        max_size=40,
        unique_by=lambda f: f.go_id,
    ),
    st.randoms(),
)
def test_short_and_the_same_in_any_order(facts: list[GoFact], random: object) -> None:
    shuffled = facts.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    names = [f.name for f in facts]
    if len(set(names)) == len(names):
        assert choose(facts) == choose(shuffled)
    chosen = choose(facts)
    assert all(len(chosen[aspect]) <= LIMITS[aspect] for aspect in chosen)
    assert len(compose("INS", "human", "protein-coding", "insulin", chosen)) <= MAX_CHARS

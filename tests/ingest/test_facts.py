"""Texts of live sources: removed and kept parts, and that cleaning never fails."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.ingest.sources.facts import (
    FACTS,
    clean_summary,
    clean_text,
    facts_of,
    id_field,
    provenance_json,
    text_field,
    texts_field,
)


@pytest.mark.parametrize(
    ("raw", "text", "provenance"),
    [
        ("A. [provided by RefSeq, Jul 2008]", "A.", {"provided_by": "RefSeq", "provided_at": "Jul 2008"}),
        (
            "A. [provided by Alliance of Genome Resources, Apr 2022]",
            "A.",
            {"provided_by": "Alliance of Genome Resources", "provided_at": "Apr 2022"},
        ),
        ("A.[supplied by OMIM]", "A.", {"provided_by": "OMIM"}),
        ("A. [SUPPLIED BY OMIM].", "A.", {"provided_by": "OMIM"}),
        ("A [PubMed 12] and B [PubMed 3, PubMed 45].", "A and B.", {"pubmed": ["12", "3", "45"]}),
        (
            "A. [supplied by OMIM, Mar 2008]. [provided by RefSeq, May 2010]",
            "A.",
            {
                "provided_by": "OMIM",
                "provided_at": "Mar 2008",
                "also_provided_by": ["RefSeq, May 2010"],
            },
        ),
        (
            "A.[provided by RefSeq, Jul 2012]Next",
            "A. Next",
            {"provided_by": "RefSeq", "provided_at": "Jul 2012"},
        ),
        ("Binds [Ca2+] and [1].", "Binds [Ca2+] and [1].", {}),
        ("p<0.05 and t<w5> with x>3", "p<0.05 and t<w5> with x>3", {}),
        ("<p>the <i>INS</i> gene</p>\n<br/>&amp;  more", "the INS gene & more", {}),
        ("a<script>alert(1)</script>b<!-- c -->d", "a b d", {}),
        ("x\x00y\u202ez\u200b\ud800 \x1b[31mred\x1b[0m", "xyz red", {}),
        ("e\u0301", "\u00e9", {}),
        ("&amp;lt;b&amp;gt;x&amp;amp;", "x&", {}),
        (
            "A [provided by [supplied by OMIM]RefSeq].",
            "A.",
            {"provided_by": "OMIM", "also_provided_by": ["RefSeq"]},
        ),
        (None, "", {}),
        (12, "", {}),
    ],
)
def test_remarks_in_a_text_become_provenance(raw, text, provenance):
    assert clean_summary(raw) == (text, provenance)


def test_texts_are_cut_at_the_limit():
    assert len(clean_text("ab " * 50_000)) <= 20_000


PIECES = st.sampled_from(
    [
        *("[provided by ", "RefSeq", ", Jul 2008]", "[PubMed 1", "]", "<b>", "<br", "/>", "&amp;", "&lt;"),
        *(".", " ", "\t", "\u0301", "e", "\ud800", "\u202e", "<!--", "-->", "<script>", "</script>"),
        *("\x1b[1m", "lt;", "#60;"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=40).map("".join), st.integers(1, 60))
def test_cleaning_twice_changes_nothing_and_the_result_can_be_stored(raw, longest):
    text, provenance = clean_summary(raw, longest)
    assert clean_summary(text, longest) == (text, {})
    assert len(text) <= longest
    assert text == unicodedata.normalize("NFC", text) and text == text.strip()
    assert all(c.isprintable() for c in text)
    text.encode("utf-8")
    json.loads(provenance_json(provenance) or "{}")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s, max_size=3)))
def test_fields_of_any_type_are_read_without_raising(value):
    assert isinstance(text_field(value), str)
    assert all(isinstance(t, str) and t for t in texts_field(value))
    assert id_field(value) is None or id_field(value) > 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12", 12),
        (12, 12),
        (0, None),
        ("", None),
        (True, None),
        (-1, None),
        ("1e3", None),
        ("٣", None),
        (1.0, None),
    ],
)
def test_ids_are_positive_whole_numbers(value, expected):
    assert id_field(value) == expected


def test_facts_have_the_names_of_a_gene_page_and_say_something():
    assert len(FACTS) == 8
    assert facts_of(summary="x", aliases=[], organism="") == {"summary": "x"}
    with pytest.raises(ValueError):
        facts_of(colour="red")

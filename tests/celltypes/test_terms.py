"""Labels as labs write them and the Cell Ontology terms that they stand for."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.celltypes.terms import _NAMES, CONTEXTS, TermMatcher, context_of, words

SNAPSHOT = files("scvec") / "data" / "snapshot"


@pytest.fixture(scope="module")
def matcher() -> TermMatcher:
    terms = pd.read_parquet(str(SNAPSHOT / "cl_terms.parquet"))
    synonyms = pd.read_parquet(str(SNAPSHOT / "cl_synonyms.parquet"))
    names = [(i, label, True) for i, label in zip(terms["cl_id"], terms["label"], strict=True)]
    names += [(i, name, False) for i, name in zip(synonyms["cl_id"], synonyms["synonym"], strict=True)]
    return TermMatcher(names)


@pytest.mark.parametrize(
    ("label", "name", "how"),
    [
        ("B cell", "B cell", "label"),
        ("b_cell", "B cell", "label"),
        ("platelet", "platelet", "label"),
        ("pancreatic beta cell", "type B pancreatic cell", "synonym"),
        ("Treg", "regulatory T cell", "synonym"),
        ("T cells", "T cell", "plural"),
        ("monocytes", "monocyte", "plural"),
        ("NK", "natural killer cell", "plural"),
        ("B", "B cell", "plural"),
        ("Memory CD4 T", "CD4-positive, alpha-beta memory T cell", "spelling"),
        ("Naive CD4 T", "naive thymus-derived CD4-positive, alpha-beta T cell", "spelling"),
        ("T_CD8", "CD8-positive, alpha-beta T cell", "spelling"),
        ("CD4+ T cells", "CD4-positive, alpha-beta T cell", "spelling"),
        ("CD4 Naive", "naive thymus-derived CD4-positive, alpha-beta T cell", "spelling"),
        ("FCGR3A+ Mono", "CD14-low, CD16-positive monocyte", "spelling"),
        ("Mono_CD16", "CD14-low, CD16-positive monocyte", "spelling"),
        ("CD14+ Mono", "CD14-positive monocyte", "spelling"),
        ("CD16- Mono", "CD14-positive, CD16-negative classical monocyte", "spelling"),
        ("DC", "dendritic cell", "spelling"),
        ("pDC", "plasmacytoid dendritic cell", "synonym"),
        ("gdT", "gamma-delta T cell", "spelling"),
        ("MAIT", "mucosal-associated invariant T cell", "spelling"),
        ("Astro", "astrocyte", "spelling"),
        ("CD56+ NK", "natural killer cell", "broader"),
        ("B intermediate", "B cell", "broader"),
        ("Activated CD8 T cells", "CD8-positive, alpha-beta T cell", "broader"),
    ],
)
def test_spellings_of_laboratories_are_mapped(matcher: TermMatcher, label: str, name: str, how: str) -> None:
    found = matcher.match(label)
    assert (found.name, found.how) == (name, how)
    assert matcher.label_of[found.cl_id] == name and 0.5 < found.confidence <= 1.0


@pytest.mark.parametrize(
    "label",
    ["alpha", "beta", "unicorn", "unicorn cell", "cell type", "", "a", "12", "cluster 7", "+", "activated"],
)
def test_labels_that_are_not_cell_types_get_no_term(matcher: TermMatcher, label: str) -> None:
    # "alpha cell" is a synonym of a cell of the mouse retina: no plain word may stand for that.
    assert not matcher.match(label).cl_id


def test_words_mean_what_they_mean_in_the_tissue(matcher: TermMatcher) -> None:
    labels = ["alpha", "beta", "delta", "acinar", "activated_stellate", "macrophage"]
    found = matcher.match_all(labels)
    assert [found[label].name for label in labels] == [
        "pancreatic A cell",
        "type B pancreatic cell",
        "pancreatic D cell",
        "pancreatic acinar cell",
        "pancreatic stellate cell",
        "macrophage",
    ]
    assert not matcher.match_all(["alpha", "neuron"])["alpha"].cl_id
    assert matcher.match_all(["alpha", "neuron"], ["pancreas"])["alpha"].name == "pancreatic A cell"
    liver = matcher.match_all(["stellate", "hepatocytes", "Kupffer cells"])
    assert liver["stellate"].name == "hepatic stellate cell"
    assert context_of(["T cell", "B cell"]) == {}


def test_the_table_of_spellings_names_terms_that_are_there(matcher: TermMatcher) -> None:
    known = set(matcher.label_of.values())
    assert set(_NAMES.values()) <= known
    for _, terms in CONTEXTS.values():
        assert set(terms.values()) <= known


def test_ids_that_baron_et_al_were_given(matcher: TermMatcher) -> None:
    import anndata

    for name in ("human", "mouse"):
        obs = anndata.read_h5ad(str(files("scvec") / "data" / f"baron_{name}.h5ad"), backed="r").obs
        pairs = obs[["cell_type", "cell_ontology_id"]].astype(str).drop_duplicates()
        given = dict(zip(pairs["cell_type"], pairs["cell_ontology_id"], strict=True))
        found = matcher.match_all(sorted(given))
        same = {label for label, cl_id in given.items() if found[label].cl_id == cl_id}
        assert set(given) - same <= {"immune_other"}


def test_every_term_is_found_by_its_own_label(matcher: TermMatcher) -> None:
    found = {label: (matcher.match(label).cl_id, cl_id) for cl_id, label in matcher.label_of.items()}
    assert [label for label, (got, meant) in found.items() if got not in (meant, "")] == []


@given(st.text(max_size=30))
def test_any_text_is_accepted(text: str) -> None:
    assert words(text) == tuple(sorted(set(words(text))))

"""Labels that look wrong are found, and good ones are left in peace."""

from __future__ import annotations

from importlib.resources import files

import anndata
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.ingest.cells.label_columns import fold_label, look_over


@pytest.mark.parametrize(
    "names",
    [
        ("B cell", "B cells", "b-cell", "B_cell", " B  Cell", "Bcell", "B"),
        ("CD4 T", "T CD4", "CD4-T", "CD4 T cells"),
        ("CD14+ Mono", "CD14 + mono", "CD14-positive mono", "Mono CD14+", "CD14 pos Mono"),
        ("CD16- monocyte", "CD16-negative monocytes", "CD16 neg monocyte"),
        ("Macrophage", "macrophages"),
    ],
)
def test_spellings_of_one_type_are_near_duplicates(names: tuple[str, ...]):
    assert len({fold_label(n) for n in names}) == 1, {n: fold_label(n) for n in names}
    [finding] = look_over(dict.fromkeys(names, 7))
    assert finding.kind == "near-duplicate" and finding.labels == dict.fromkeys(names, 7)
    assert "(7 cells)" in finding.message


@pytest.mark.parametrize(
    "pair",
    [
        ("CD16+ Mono", "CD16- Mono"),
        ("CD4+CD8- T", "CD4-CD8+ T"),
        ("T cell", "B cell"),
        ("alpha", "beta"),
        ("Th1", "Th2"),
        ("ILC 1", "ILC 2"),
        ("activated_stellate", "quiescent_stellate"),
        ("CD4 T", "CD8 T"),
        ("naive B", "memory B"),
        ("gamma", "gamma delta T"),
    ],
)
def test_two_types_are_not_taken_for_one(pair: tuple[str, str]):
    assert look_over(dict.fromkeys(pair, 5)) == []


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("unknown", "not a cell type"),
        ("Unassigned", "not a cell type"),
        ("T/B doublet", "not a cell type"),
        ("doublets", "not a cell type"),
        ("low quality", "not a cell type"),
        ("T cell?", "not a cell type"),
        ("immune_other", "not a cell type"),
        ("7", "cluster"),
        ("cluster 12", "cluster"),
        ("leiden_3", "cluster"),
        ("COVID-19", "condition"),
        ("type 2 diabetes", "condition"),
        ("healthy", "condition"),
        ("Alzheimer's disease", "condition"),
    ],
)
def test_labels_that_are_not_cell_types_are_reported_with_counts(label: str, word: str):
    [finding] = look_over({label: 3, "alpha": 10})
    assert finding.kind == "no cell type" and finding.labels == {label: 3}
    assert word in finding.message and "3 cells" in finding.message


def test_real_labels_are_not_reported():
    folder = files("scvec") / "data"
    for name, odd in (("baron_human.h5ad", []), ("baron_mouse.h5ad", ["immune_other"])):
        labels = anndata.read_h5ad(str(folder / name), backed="r").obs["cell_type"].astype(str)
        found = look_over(labels.value_counts().to_dict())
        assert [label for finding in found for label in finding.labels] == odd
    pbmc = "Naive CD4 T|Memory CD4 T|CD14+ Mono|B|CD8 T|FCGR3A+ Mono|NK|DC|Platelet|T_CD4|Mono_CD16|MK|HSC"
    pbmc += "|pDC|ILC3|C1 microglia"
    assert look_over(dict.fromkeys(pbmc.split("|"), 4)) == []


@given(st.text(max_size=12))
def test_any_text_is_folded_to_one_name(text: str):
    assert fold_label(text) == fold_label(f" {text} ")
    assert all(finding.labels == {text: 1} for finding in look_over({text: 1}))

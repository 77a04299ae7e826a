"""Several references: each annotates, weights choose among them, the ontology combines labels."""

from __future__ import annotations

import json
from importlib.resources import files

import anndata
import numpy as np
import pandas as pd
import pytest

import scvec
from scvec.base.errors import InputError
from scvec.base.types import Neighbors
from scvec.celltypes.terms import ClassOntology
from scvec.model.annotation import Annotation
from scvec.model.query_options import QueryOptions
from scvec.stores.store.store import Store
from scvec.workflows.query_many import _joined

ISLET = ("alpha", "beta", "delta", "gamma")
OTHERS = ("acinar", "ductal", "activated_stellate", "endothelial", "macrophage")


@pytest.fixture(scope="module")
def made(tmp_path_factory, new_store):
    """Baron's pancreas cut into two references without a type in common; donors 3 and 4 are the query."""
    folder = tmp_path_factory.mktemp("many")
    store = new_store(folder / "store")
    adata = anndata.read_h5ad(files("scvec") / "data" / "baron_human.h5ad")
    label, donor = (adata.obs[c].astype(str) for c in ("cell_type", "donor"))
    known = donor.isin(["human1", "human2"])
    for name, types in (("islet", ISLET), ("rest", OTHERS)):
        ref = adata[(known & label.isin(types)).to_numpy()].copy()
        scvec.ingest_cells(store, [ref], name=name, label_key="cell_type", batch_key="donor")
    rows = np.flatnonzero((~known & label.isin(ISLET + OTHERS)).to_numpy())
    rows = np.random.default_rng(0).permutation(rows)[:500]
    adata[np.sort(rows)].copy().write_h5ad(folder / "new.h5ad")
    return folder


@pytest.fixture(scope="module")
def joint(made):
    output = made / "joint.h5ad"
    return scvec.query(made / "store", made / "new.h5ad", reference=("islet", "rest"), output=output)


def truth(made):
    return anndata.read_h5ad(made / "new.h5ad").obs["cell_type"].astype(str).to_numpy()


def check_halves(joint, of, halves, *, loss, wrong, sure):
    """Compare the accuracy on the cells of each reference with that of it alone, and count wrong calls."""
    for name, own in halves.items():
        alone = joint.annotations[name].label
        assert np.mean(joint.label[own] == of[own]) >= np.mean(alone[own] == of[own]) - loss
        others = joint.reference[own] != name
        assert np.mean(others) <= wrong
        assert np.mean(others & (joint.status[own] == "confident")) <= sure


@pytest.mark.slow
def test_each_reference_annotates_as_it_does_alone(made, joint):
    for name in ("islet", "rest"):
        alone = scvec.query(made / "store", made / "new.h5ad", reference=name)
        np.testing.assert_array_equal(joint.annotations[name].label, alone.label)
        np.testing.assert_array_equal(joint.annotations[name].novelty, alone.novelty)


@pytest.mark.slow
def test_two_halves_of_one_tissue(made, joint):
    # Neither reference knows what sets its types apart from those of the other; their mean cells tell it.
    of = truth(made)
    halves = {"islet": np.isin(of, ISLET), "rest": np.isin(of, OTHERS)}
    check_halves(joint, of, halves, loss=0.015, wrong=0.02, sure=0.01)


@pytest.mark.slow
def test_pancreas_and_blood(tmp_path, new_store, shared_data):
    blood = anndata.read_h5ad(shared_data / "pbmc3k_10x.h5ad")
    islets = anndata.read_h5ad(files("scvec") / "data" / "baron_human.h5ad")
    half = np.random.default_rng(0).permutation(blood.n_obs) < blood.n_obs // 2
    known = islets.obs["donor"].astype(str).isin(["human1", "human2"]).to_numpy()
    store = new_store(tmp_path / "store")
    scvec.ingest_cells(store, [blood[half].copy()], name="blood", label_key="cell_type")
    refs = [islets[known].copy()]
    scvec.ingest_cells(store, refs, name="pancreas", label_key="cell_type", batch_key="donor")
    mixed = anndata.concat([blood[~half], islets[~known]], join="inner", keys=["b", "p"], label="of")
    mixed.obs_names_make_unique()
    joint = scvec.query(store, mixed, reference=("pancreas", "blood"))
    of = mixed.obs["cell_type"].astype(str).to_numpy()
    halves = {n: (mixed.obs["of"] == n[0]).to_numpy() for n in ("blood", "pancreas")}
    check_halves(joint, of, halves, loss=0.01, wrong=0.01, sure=0.001)


@pytest.mark.slow
def test_the_term_is_that_of_the_label_or_above(made, joint):
    beta = (truth(made) == "beta") & (joint.label == "beta") & (joint.status == "confident")
    lineage = Store(made / "store").reference("islet").meta["ontology"]["lineage"]["CL:0000169"]
    assert beta.sum() > 50
    assert np.mean(joint.cl_id[beta] == "CL:0000169") > 0.8
    assert set(joint.cl_id[beta]) <= set(lineage)


@pytest.mark.slow
def test_what_is_written(made, joint):
    written = anndata.read_h5ad(made / "joint.h5ad")
    table = joint.to_table()
    assert joint.output == str(made / "joint.h5ad")
    consensus = ["label", "confidence", "novelty", "status", "cl_id", "reference", "disagreement"]
    each = [f"{c}_{name}" for name in ("islet", "rest") for c in ("label", "confidence", "novelty", "status")]
    assert list(table.columns) == [f"scvec_{name}" for name in consensus + each]
    for name in table.columns:
        assert written.obs[name].astype(str).tolist() == table[name].astype(str).tolist()
    assert written.obsm["scvec_proba_rest"].shape == (500, len(OTHERS))
    assert list(written.uns["scvec"]["references"]) == ["islet", "rest"]
    assert set(json.loads(written.uns["scvec"]["made_by"])) == {"islet", "rest"}
    for ending, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        path = made / f"joint{ending}"
        scvec.query(made / "store", made / "new.h5ad", reference=["islet", "rest"], output=path)
        assert read(path)["scvec_label"].astype(str).tolist() == joint.label.tolist()


@pytest.mark.slow
def test_in_place_and_alone(made, joint):
    new = anndata.read_h5ad(made / "new.h5ad")
    scvec.annotate(new, made / "store", reference=("islet", "rest"))
    assert new.obs["scvec_label"].astype(str).tolist() == joint.label.tolist()
    found = scvec.query(made / "store", made / "new.h5ad", reference=("islet", "islet"))
    assert isinstance(found, Annotation) and found.parameters["reference"] == "islet"


@pytest.mark.parametrize(
    "options", [{"report": "r.html"}, {"columns": "celltypist"}, {"reference": ("islet", "nowhere")}]
)
@pytest.mark.slow
def test_what_needs_one_reference_is_refused(made, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        scvec.query(made / "store", made / "new.h5ad", **{"reference": ("islet", "rest"), **options})
    with pytest.raises(InputError):
        _ = QueryOptions(reference=("islet", "rest")).one_reference


def test_the_command_names_each_reference():
    words = QueryOptions(reference=("islet", "rest")).command_line("new.h5ad")
    assert words == "scvec query new.h5ad --reference islet --reference rest"


LINEAGE = {"B": ("B", "L", "I"), "T": ("T", "L", "I"), "L": ("L", "I"), "M": ("M", "I"), "E": ("E",)}
DEPTH = {"I": 0, "L": 1, "M": 1, "B": 2, "T": 2, "E": 0}


def ontology(*terms):
    return ClassOntology(terms, {t: t for t in DEPTH}, {t: LINEAGE[t] for t in terms if t in LINEAGE}, DEPTH)


def answer(classes, proba, status, novelty):
    proba = np.array(proba, dtype=np.float32)
    best, n = proba.argmax(axis=1), len(proba)
    label = np.array(classes, dtype=object)[best]
    none = np.full(n, "", dtype=object)
    return Annotation(
        cells=np.array([f"c{i}" for i in range(n)], dtype=object),
        classes=tuple(classes),
        label=label,
        label_knn=label,
        label_head=label,
        label_broad=none,
        cl_id=none,
        status=np.array(status, dtype=object),
        confidence=proba.max(axis=1),
        novelty=np.array(novelty, dtype=np.float32),
        proba=proba,
        vectors=np.zeros((n, 2), dtype=np.float32),
        neighbors=Neighbors(np.zeros((n, 1), dtype=np.int64), np.zeros((n, 1), dtype=np.float32)),
        parameters={"reference": "x"},
    )


def one(fine, coarse, *, novel=(0.0, 0.0), status=("confident", "confident")):
    """Join the answers of a reference of B, T and M and of one of L, E and M for one cell."""
    parts = {
        "fine": answer(("B", "T", "M"), [fine], [status[0]], [novel[0]]),
        "coarse": answer(("L", "E", "M"), [coarse], [status[1]], [novel[1]]),
    }
    return _joined(parts, [ontology("B", "T", "M"), ontology("L", "E", "M")])


def test_a_coarse_reference_does_not_contradict_a_fine_one():
    found = one([0.95, 0.03, 0.02], [0.98, 0.01, 0.01])
    assert found.cl_id[0] == "B" and found.disagreement[0] == 0 and found.disagreements.empty
    assert found.status[0] == "confident"


def test_the_deepest_term_is_the_one_that_both_support():
    found = one([0.5, 0.48, 0.02], [0.98, 0.01, 0.01])
    assert found.cl_id[0] == "L" and found.reference[0] == "coarse"


def test_references_that_contradict_each_other_make_a_cell_ambiguous():
    found = one([0.96, 0.02, 0.02], [0.02, 0.95, 0.03])
    assert found.label[0] == "B" and found.status[0] == "ambiguous" and found.cl_id[0] == ""
    assert found.disagreement[0] == pytest.approx(0.95 / 1.91, abs=1e-3)
    assert found.confidence[0] < 0.55
    assert found.disagreements.iloc[0].tolist() == ["fine", "B", "coarse", "E", 1]


def test_a_reference_has_no_weight_for_a_novel_cell():
    found = one([0.6, 0.3, 0.1], [0.01, 0.98, 0.01], novel=(0.1, 0.9), status=("confident", "novel"))
    assert (found.label[0], found.reference[0], found.status[0]) == ("B", "fine", "confident")
    assert found.confidence[0] == pytest.approx(0.6) and found.disagreement[0] == 0
    assert found.cl_id[0] == "L" and found.disagreements.empty


def test_novel_to_all_is_novel():
    found = one([0.9, 0.05, 0.05], [0.1, 0.8, 0.1], novel=(0.9, 0.7), status=("novel", "novel"))
    assert (found.reference[0], found.status[0]) == ("coarse", "novel")
    assert found.novelty[0] == pytest.approx(0.7)


def alike(fine, coarse, likeness, **how):
    parts = {
        "fine": answer(("B", "T", "M"), [fine], [how["status"][0]], [how["novel"][0]]),
        "coarse": answer(("L", "E", "M"), [coarse], [how["status"][1]], [how["novel"][1]]),
    }
    ontologies = [ontology("B", "T", "M"), ontology("L", "E", "M")]
    return _joined(parts, ontologies, np.array(likeness, dtype=float)[:, None])


def test_similarity_to_the_mean_cell_decides_if_novelty_is_wrong():
    how = {"status": ("novel", "confident"), "novel": (0.6, 0.1)}
    found = alike([0.96, 0.02, 0.02], [0.02, 0.95, 0.03], [0.9, 0.7], **how)
    assert (found.label[0], found.reference[0], found.status[0]) == ("B", "fine", "novel")
    assert found.novelty[0] == pytest.approx(0.6)
    found = alike([0.96, 0.02, 0.02], [0.02, 0.95, 0.03], [0.7, 0.9], **how)
    assert (found.label[0], found.reference[0], found.status[0]) == ("E", "coarse", "confident")


def test_a_type_of_several_references_gets_the_sum_of_their_weights():
    parts = {
        "one": answer(("B", "T"), [[0.6, 0.4]], ["confident"], [0.3]),
        "two": answer(("B", "T"), [[0.7, 0.3]], ["confident"], [0.3]),
        "three": answer(("E", "M"), [[0.9, 0.1]], ["confident"], [0.2]),
    }
    ontologies = [ontology("B", "T"), ontology("B", "T"), ontology("E", "M")]
    found = _joined(parts, ontologies)
    assert (found.label[0], found.reference[0]) == ("B", "two")

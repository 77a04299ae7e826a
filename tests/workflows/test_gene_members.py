"""Members that stand on genes beside vectors of obsm, in one reference."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from baron_parts import DATA

import scvec
from scvec.base.errors import StoreError
from scvec.model.gene_members import PREFIX, gene_side
from scvec.model.golden import check_golden, make_golden
from scvec.stores.store.store import Store

KEY = "X_poor"
TYPES = ("alpha", "beta", "ductal", "delta")


def cells_of(donors: list[str], n: int = 40) -> anndata.AnnData:
    """Return some cells of four types, and vectors that tell one pair of types from the other, with noise."""
    adata = anndata.read_h5ad(DATA)
    adata = adata[adata.obs["donor"].isin(donors) & adata.obs["cell_type"].isin(TYPES)]
    number = adata.obs.groupby("cell_type", observed=True).cumcount()
    adata = adata[(number < n).to_numpy()].copy()
    adata.obs = adata.obs[["cell_type", "donor"]].astype(str)
    rng = np.random.default_rng(len(donors[0]) + adata.n_obs)
    pair = adata.obs["cell_type"].isin(TYPES[:2]).to_numpy()
    vectors = rng.normal(size=(adata.n_obs, 5)) + 6.0 * pair[:, None]
    adata.obsm[KEY] = vectors.astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def made(tmp_path_factory, new_store):
    """A store, the cells of its reference, and new cells."""
    store = new_store(tmp_path_factory.mktemp("beside") / "store")
    ref, new = cells_of(["human1", "human2"]), cells_of(["human3", "human4"])
    options = {"label_key": "cell_type", "batch_key": "donor", "encoder": f"obsm:{KEY}"}
    report = scvec.ingest_cells(store, [ref], name="both", **options)
    assert sum("genes are used beside" in note for note in report.notes) == 1
    report = scvec.ingest_cells(store, [ref], name="alone", vectors_only=True, **options)
    assert not any("beside" in note for note in report.notes)
    return store, ref, new


def accuracy(found, cells) -> float:
    return float(np.mean(found.label == cells.obs["cell_type"].to_numpy()))


def test_genes_have_a_say_and_can_be_switched_off(made):
    store, _, new = made
    both, off = (scvec.query(store, new, reference="both", vectors_only=o) for o in (False, True))
    alone = scvec.query(store, new, reference="alone")
    assert accuracy(both, new) > 0.9 > 0.75 > accuracy(alone, new)
    np.testing.assert_array_equal(off.proba, alone.proba)
    assert any("beside the vectors" in note for note in both.notes) and "genes_beside" in both.parameters
    assert not any("beside" in note for note in off.notes)
    np.testing.assert_allclose(both.vectors, new.obsm[KEY], atol=1e-5)
    np.testing.assert_allclose(both.proba.sum(axis=1), 1.0, atol=1e-5)


def test_the_answer_is_the_mean_of_both(made):
    """Oracle: log probabilities by vectors and by genes alone, averaged and sharpened."""
    store, _, new = made
    bare = new.copy()
    del bare.obsm[KEY]
    both, vectors, genes = (
        scvec.query(store, cells, reference="both", vectors_only=o).proba.astype(np.float64)
        for cells, o in ((new, False), (new, True), (bare, False))
    )
    sharp = Store(store).reference("both").meta["beside"]["calibration"]["sharpness"]
    oracle = (vectors * genes) ** (sharp / 2)
    np.testing.assert_allclose(both, oracle / oracle.sum(axis=1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("kind", ["no vectors", "no genes", "other genes"])
def test_a_query_that_has_one_of_both(kind, made):
    store, _, new = made
    cells = new.copy()
    if kind == "no vectors":
        del cells.obsm[KEY]
    elif kind == "no genes":
        cells = anndata.AnnData(obs=new.obs, obsm={KEY: new.obsm[KEY]})
    else:
        cells.var_names = [f"thing-{k}" for k in range(cells.n_vars)]
    found = scvec.query(store, cells, reference="both")
    if kind == "no vectors":
        assert accuracy(found, new) > 0.9 and found.parameters["by_genes_alone"]
        assert any("genes alone" in note for note in found.notes)
    else:
        alone = scvec.query(store, new, reference="alone")
        np.testing.assert_array_equal(found.label, alone.label)
        assert any("genes are not used" in note for note in found.notes)


def test_novel_cells_are_named_by_genes(made):
    store, _, new = made
    found = scvec.query(store, new, reference="both", name_novel=True, tissue="pancreas")
    assert found.novel_names and any(one.candidates for one in found.novel_names)
    off = scvec.query(store, new, reference="both", name_novel=True, tissue="pancreas", vectors_only=True)
    assert not any(one.candidates for one in off.novel_names)  # dimensions of vectors have no markers


def test_a_reference_without_genes_says_so(made, tmp_path, new_store):
    _, ref, _ = made
    bare = anndata.AnnData(obs=ref.obs, obsm={KEY: ref.obsm[KEY]})
    store = new_store(tmp_path / "store")
    options = {"label_key": "cell_type", "encoder": f"obsm:{KEY}"}
    report = scvec.ingest_cells(store, [bare], name="bare", **options)
    assert any("genes are not used beside the vectors" in note for note in report.notes)
    assert gene_side(Store(store).reference("bare")) is None


def test_label_sets_and_conditions(made):
    store, _, new = made
    found = scvec.query(store, new, reference="both", coverage=0.9)
    truth = [found.classes.index(t) for t in new.obs["cell_type"]]
    assert found.sets is not None and found.sets[np.arange(len(truth)), truth].mean() > 0.8
    assert found.sets.sum(axis=1).mean() < 2
    some = scvec.query(store, new, reference="both", where="cell_type in ('alpha', 'ductal')")
    assert set(some.label) == {"alpha", "ductal"}


@pytest.mark.parametrize("with_cells", [True, False])
def test_packs_hold_both(with_cells, made, tmp_path, new_store):
    store, ref, new = made
    scvec.pack(store, "both", output=tmp_path / "b.scvec", with_cells=with_cells)
    other = new_store(tmp_path / "other")
    scvec.pull(other, str(tmp_path / "b.scvec"))
    pulled, found = Store(other).reference("both"), scvec.query(other, new, reference="both")
    if with_cells:
        np.testing.assert_array_equal(found.proba, scvec.query(store, new, reference="both").proba)
        return
    assert accuracy(found, new) > 0.9
    # No row of any array is a cell: those of cells have as many rows as the reference or its sample.
    own = {k: v for k, v in pulled.tensors.items() if k.startswith(PREFIX)}
    assert own and not any(k.startswith(f"{PREFIX}sample.") for k in own)
    assert not any(ref.n_obs in v.shape for v in own.values())


def test_a_changed_gene_side_fails_the_golden_query(made):
    store, _, _ = made
    stored = Store(store).reference("both")
    golden, described = make_golden(stored)
    assert check_golden(stored, golden, described) > 20
    stored.tensors[f"{PREFIX}members.centers"][:] = 0.0
    stored.tensors[f"{PREFIX}head.W"][:] = 0.0
    with pytest.raises(StoreError, match="golden"):
        check_golden(stored, golden, described)


@pytest.mark.slow
def test_append_drop_card_and_info(made, tmp_path: Path, new_store):
    _, ref, new = made
    store = new_store(tmp_path / "store")
    options = {"label_key": "cell_type", "batch_key": "donor", "encoder": f"obsm:{KEY}"}
    scvec.ingest_cells(store, [ref], name="both", **options)
    before = scvec.query(store, new)
    side = gene_side(Store(store).reference("both"))
    scvec.append_cells(store, [new], name="both", label_key="cell_type")
    assert accuracy(scvec.query(store, new), new) >= accuracy(before, new)
    scvec.drop_cells(store, "both", where="donor = 'human1'")
    stored = Store(store).reference("both")
    left = gene_side(stored)
    assert side is not None and left is not None
    donor = stored.obs["donor"].astype(str).to_numpy()
    assert 0 < len(left.tensors["sample.rows"]) < len(side.tensors["sample.rows"])
    assert set(donor[left.tensors["index.rows"]]) == {"human2"}
    assert accuracy(scvec.query(store, new), new) > 0.85
    told = scvec.info(store, reference="both")
    [one] = told.references
    assert one.details["genes beside"] == len(left.meta["all_genes"])
    record = stored.meta["beside"]["calibration"]["record"]
    assert one.details["record"]["accuracy"] == record["accuracy"] > 0.9

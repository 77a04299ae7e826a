"""The main job on the real cells that ship with scvec, without a language model (random gene vectors)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import scvec
from scvec.base.errors import InputError
from scvec.model.calibration import accuracy, expected_calibration_error, macro_f1
from scvec.model.explanation import Explainer
from scvec.workflows.demo import merge_labels

DATA = Path(str(files("scvec") / "data"))
OPTIONS: dict[str, Any] = {"label_key": "cell_type", "backbone": "random:64"}


@pytest.fixture(scope="module")
def human() -> anndata.AnnData:
    return anndata.read_h5ad(DATA / "baron_human.h5ad")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, human: anndata.AnnData, new_store: Callable[[Path], Path]
) -> Path:
    """A store with donors 1 and 2, and the other donors as a file."""
    path = tmp_path_factory.mktemp("main-job")
    known = human.obs["donor"].isin(["human1", "human2"]).to_numpy()
    human[known].write_h5ad(path / "ref.h5ad")
    human[~known].write_h5ad(path / "new.h5ad")
    report = scvec.ingest_cells(
        new_store(path / "store"), [path / "ref.h5ad"], name="donors", batch_key="donor", **OPTIONS
    )
    assert "whole batches" in report.calibration["held_out"]
    return path


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]) -> Path:
    return new_store(tmp_path_factory.mktemp("tiny") / "store")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_unseen_donors_are_annotated(folder: Path):
    truth = anndata.read_h5ad(folder / "new.h5ad").obs["cell_type"].to_numpy().astype(str)
    found = scvec.query(folder / "store", folder / "new.h5ad")
    assert accuracy(truth, found.label) >= 0.95
    assert macro_f1(truth, found.label) >= 0.88
    assert expected_calibration_error(found.confidence, truth == found.label) <= 0.05
    # novelty and status mean something: what is called confident is right more often
    sure = found.status == "confident"
    assert sure.mean() > 0.8
    assert accuracy(truth[sure], found.label[sure]) > accuracy(truth[~sure], found.label[~sure])


def test_mouse_cells_are_annotated_through_orthologs(folder: Path):
    cells = anndata.read_h5ad(DATA / "baron_mouse.h5ad")
    found = scvec.query(folder / "store", cells)
    truth = merge_labels(cells.obs["cell_type"].to_numpy().astype(str))
    assert accuracy(truth, merge_labels(found.label)) >= 0.88
    assert any("ortholog" in note for note in found.notes)
    # Most of them are given a known type rightly, and are not new for being of another species.
    assert found.parameters["fitted"] and found.parameters["shift"]["size"] > 1
    assert (found.status == "novel").mean() < 0.15


def test_a_type_that_the_reference_lacks_is_novel(folder: Path, human: anndata.AnnData):
    known = human.obs["donor"].isin(["human1", "human2"]).to_numpy()
    rest = human[known & (human.obs["cell_type"] != "ductal").to_numpy()].copy()
    scvec.ingest_cells(folder / "store", [rest], name="lacking", batch_key="donor", **OPTIONS)
    new = anndata.read_h5ad(folder / "new.h5ad")
    found = scvec.query(folder / "store", new, reference="lacking")
    scvec.rm(folder / "store", "lacking")
    ductal = (new.obs["cell_type"] == "ductal").to_numpy()
    assert (found.status[ductal] == "novel").mean() > 0.5 > 4 * (found.status[~ductal] == "novel").mean()
    assert np.median(found.novelty[ductal]) > 0.5 > np.median(found.novelty[~ductal])


def test_annotated_copy_carries_everything_over(folder: Path):
    before = digest(folder / "new.h5ad")
    found = scvec.query(folder / "store", folder / "new.h5ad", output=folder / "out.h5ad")
    assert digest(folder / "new.h5ad") == before
    source, out = (anndata.read_h5ad(folder / name) for name in ("new.h5ad", "out.h5ad"))
    assert (source.X != out.X).nnz == 0 and source.X.dtype == out.X.dtype
    assert list(source.obs.columns) == [c for c in out.obs.columns if not c.startswith("scvec_")]
    assert (out.obs["scvec_label"].astype(str) == found.label).all()
    expected = {"label", "confidence", "novelty", "status", "label_knn", "label_head", "label_broad", "cl_id"}
    assert {c.removeprefix("scvec_") for c in out.obs.columns if c.startswith("scvec_")} == expected
    assert out.obsm["X_scvec"].shape == (out.n_obs, 26)  # two gene sets, an axis less than 14 classes each
    np.testing.assert_allclose(np.linalg.norm(out.obsm["X_scvec"], axis=1), 1.0, atol=1e-5)
    proba = out.obsm["scvec_proba"]
    classes = list(out.uns["scvec"]["classes"])
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert [classes[i] for i in proba.argmax(axis=1)] == list(out.obs["scvec_label"])
    parameters = json.loads(out.uns["scvec"]["parameters"])
    assert parameters["reference"] == "donors" and "genes matched" in parameters["genes"]
    broad = set(out.obs["scvec_label_broad"].astype(str))
    assert "pancreatic A cell" in broad and set(out.obs["scvec_cl_id"].astype(str)) - {""} <= {
        i for i in out.obs["scvec_cl_id"].astype(str) if i.startswith("CL:")
    }


@pytest.mark.slow
def test_evidence_names_the_genes_that_make_the_types(folder: Path):
    found = scvec.query(folder / "store", folder / "new.h5ad", output=folder / "explained.h5ad")
    with Explainer.of_file(folder / "store", folder / "explained.h5ad") as explainer:
        top = {}
        for label in found.counts():
            evidence = explainer.label(label, n_genes=10)
            assert evidence.completeness_error < 1e-4
            top[label] = [g.symbol for g in evidence.genes]
    markers = {"beta": "INS", "alpha": "GCG", "delta": "SST", "gamma": "PPY", "ductal": "KRT19"}
    for label, gene in markers.items():
        assert gene in top[label][:5], (label, top[label])
    # A dozen enzymes tell acinar cells: these two are not the foremost of them.
    assert {"PRSS1", "CPA1"} & set(top["acinar"])
    assert set(top["acinar"][:5]) <= set("CELA2A CELA3A CELA3B SYCN CLPS CPA1 CPA2 CTRB1 CTRC PRSS1".split())


def test_tables_hold_one_row_per_cell(folder: Path):
    import pandas as pd

    found = scvec.query(folder / "store", folder / "new.h5ad", output=folder / "out.csv")
    table = pd.read_csv(folder / "out.csv", index_col=0)
    assert list(table.index) == list(found.cells) and list(table["scvec_label"]) == list(found.label)
    scvec.query(folder / "store", folder / "new.h5ad", output=folder / "out.parquet")
    assert list(pd.read_parquet(folder / "out.parquet")["scvec_label"]) == list(found.label)


def test_a_cell_gets_one_answer_alone_in_any_chunk_and_in_any_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from scvec.ingest.cells.source import CellSource

    cells = anndata.read_h5ad(folder / "new.h5ad")
    whole = scvec.query(folder / "store", cells)
    rng = np.random.default_rng(0)
    order = rng.permutation(cells.n_obs)
    shuffled = scvec.query(folder / "store", cells[order].copy())
    np.testing.assert_allclose(shuffled.vectors, whole.vectors[order], atol=1e-5)
    assert (shuffled.label == whole.label[order]).all() and (shuffled.status == whole.status[order]).all()
    np.testing.assert_allclose(shuffled.proba, whole.proba[order], atol=1e-5)
    monkeypatch.setattr(CellSource, "chunk_size", 7)
    chunked = scvec.query(folder / "store", cells)
    np.testing.assert_allclose(chunked.vectors, whole.vectors, atol=1e-5)
    assert (chunked.label == whole.label).all()
    assert (chunked.neighbors.indices == whole.neighbors.indices).all()
    for row in (0, 17, cells.n_obs - 1):
        alone = scvec.query(folder / "store", cells[[row]].copy())
        np.testing.assert_allclose(alone.vectors[0], whole.vectors[row], atol=1e-5)
        assert alone.label[0] == whole.label[row] and alone.status[0] == whole.status[row]


@pytest.mark.slow
def test_two_runs_with_one_seed_give_one_manifest(folder: Path, tiny_adata: Callable[..., anndata.AnnData]):
    from scvec.stores.store.store import Store

    tiny_adata(60).write_h5ad(folder / "tiny.h5ad")

    def run(store: str, seed: int) -> Any:
        options = {**OPTIONS, "batch_key": "donor", "seed": seed}
        scvec.ingest_cells(folder / store, [folder / "tiny.h5ad"], name="tiny", **options)
        return Store(folder / store).generation.manifest

    def lasting(manifest: Any) -> dict[str, Any]:
        return {key: value for key, value in json.loads(manifest.to_bytes()).items() if key != "run"}

    first = run("first", 3)
    assert lasting(run("second", 3)) == lasting(first)
    assert str(folder) not in json.dumps(lasting(first))
    # The cell space is solved for: a seed draws nothing of it.
    assert run("second", 4).references["tiny"].vectors == first.references["tiny"].vectors


def test_verify_accepts_an_intact_store_and_finds_damage(folder: Path, tmp_path: Path):
    report = scvec.verify(folder / "store")
    assert report.ok and report.encoder_parity["donors"] < 1e-5
    copy = shutil.copytree(folder / "store", tmp_path / "copy")
    victim = next((copy / "files").glob("donors.model-*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    assert not scvec.verify(copy).ok


def test_where_uses_only_matching_cells(folder: Path):
    found = scvec.query(
        folder / "store", folder / "new.h5ad", where="donor = 'human1' AND cell_type != 'beta'"
    )
    obs = anndata.read_h5ad(folder / "ref.h5ad").obs
    asked = np.unique(found.neighbors.indices)
    assert (obs["donor"].to_numpy()[asked] == "human1").all()
    assert "beta" not in set(found.label) | set(found.label_head) | set(found.label_knn)


@pytest.mark.parametrize("method", ["knn", "head"])
def test_each_member_can_annotate_alone(folder: Path, method: str):
    truth = anndata.read_h5ad(folder / "new.h5ad").obs["cell_type"].to_numpy().astype(str)
    found = scvec.query(folder / "store", folder / "new.h5ad", method=method)
    assert accuracy(truth, found.label) > 0.9
    assert (found.label == getattr(found, f"label_{method}")).all()


def test_annotate_changes_the_object_or_a_copy(folder: Path):
    cells = anndata.read_h5ad(folder / "new.h5ad")[:50].copy()
    copied = scvec.annotate(cells, folder / "store", copy=True, key_added="mine")
    assert "mine_label" in copied.obs and not any(c.startswith("mine") for c in cells.obs.columns)
    assert scvec.annotate(cells, folder / "store") is None
    assert {"scvec_label", "scvec_confidence"} <= set(cells.obs.columns) and "X_scvec" in cells.obsm


def test_normalised_cells_get_the_answers_of_their_counts(folder: Path):
    cells = anndata.read_h5ad(folder / "new.h5ad")
    counts = scvec.query(folder / "store", cells)
    logged = cells.copy()
    totals = np.asarray(logged.X.sum(axis=1)).ravel()
    logged.X.data = np.log1p(logged.X.data / np.repeat(totals, np.diff(logged.X.indptr)) * 1e4)
    found = scvec.query(folder / "store", logged)
    np.testing.assert_allclose(found.vectors, counts.vectors, atol=1e-3)
    assert (found.label == counts.label).mean() > 0.999


def test_empty_and_shuffled_cells_are_never_confident(folder: Path):
    cells = anndata.read_h5ad(folder / "new.h5ad")[:200].copy()
    empty = cells.copy()
    empty.X = empty.X.copy()
    # a handful of counts each, as in an empty droplet
    rng = np.random.default_rng(0)
    empty.X.data = (rng.random(empty.X.nnz) < 0.005).astype(np.float32)
    empty.X.eliminate_zeros()
    found = scvec.query(folder / "store", empty)
    assert (found.status == "low_quality").mean() > 0.95


@pytest.mark.parametrize("encoder", ["weighted", "pca", "residual"])
@pytest.mark.slow
def test_other_encoders_do_the_whole_job(
    encoder: str, tiny_store: Path, tiny_adata: Callable[..., anndata.AnnData]
):
    scvec.ingest_cells(tiny_store, [tiny_adata(90)], name=encoder, encoder=encoder, **OPTIONS)
    new = tiny_adata(30, seed=1)
    found = scvec.query(tiny_store, new, reference=encoder)
    assert accuracy(new.obs["cell_type"].to_numpy().astype(str), found.label) > 0.9
    assert scvec.info(tiny_store, encoder).references[0].encoder == encoder
    assert found.parameters["encoder"] == encoder
    assert scvec.verify(tiny_store).ok


def test_small_and_odd_references_work_or_say_why_not(
    tiny_store: Path, tiny_adata: Callable[..., anndata.AnnData]
):
    cells = tiny_adata(60, classes=3)
    few = cells[:9].copy()
    few.obs["cell_type"] = ["alpha"] * 4 + ["beta"] * 4 + ["ductal"]  # one cell of a type
    scvec.ingest_cells(tiny_store, [few], name="few", **OPTIONS)
    found = scvec.query(tiny_store, cells, reference="few")
    assert any("reduced" in note for note in found.notes)
    assert found.neighbors.indices.shape == (60, 9)
    alone = cells[:3].copy()
    alone.obs["cell_type"] = ["alpha", "beta", "ductal"]
    report = scvec.ingest_cells(tiny_store, [alone], name="alone", **OPTIONS)
    assert any("single cell" in note for note in report.notes) and report.calibration["held_out"] == "none"
    found = scvec.query(tiny_store, cells, reference="alone", coverage=0.9)
    assert (found.novelty == 0).all() and np.isfinite(found.proba).all()


def test_unlabelled_cells_are_neighbours_without_a_vote(
    tiny_store: Path, tiny_adata: Callable[..., anndata.AnnData]
):
    cells = tiny_adata(90)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[:20, cells.obs.columns.get_loc("cell_type")] = None
    report = scvec.ingest_cells(tiny_store, [cells], name="part", **OPTIONS)
    assert sum(report.classes.values()) == 70 and report.n_cells == 90
    assert any("20 cells" in note and "label" in note for note in report.notes)
    assert len(scvec.query(tiny_store, tiny_adata(12, seed=2), reference="part")) == 12


def test_a_reference_of_other_types_is_doubted(tiny_store: Path, tiny_adata: Callable[..., anndata.AnnData]):
    """Every gene has the values of another one: the labels are chance, on cells that differ among them."""
    scvec.ingest_cells(tiny_store, [tiny_adata(120, 6)], name="right", **OPTIONS)
    query, wrong = tiny_adata(60, 6, seed=3), tiny_adata(60, 6, seed=3)
    wrong.X = wrong.X[:, np.random.default_rng(0).permutation(wrong.n_vars)]
    for cells, doubted in ((query, False), (wrong, True)):
        found = scvec.query(tiny_store, cells, reference="right", force=True)
        said = [note for note in found.notes if "may not fit the reference 'right'" in note]
        assert len(said) == doubted
        assert all(note.startswith("warning: ") for note in said)


def test_several_files_make_one_reference(tiny_store: Path, tiny_adata: Callable[..., anndata.AnnData]):
    parts = [tiny_adata(60, seed=0), tiny_adata(60, seed=1, genes=150)]
    report = scvec.ingest_cells(tiny_store, parts, name="both", **OPTIONS)
    assert report.n_cells == 120
    assert any("not in every file" in note for note in report.notes)


@pytest.mark.slow
def test_notes_tell_the_user_about_problems(tiny_store: Path, tiny_adata: Callable[..., anndata.AnnData]):
    cells = tiny_adata(60)
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"acinar": "cluster 7"})
    scvec.ingest_cells(tiny_store, [cells], name="told", **OPTIONS)
    again = scvec.ingest_cells(tiny_store, [cells], name="told", **OPTIONS)
    assert any("replaced the existing reference 'told'" in note for note in again.notes)
    assert any("of 3 labels are known to the Cell Ontology" in note for note in again.notes)
    few = tiny_adata(12, seed=1, genes=60)
    with pytest.warns(UserWarning, match="labels are less certain"):
        annotated = scvec.annotate(few, tiny_store, reference="told", copy=True)
    notes = list(annotated.uns["scvec"]["notes"])
    assert any("optimistic" in note for note in notes) and any("less certain" in note for note in notes)
    assert "12 cells annotated" in repr(scvec.query(tiny_store, few, reference="told"))
    with pytest.raises(InputError, match="must be an AnnData object"):
        scvec.annotate(tiny_store, few)

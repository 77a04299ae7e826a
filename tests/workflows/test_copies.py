"""Repeated cells: they are trained on once, appended once, and reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import scvec
from scvec.model.copies import HASH_COLUMN, Seen, cell_hashes, gene_keys, repeated
from scvec.stores.store.store import Store
from scvec.stores.store.transaction import Transaction

OPTIONS: dict[str, Any] = {"label_key": "cell_type"}
GENES = [f"HGNC:{k}" for k in range(40)]


def as_log(counts: np.ndarray, total: float = 1e4) -> Any:
    return sp.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * total), dtype=np.float32)


@given(st.integers(0, 10**6), st.sampled_from([1e3, 1e4, 1e6]))
def test_a_hash_is_of_counts_and_genes_whatever_the_order_and_the_sum(seed: int, total: float) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3.0, (30, 40))
    counts[:, 0] = 1  # multiples of the smallest value are the counts
    hashes = cell_hashes(as_log(counts), gene_keys(GENES))
    assert len(set(hashes.tolist())) == 30 and (hashes != 0).all()
    order = rng.permutation(40)
    other = cell_hashes(as_log(counts[:, order], total), gene_keys([GENES[k] for k in order]))
    np.testing.assert_array_equal(other, hashes)
    counts[4, 5] += 1
    assert (np.flatnonzero(cell_hashes(as_log(counts), gene_keys(GENES)) != hashes) == [4]).all()


def test_cells_of_few_genes_are_copies_of_none() -> None:
    counts = np.zeros((3, 40), dtype=int)
    counts[:, :9] = 1
    hashes = cell_hashes(sp.csr_matrix(counts, dtype=np.float32), gene_keys(GENES))
    assert hashes.tolist() == [0, 0, 0] and not repeated(hashes).any()
    assert cell_hashes(sp.csr_matrix((2, 40), dtype=np.float32), gene_keys(GENES)).tolist() == [0, 0]
    counts[:, 9] = 1
    hashes = cell_hashes(sp.csr_matrix(counts, dtype=np.float32), gene_keys(GENES))
    assert repeated(hashes).tolist() == [False, True, True]
    assert repeated(hashes, np.array([0, 1, 0])).tolist() == [False, False, True]


def test_chunks_are_told_from_those_before() -> None:
    seen = Seen(np.array([7]))
    assert seen.first(np.array([7, 1, 1, 0, 0])).tolist() == [False, True, False, True, True]
    among = np.array([False, True, True])
    assert seen.first(np.array([3, 1, 3]), among).tolist() == [False, False, True]


def itself(adata: Any) -> Any:
    return adata


def shuffled(adata: Any) -> Any:
    return adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()


def renamed(adata: Any) -> Any:
    other = adata.copy()
    other.obs_names = [f"again-{k}" for k in range(other.n_obs)]
    return other


def normalised(adata: Any) -> Any:
    other = adata.copy()
    counts = np.asarray(other.X.todense() if sp.issparse(other.X) else other.X, dtype=np.float64)
    other.X = sp.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4), dtype=np.float32)
    return other


def part(adata: Any) -> Any:
    return adata[::2].copy()


SHAPES = {
    "itself": lambda a: a,
    "shuffled": shuffled,
    "renamed": renamed,
    "normalised": normalised,
    "part": part,
}


@pytest.fixture(scope="module")
def cells(tiny_adata: Callable[..., Any]) -> Any:
    return tiny_adata(90, classes=3, seed=2)


@pytest.fixture(scope="module")
def once(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path], cells: Any
) -> tuple[Path, Any]:
    path = new_store(tmp_path_factory.mktemp("copies") / "store")
    return path, scvec.ingest_cells(path, [cells], name="once", **OPTIONS)


def warnings_of(report: Any) -> list[str]:
    return [note for note in report.notes if "copies of an earlier cell" in note]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_given_twice_gives_the_same_model_as_once(
    once: tuple[Path, Any], cells: Any, tiny_adata: Callable[..., Any], shape: str
) -> None:
    store, alone = once
    other = SHAPES[shape](cells)
    report = scvec.ingest_cells(store, [cells, other], name=shape, **OPTIONS)
    assert report.n_cells == 90 + other.n_obs
    assert report.calibration == {**alone.calibration} and not warnings_of(alone)
    assert f"{other.n_obs} of {90 + other.n_obs} cells" in warnings_of(report)[0]
    new = tiny_adata(40, classes=4, seed=9)
    a, b = (scvec.query(store, new, reference=name, method="head") for name in ("once", shape))
    np.testing.assert_allclose(a.proba, b.proba, atol=1e-5)
    np.testing.assert_array_equal(a.status, b.status)


def test_donors_stay_whole_and_copies_under_other_labels_are_kept(once: tuple[Path, Any], cells: Any) -> None:
    store, _ = once
    other = cells.copy()
    labels = other.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[:10] = "other"
    other.obs["cell_type"] = labels
    report = scvec.ingest_cells(store, [cells, other], name="labels", batch_key="donor", **OPTIONS)
    assert "(10 under another label)" in warnings_of(report)[0]
    stored = Store(store).reference("labels")
    rows, folds = (stored.tensors[f"sample.{name}"] for name in ("rows", "folds"))
    assert len(rows) == 100
    hashes = stored.obs[HASH_COLUMN].to_numpy()[rows]
    assert pd.Series(folds).groupby(hashes).nunique().max() == 1


@pytest.mark.parametrize("kind", ["bool", "text", "two files"])
def test_cells_of_other_data_sets_are_left_out(
    once: tuple[Path, Any], cells: Any, tiny_adata: Callable[..., Any], kind: str
) -> None:
    store, _ = once
    more = tiny_adata(60, classes=3, seed=5)
    for adata, said in ((more, False), (cells := cells.copy(), True)):
        adata.obs["is_primary_data"] = said
    given = [more, cells] if kind == "two files" else [anndata.concat([more, cells])]
    if kind == "text":
        given[0].obs["is_primary_data"] = pd.Categorical(given[0].obs["is_primary_data"].astype(str))
    report = scvec.ingest_cells(store, given, name="primary", **OPTIONS)
    assert report.n_cells == 90 and any("60 cells" in n and "is_primary_data" in n for n in report.notes)
    stored = Store(store).reference("primary")
    assert list(stored.obs.index) == list(cells.obs_names) and scvec.verify(store).ok
    expected = Store(store).reference("once")
    np.testing.assert_allclose(stored.vectors, expected.vectors, atol=1e-5)
    np.testing.assert_array_equal(stored.tensors["sample.rows"], expected.tensors["sample.rows"])
    assert report.calibration["accuracy"] == once[1].calibration["accuracy"]


def test_where_all_cells_are_those_of_other_data_sets_they_are_kept(
    once: tuple[Path, Any], cells: Any
) -> None:
    secondary = cells.copy()
    secondary.obs["is_primary_data"] = False
    report = scvec.ingest_cells(once[0], [secondary], name="secondary", **OPTIONS)
    assert report.n_cells == 90 and any("is_primary_data" in note for note in report.notes)
    assert report.calibration == once[1].calibration


@pytest.mark.parametrize("shape", SHAPES)
def test_cells_of_the_reference_are_not_appended_again(
    once: tuple[Path, Any], cells: Any, tiny_adata: Callable[..., Any], tmp_path: Path, shape: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(once[0], store)
    version = Store(store).generation.number
    other = SHAPES[shape](cells)
    report = scvec.append_cells(store, [other], name="once", **OPTIONS)
    assert (report.n_added, report.n_known, report.n_cells) == (0, other.n_obs, 90)
    assert Store(store).generation.number == version and report.generation == str(version)
    more = anndata.concat([other, tiny_adata(30, classes=3, seed=7)])
    report = scvec.append_cells(store, [more, more], name="once", **OPTIONS)
    assert (report.n_added, report.n_known, report.n_cells) == (30, 2 * other.n_obs + 30, 120)
    assert Store(store).reference("once").n == 120 and scvec.verify(store).ok
    again = scvec.append_cells(store, [more], name="once", **OPTIONS)
    assert (again.n_added, again.n_known, again.n_cells) == (0, other.n_obs + 30, 120)


def test_cells_of_the_same_names_and_other_genes_are_warned_of(
    cells: Any, tmp_path: Path, new_store: Callable[[Path], Path], tiny_adata: Callable[..., Any]
) -> None:
    store = new_store(tmp_path / "store")
    named = cells.copy()
    named.obs_names = [f"{'ACGT'[k % 4] * 16}-{k}" for k in range(named.n_obs)]
    scvec.ingest_cells(store, [named], name="once", **OPTIONS)
    fewer = named[:, : named.n_vars - 5].copy()
    report = scvec.append_cells(store, [fewer], name="once", **OPTIONS)
    assert any("90 of 90 appended cells have the names" in note for note in report.notes)
    other = tiny_adata(30, classes=3, seed=7)  # its names only count the cells
    scvec.append_cells(store, [other], name="once", **OPTIONS)
    report = scvec.append_cells(store, [tiny_adata(30, classes=3, seed=8)], name="once", **OPTIONS)
    assert report.n_added == 30 and not any("have the names" in note for note in report.notes)


def test_deleted_cells_can_be_appended_again_and_empty_ones_are_not_doubled(
    once: tuple[Path, Any], cells: Any, tmp_path: Path, new_store: Callable[[Path], Path]
) -> None:
    store = new_store(tmp_path / "store")
    some = cells.copy()
    some.X = sp.csr_matrix(some.X)
    some.X[3] = 0
    some.X.eliminate_zeros()
    scvec.ingest_cells(store, [some], name="once", **OPTIONS)
    assert scvec.append_cells(store, [some], name="once", **OPTIONS).n_added == 0
    scvec.drop_cells(store, "once", where="donor = 'donor2'")
    n = int((some.obs["donor"] == "donor2").sum())
    report = scvec.append_cells(store, [some], name="once", **OPTIONS)
    assert n - 1 <= report.n_added <= n and scvec.verify(store).ok


def test_a_kill_just_past_the_commit_doubles_nothing(
    once: tuple[Path, Any], tiny_adata: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, more = tmp_path / "store", tiny_adata(30, classes=3, seed=7)
    shutil.copytree(once[0], store)
    commit = Transaction.commit

    def dies(self: Transaction) -> Any:
        commit(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Transaction, "commit", dies)
        scvec.append_cells(store, [more], name="once", **OPTIONS)
    assert Store(store).reference("once").n == 120
    report = scvec.append_cells(store, [more], name="once", **OPTIONS)
    assert (report.n_added, report.n_known, report.n_cells) == (0, 30, 120)


def test_eval_warns_about_cells_of_the_reference(
    once: tuple[Path, Any], cells: Any, tiny_adata: Callable[..., Any]
) -> None:
    new = tiny_adata(30, classes=3, seed=7)
    for asked, n in (
        (cells, 90),
        (shuffled(part(cells)), 45),
        (anndata.concat([new, cells[:9]]), 9),
        (new, 0),
    ):
        report = scvec.evaluate(once[0], asked, reference="once", truth_key="cell_type")
        assert report.n_own == n == report.to_dict()["n_own"]
        assert any("reference contains" in note for note in report.notes) == bool(n)

"""Tests of cells that are appended to a reference or deleted from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scvec
from scvec.base.errors import InputError, StoreError
from scvec.stores.store.store import Store

OPTIONS: dict[str, Any] = {"label_key": "cell_type"}


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    path = new_store(tmp_path_factory.mktemp("grow") / "store")
    scvec.ingest_cells(path, [tiny_adata(60)], name="tiny", backbone="random:16", **OPTIONS)
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "store")
    return tmp_path / "store"


def test_new_cells_are_neighbours_and_the_old_ones_stay(store: Path, tiny_adata: Callable[..., Any]):
    before = Store(store).reference("tiny")
    old = np.asarray(before.vectors).copy()
    more = tiny_adata(30, seed=5)
    report = scvec.append_cells(store, [more], name="tiny", **OPTIONS)
    assert (report.n_added, report.n_cells) == (30, 90) and "30 cells appended" in report.lines()[0]
    assert any("neighbours include the new cells" in note for note in report.notes)
    after = Store(store).reference("tiny")
    assert after.n == after.index.n == 90
    np.testing.assert_array_equal(after.vectors[:60], old)
    assert list(after.obs.index[60:]) == list(more.obs_names)
    assert after.meta["counts"] == {"acinar": 30, "alpha": 30, "beta": 30}
    assert [a["n_cells"] for a in after.meta["appended"]] == [30]
    # An appended cell is its own nearest neighbour at distance 0, because it was encoded like a query.
    found = scvec.query(store, more, n_neighbors=1)
    np.testing.assert_array_equal(found.neighbors.indices[:, 0], np.arange(60, 90))
    assert found.neighbors.distances.max() < 1e-8
    np.testing.assert_array_equal(found.vectors, after.vectors[60:])
    assert scvec.verify(store).ok
    again = scvec.append_cells(store, [tiny_adata(6, seed=6)], name="tiny", **OPTIONS)
    assert again.n_cells == 96 and len(Store(store).reference("tiny").meta["appended"]) == 2


def test_what_was_trained_is_as_it_was(store: Path, tiny_adata: Callable[..., Any]):
    new = tiny_adata(12, seed=1)
    head = scvec.query(store, new, method="head")
    scvec.append_cells(store, [tiny_adata(30, seed=5)], name="tiny", **OPTIONS)
    np.testing.assert_array_equal(scvec.query(store, new, method="head").proba, head.proba)


def test_labels_that_were_not_learned(store: Path, tiny_adata: Callable[..., Any]):
    more = tiny_adata(40, classes=4, seed=5)
    with pytest.raises(InputError, match="'ductal'") as error:
        scvec.append_cells(store, [more], name="tiny", **OPTIONS)
    assert error.value.code == "label-not-learned" and "--label-map" in error.value.fix
    assert len(str(error.value).splitlines()) <= 3
    assert Store(store).reference("tiny").n == 60
    scvec.append_cells(store, [more], name="tiny", label_map={"ductal": ""}, **OPTIONS)
    codes = Store(store).reference("tiny").obs["_scvec_class"]
    assert (codes[60:] == -1).sum() == 10


def test_refused(store: Path, tiny_adata: Callable[..., Any]):
    for files, options, code in (
        ([tiny_adata(9)], {"name": "tinny", **OPTIONS}, "unknown-reference"),
        ([tiny_adata(9)], {"name": "tiny", "label_key": "type"}, "unknown-column"),
        ([], {"name": "tiny", **OPTIONS}, "usage"),
    ):
        with pytest.raises(InputError) as caught:
            scvec.append_cells(store, files, **options)
        assert caught.value.code == code


def test_dropped_cells_are_no_neighbours(store: Path, tiny_adata: Callable[..., Any]):
    old = Store(store).reference("tiny")
    keep = (old.obs["donor"] == "donor1").to_numpy()
    vectors = np.asarray(old.vectors)[keep]
    report = scvec.drop_cells(store, "tiny", where="donor = 'donor2'")
    assert (report.n_dropped, report.n_cells) == (30, 30) and "30 cells deleted" in report.lines()[0]
    new = Store(store).reference("tiny")
    np.testing.assert_array_equal(new.vectors, vectors)
    assert set(new.obs["donor"]) == {"donor1"} and new.index.n == 30
    found = scvec.query(store, tiny_adata(9, seed=1), n_neighbors=30).neighbors.indices
    assert found.max() < 30
    assert scvec.verify(store).ok
    del old, new  # an open version would not be deleted
    files = len(list((store / "files").iterdir()))
    scvec.compact(store)
    assert len(list((store / "files").iterdir())) < files


def test_dropping_a_label_and_all_probes(store: Path):
    report = scvec.drop_cells(store, "tiny", where="cell_type = 'beta'")
    assert any("no cells left" in note and "beta" in note for note in report.notes)
    scvec.drop_cells(store, "tiny", where="cell_type = 'alpha' OR donor = 'donor1'")
    assert scvec.verify(store).ok


@pytest.mark.parametrize("where", ["1 = 1", "donor = 'x'", "no_column = 1"], ids=["all", "none", "column"])
def test_not_dropped(store: Path, where: str):
    with pytest.raises(InputError):
        scvec.drop_cells(store, "tiny", where=where)
    assert Store(store).reference("tiny").n == 60


def test_the_command(store: Path, tmp_path: Path, tiny_adata: Callable[..., Any]):
    from click.testing import CliRunner

    from scvec.cli.main import cli

    tiny_adata(9, seed=7).write_h5ad(tmp_path / "more.h5ad")
    words = ["--store", str(store), "ingest", "cells", str(tmp_path / "more.h5ad"), "--name", "tiny"]
    words += ["--label-key", "cell_type", "--append"]
    refused = CliRunner().invoke(cli, [*words, "--encoder", "pca"])
    assert refused.exit_code == 2 and "--encoder cannot be used with --append" in refused.stderr
    assert CliRunner().invoke(cli, words).exit_code == 0
    dropped = CliRunner().invoke(
        cli, ["--store", str(store), "rm", "tiny", "--where", "donor = 'donor1'", "--yes"]
    )
    assert dropped.exit_code == 0 and "cells deleted" in dropped.stdout
    assert 0 < Store(store).reference("tiny").n < 69


def test_cells_of_hardly_any_gene_of_the_reference_are_refused(store: Path, tiny_adata: Callable[..., Any]):
    few = tiny_adata(6, seed=6)[:, :6].copy()
    with pytest.raises(InputError, match="only 6 of the") as error:
        scvec.append_cells(store, [few], name="tiny", **OPTIONS, force=False)
    assert "--force" in error.value.fix
    assert Store(store).reference("tiny").n == 60
    assert scvec.append_cells(store, [few], name="tiny", **OPTIONS, force=True).n_cells == 66


def test_cells_come_and_go_without_the_others_being_written(store: Path, tiny_adata: Callable[..., Any]):
    first = Store(store).generation.manifest.references["tiny"]
    scvec.append_cells(store, [tiny_adata(30, seed=5)], name="tiny", **OPTIONS)
    scvec.drop_cells(store, "tiny", where="donor = 'donor2' AND cell_type = 'alpha'")
    entry = Store(store).generation.manifest.references["tiny"]
    assert (entry.vectors, entry.index) == (first.vectors, first.index) and not entry.is_whole
    index = scvec.info(store, "tiny").references[0].details["index"]
    assert index == {
        "kind": "flat",
        "search": "exact",
        "appended": 30,
        "deleted": entry.n_deleted,
        "segments": 2,
    }
    assert entry.n_deleted == 90 - entry.n > 0


def test_compact_puts_all_together_and_changes_no_answer(store: Path, tiny_adata: Callable[..., Any]):
    new = tiny_adata(12, seed=1)
    scvec.append_cells(store, [tiny_adata(30, seed=5)], name="tiny", **OPTIONS)
    scvec.drop_cells(store, "tiny", where="donor = 'donor2' AND cell_type = 'alpha'")
    before, counts = scvec.query(store, new), Store(store).reference("tiny").meta["counts"]
    report = scvec.compact(store)
    assert any("'tiny' were merged" in note for note in report.notes)
    stored = Store(store).reference("tiny")
    assert stored.is_whole and stored.meta["counts"] == counts and scvec.verify(store).ok
    after = scvec.query(store, new)
    np.testing.assert_array_equal(before.neighbors.indices, after.neighbors.indices)
    np.testing.assert_array_equal(before.neighbors.distances, after.neighbors.distances)
    np.testing.assert_array_equal(before.proba, after.proba)
    assert scvec.compact(store).notes == []


def test_what_was_made_before_compact_is_of_the_same_reference(
    store: Path, tmp_path: Path, tiny_adata: Callable[..., Any]
):
    tiny_adata(12, seed=1).write_h5ad(tmp_path / "new.h5ad")
    out, exported = tmp_path / "out.h5ad", tmp_path / "cells.parquet"
    tiny_adata(30, seed=5).write_h5ad(tmp_path / "more.h5ad")
    scvec.append_cells(store, [tmp_path / "more.h5ad"], name="tiny", **OPTIONS)
    scvec.drop_cells(store, "tiny", where="donor = 'donor2' AND cell_type = 'alpha'")
    obs = Store(store).reference("tiny").obs
    assert ((obs["scvec_source"] == "more.h5ad").to_numpy() == (np.arange(len(obs)) >= 50)).all()
    cell = scvec.query(store, tmp_path / "new.h5ad", output=out).cells[0]
    scvec.export(store, "tiny", to="parquet", output=exported)
    scvec.compact(store)
    assert Store(store).reference("tiny").is_whole
    told = scvec.explain(store, out, cell=cell)
    assert {voter.dataset for voter in told.voters} <= set(obs["scvec_source"])
    assert scvec.import_vectors(store, exported).n_new == 0
    # With other cells it is another reference, also after the segments are merged.
    scvec.append_cells(store, [tiny_adata(6, seed=6)], name="tiny", **OPTIONS)
    scvec.compact(store)
    with pytest.raises(StoreError, match="another reference with this name") as caught:
        scvec.explain(store, out, cell=cell)
    assert caught.value.code == "annotation-outdated"
    with pytest.raises(InputError, match="'tiny'"):
        scvec.import_vectors(store, exported)


def test_many_new_cells_or_few_left_are_put_together_at_once(store: Path, tiny_adata: Callable[..., Any]):
    scvec.append_cells(store, [tiny_adata(61, seed=5)], name="tiny", **OPTIONS)
    assert Store(store).reference("tiny").is_whole
    scvec.drop_cells(store, "tiny", where="donor = 'donor2'")
    assert Store(store).reference("tiny").is_whole

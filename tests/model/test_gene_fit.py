"""Tests of cell spaces fitted to the genes of a query: computed once, cached atomically."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

import scvec
from scvec.model import gene_fit
from scvec.model.gene_fit import FITS, fit_name
from scvec.model.reference import ReferenceModel
from scvec.model.storage import load_model
from scvec.stores.store.store import Store

Cells = Callable[..., Any]


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, tiny_adata: Cells, new_store: Callable[[Path], Path]
) -> Path:
    path = new_store(tmp_path_factory.mktemp("fit") / "store")
    scvec.ingest_cells(path, [tiny_adata(60)], name="tiny", label_key="cell_type", batch_key="donor")
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "store")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of genes of each new fit."""
    made: list[int] = []
    fit = ReferenceModel.fit

    def counted(make_encoder: Any, sample: Any, measured: Any = None, **options: Any) -> ReferenceModel:
        made.append(sample.X.shape[1] if measured is None else int(measured.sum()))
        return fit(make_encoder, sample, measured, **options)

    monkeypatch.setattr(ReferenceModel, "fit", counted)
    return made


def panel(tiny_adata: Cells, n_genes: int = 110, n: int = 24) -> Any:
    return tiny_adata(n, seed=1, genes=n_genes)


def answer(found: Any) -> dict[str, bytes]:
    """The whole annotation, as bytes."""
    arrays = {
        name: np.ascontiguousarray(getattr(found, name)).tobytes()
        for name in ("proba", "vectors", "novelty", "confidence")
    }
    texts = {name: "\n".join(map(str, getattr(found, name))).encode() for name in ("label", "status")}
    neighbors = {"rows": found.neighbors.indices.tobytes(), "far": found.neighbors.distances.tobytes()}
    return {**arrays, **texts, **neighbors}


def kept(store: Path) -> list[Path]:
    return sorted((store / FITS).iterdir()) if (store / FITS).is_dir() else []


def test_all_genes_use_the_fit_of_the_ingest(store: Path, tiny_adata: Cells, fits: list[int]) -> None:
    found = scvec.query(store, tiny_adata(24, seed=1))
    assert found.parameters["fitted"] is False and fits == [] and kept(store) == []
    assert not any("fitted to" in note for note in found.notes)


def test_a_query_that_lacks_genes_gets_a_fit_of_its_own_once(
    store: Path, tiny_adata: Cells, fits: list[int]
) -> None:
    cells = panel(tiny_adata)
    first = scvec.query(store, cells)
    assert first.parameters["fitted"] is True and fits == [110]
    assert any("110 measured genes" in note for note in first.notes)
    assert "fit to genes" in first.seconds
    truth = cells.obs["cell_type"].to_numpy().astype(str)
    assert (first.label == truth).mean() > 0.9
    files = kept(store)
    assert [path.suffix for path in files] == [".safetensors"]
    content = files[0].read_bytes()
    again = scvec.query(store, cells)
    assert fits == [110]  # the second query used the cache
    assert answer(again) == answer(first)
    assert kept(store) == files and files[0].read_bytes() == content
    # Other cells with the same genes use the same fit. Other genes do not.
    scvec.query(store, panel(tiny_adata, n=9))
    assert fits == [110]
    scvec.query(store, panel(tiny_adata, 90))
    assert fits == [110, 90] and len(kept(store)) == 2
    assert scvec.verify(store).ok


def test_a_cell_has_one_answer_alone_and_among_others(store: Path, tiny_adata: Cells) -> None:
    cells = panel(tiny_adata)
    whole = scvec.query(store, cells, novelty="absolute")
    alone = scvec.query(store, cells[5:6].copy(), novelty="absolute")
    assert alone.parameters["fitted"] is True and alone.label[0] == whole.label[5]
    np.testing.assert_allclose(alone.proba[0], whole.proba[5], atol=1e-5)
    np.testing.assert_allclose(alone.novelty[0], whole.novelty[5], atol=1e-4)


def test_neighbours_are_rows_of_the_reference(store: Path, tiny_adata: Cells) -> None:
    # Cells of the reference itself, with fewer genes, are their own nearest neighbours.
    same = tiny_adata(60, genes=110)
    found = scvec.query(store, same, n_neighbors=1)
    assert found.parameters["fitted"] is True
    np.testing.assert_array_equal(found.neighbors.indices[:, 0], np.arange(60))
    labels = Store(store).reference("tiny").obs["cell_type"].astype(str).to_numpy()
    assert (found.label == labels).mean() > 0.9


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "a folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["empty", "cut", "flipped"])
def test_a_damaged_fit_is_made_again(store: Path, tiny_adata: Cells, fits: list[int], how: str) -> None:
    first = answer(scvec.query(store, panel(tiny_adata)))
    (path,) = kept(store)
    content = path.read_bytes()
    spoil(path, how)
    assert answer(scvec.query(store, panel(tiny_adata))) == first
    assert fits == [110, 110]
    # The same cells and genes give the same bytes, and the new file replaces the damaged one.
    assert kept(store) == [path] and path.read_bytes() == content
    assert answer(scvec.query(store, panel(tiny_adata))) == first and fits == [110, 110]


def test_a_folder_in_the_place_of_a_fit_does_no_harm(store: Path, tiny_adata: Cells) -> None:
    first = answer(scvec.query(store, panel(tiny_adata)))
    spoil(kept(store)[0], "a folder")
    assert answer(scvec.query(store, panel(tiny_adata))) == first
    assert [path.suffix for path in kept(store)] == [".safetensors"]


def test_a_fit_under_the_name_of_another_is_not_taken(
    store: Path, tiny_adata: Cells, fits: list[int]
) -> None:
    first = answer(scvec.query(store, panel(tiny_adata)))
    (path,) = kept(store)
    scvec.query(store, panel(tiny_adata, 90))
    other = next(p for p in kept(store) if p != path)
    path.write_bytes(other.read_bytes())
    assert answer(scvec.query(store, panel(tiny_adata))) == first and fits == [110, 90, 110]


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_what_cannot_be_put_in_place_leaves_nothing(
    store: Path, tiny_adata: Cells, fits: list[int], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(gene_fit.os, "replace", fails)
        if isinstance(error, OSError):
            assert scvec.query(store, panel(tiny_adata)).parameters["fitted"] is True
        else:
            with pytest.raises(KeyboardInterrupt):
                scvec.query(store, panel(tiny_adata))
    assert kept(store) == []
    scvec.query(store, panel(tiny_adata))
    assert fits == [110, 110] and len(kept(store)) == 1


KILLED = """
import os, sys, anndata, scvec
from scvec.model import gene_fit
gene_fit.os.replace = lambda *_: os._exit(9)
scvec.query(sys.argv[1], anndata.read_h5ad(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_process_killed_as_it_writes_leaves_nothing_that_is_read(
    store: Path, tiny_adata: Cells, tmp_path: Path, fits: list[int]
) -> None:
    cells = panel(tiny_adata)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(store), str(tmp_path / "cells.h5ad")], check=False, timeout=120
    )
    assert done.returncode == 9
    assert [path.suffix for path in kept(store)] == [".tmp"]  # such a file is not a fit
    (store / FITS / "older.tmp").write_bytes(b"half")
    first = scvec.query(store, cells)
    assert fits == [110] and sum(path.suffix == ".safetensors" for path in kept(store)) == 1
    assert answer(scvec.query(store, cells)) == answer(first) and fits == [110]
    scvec.compact(store)
    assert kept(store) == []


def test_a_link_is_not_followed(store: Path, tiny_adata: Cells, tmp_path: Path, fits: list[int]) -> None:
    first = answer(scvec.query(store, panel(tiny_adata)))
    (path,) = kept(store)
    outside = tmp_path / path.name
    path.rename(outside)
    content = outside.read_bytes()
    path.symlink_to(outside)
    assert answer(scvec.query(store, panel(tiny_adata))) == first and fits == [110, 110]
    assert not path.is_symlink() and path.read_bytes() == content
    # A link instead of the folder is not followed: nothing behind it is read, written or deleted.
    shutil.rmtree(store / FITS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outside.rename(elsewhere / outside.name)
    (elsewhere / "thesis.txt").write_text("mine")
    (store / FITS).symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    assert answer(scvec.query(store, panel(tiny_adata))) == first and fits == [110, 110, 110]
    scvec.query(store, panel(tiny_adata, 90))
    scvec.compact(store)
    assert sorted(elsewhere.iterdir()) == before


def test_a_store_that_cannot_be_written_works_without(
    store: Path, tiny_adata: Cells, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(scvec.query(store, panel(tiny_adata)))
    shutil.rmtree(store / FITS)
    (store / FITS).write_text("in the way")  # also stops root, which ignores permissions
    for n in (2, 3):
        assert answer(scvec.query(store, panel(tiny_adata))) == expected and len(fits) == n
    (store / FITS).unlink()

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert answer(scvec.query(store, panel(tiny_adata))) == expected and len(fits) == 4
    assert not (store / FITS).exists()


def test_compact_empties_it(store: Path, tiny_adata: Cells, fits: list[int]) -> None:
    first = answer(scvec.query(store, panel(tiny_adata)))
    report = scvec.compact(store)
    assert kept(store) == [] and report.after_bytes < report.before_bytes
    assert answer(scvec.query(store, panel(tiny_adata))) == first and fits == [110, 110]


def test_two_readers_at_once_get_the_same_bytes(
    store: Path, tiny_adata: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both processes find no fit, compute it, and cache it.
    together, save = Barrier(2, timeout=60), gene_fit.keep_tensors

    def saved(*given: Any) -> None:
        together.wait()
        save(*given)

    with monkeypatch.context() as patch:
        patch.setattr(gene_fit, "keep_tensors", saved)
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: answer(scvec.query(store, panel(tiny_adata))), range(2)))
    assert found[0] == found[1]
    assert [path.suffix for path in kept(store)] == [".safetensors"]
    assert answer(scvec.query(store, panel(tiny_adata))) == found[0]


def test_the_fits_unused_for_longest_make_room(
    store: Path, tiny_adata: Cells, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    of: dict[int, Path] = {}
    for age, n in ((300, 110), (200, 100)):
        scvec.query(store, panel(tiny_adata, n))
        of[n] = next(path for path in kept(store) if path not in of.values())
        then = of[n].stat().st_mtime - age
        os.utime(of[n], (then, then))
    scvec.query(store, panel(tiny_adata, 110))  # now it is the most recently used fit
    size = sum(path.stat().st_size for path in of.values())
    monkeypatch.setattr(gene_fit, "MAX_BYTES", size)
    scvec.query(store, panel(tiny_adata, 90))
    left = kept(store)
    assert of[100] not in left and of[110] in left and len(left) == 2
    assert sum(path.stat().st_size for path in left) <= size
    assert fits == [110, 100, 90]
    # A fit larger than the limit is not cached, and the result is the same.
    monkeypatch.setattr(gene_fit, "MAX_BYTES", 100)
    assert scvec.query(store, panel(tiny_adata, 80)).parameters["fitted"] is True
    assert kept(store) == []


def test_the_name_goes_by_the_training_cells_and_the_genes(store: Path, tiny_adata: Cells) -> None:
    stored = Store(store).reference("tiny")
    measured = np.ones(len(stored.meta["all_genes"]), bool)
    some = measured.copy()
    some[3] = False
    name = fit_name(stored, measured)
    assert name == fit_name(Store(store).reference("tiny"), measured) != fit_name(stored, some)
    scvec.ingest_cells(store, [tiny_adata(60, seed=3)], name="other", label_key="cell_type")
    assert fit_name(Store(store).reference("other"), measured) != name


def test_a_fit_comes_back_to_the_bit(store: Path, tiny_adata: Cells) -> None:
    model = load_model(Store(store).reference("tiny"))
    tensors = gene_fit.fit_state(model)
    again = gene_fit.fit_state(gene_fit.fit_of({name: np.array(v) for name, v in tensors.items()}))
    assert {n: v.tobytes() for n, v in again.items()} == {n: v.tobytes() for n, v in tensors.items()}


def test_other_encoders_have_one_fit(store: Path, tiny_adata: Cells, fits: list[int]) -> None:
    scvec.ingest_cells(store, [tiny_adata(60)], name="pca", label_key="cell_type", encoder="pca")
    fits.clear()
    found = scvec.query(store, panel(tiny_adata), reference="pca")
    assert found.parameters["fitted"] is False and fits == [] and kept(store) == []


def test_a_report_draws_reference_and_query_in_one_space(store: Path, tiny_adata: Cells) -> None:
    from scvec.model.explanation import Explainer

    cells = panel(tiny_adata)
    found = scvec.query(store, cells, n_neighbors=1)
    assert found.parameters["fitted"]
    with Explainer.of_annotation(found) as explainer:
        rows, vectors = explainer.reference_vectors
    # The nearest of these vectors is the neighbour of the query, at the same distance.
    squares = ((found.vectors[:, None, :] - vectors[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(rows[squares.argmin(axis=1)], found.neighbors.indices[:, 0])
    np.testing.assert_allclose(squares.min(axis=1), found.neighbors.distances[:, 0], atol=1e-5)
    assert not np.allclose(
        vectors, np.asarray(Store(store).reference(found.parameters["reference"]).vectors)[rows]
    )

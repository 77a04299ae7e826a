"""Tests of references with an approximate index: ingest, reports, and queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scvec
from scvec.base.errors import InputError
from scvec.stores.store.store import Store

# An approximate index needs long vectors. The default encoder gives two dimensions here.
OPTIONS: dict[str, Any] = {
    "label_key": "cell_type",
    "batch_key": "donor",
    "backbone": "random:16",
    "encoder": "adapted",
}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> tuple[Path, Any, Any]:
    path = new_store(tmp_path_factory.mktemp("index") / "store")
    cells = tiny_adata(1200)
    report = scvec.ingest_cells(path, [cells], name="near", index="ivf", recall=0.8, **OPTIONS)
    return path, cells, report


def test_notes_describe_the_index(made: tuple[Path, Any, Any]):
    path, _, report = made
    assert any("approximate" in note for note in report.notes)
    facts = scvec.info(path, "near").references[0].details["index"]
    assert facts["kind"] == "ivf" and facts["target"] == 0.8
    assert facts["recall"]["at_15"] > 0.75 and facts["n_queries"] == 500
    assert "unseen_15" in facts["recall"] and facts["n_batches"] >= 2  # whole donors were left out
    assert any("unseen batches" in note for note in report.notes)
    json.dumps(facts)
    assert "recall at 15" in "\n".join(scvec.info(path, "near").lines())
    assert scvec.verify(path).ok


def test_exact_is_what_a_flat_index_finds(made: tuple[Path, Any, Any], tiny_adata: Callable[..., Any]):
    path, _, _ = made
    new = tiny_adata(40, seed=1)
    stored = Store(path).reference("near")
    exact = scvec.query(path, new, exact=True)
    vectors = np.asarray(stored.vectors)
    brute = ((vectors[None].astype(float) - exact.vectors[:, None]) ** 2).sum(axis=2)
    wanted = np.argsort(brute, axis=1, kind="stable")[:, :15]
    np.testing.assert_array_equal(exact.neighbors.indices, wanted)
    high, low = (scvec.query(path, new, recall=r).neighbors.indices for r in (0.99, 0.3))
    share = [np.mean([np.isin(w, f).mean() for w, f in zip(wanted, x, strict=True)]) for x in (low, high)]
    assert share[0] < share[1] and share[1] > 0.95
    assert (np.asarray(exact.label) == np.asarray(scvec.query(path, new).label)).mean() > 0.9


def test_a_cell_alone_gets_the_neighbours_it_gets_among_others(
    made: tuple[Path, Any, Any], tiny_adata: Callable[..., Any]
):
    path, _, _ = made
    new = tiny_adata(30, seed=2)
    whole = scvec.query(path, new)
    alone = scvec.query(path, new[7:8].copy())
    np.testing.assert_array_equal(alone.neighbors.indices[0], whole.neighbors.indices[7])


def test_a_filter_comes_before_the_nearest(made: tuple[Path, Any, Any], tiny_adata: Callable[..., Any]):
    path, cells, _ = made
    found = scvec.query(path, tiny_adata(12, seed=1), where="donor = 'donor2'").neighbors.indices
    assert found.shape == (12, 15) and (cells.obs["donor"].to_numpy()[found] == "donor2").all()


@pytest.mark.parametrize(
    ("options", "code"),
    [({"index": "hnsw"}, "unknown-choice"), ({"recall": 1.0}, "option-out-of-range")],
    ids=["unknown", "recall"],
)
def test_refused(options: dict[str, Any], code: str, tmp_path: Path, tiny_adata: Callable[..., Any]):
    with pytest.raises(InputError) as caught:
        scvec.ingest_cells(tmp_path / "s", [tiny_adata(60)], name="x", **{**OPTIONS, **options})
    assert caught.value.code == code


def test_short_vectors_are_searched_exactly(made: tuple[Path, Any, Any]):
    path, cells, _ = made
    options = {**OPTIONS, "encoder": "discriminant"}
    report = scvec.ingest_cells(path, [cells], name="short", index="ivf", **options)
    assert any("too few numbers in a cell vector (2)" in note for note in report.notes)
    assert not any("too few cells" in note for note in report.notes)
    assert scvec.info(path, "short").references[0].details["index"] == {"kind": "flat", "search": "exact"}


def test_few_cells_are_searched_exactly(made: tuple[Path, Any, Any], tiny_adata: Callable[..., Any]):
    path, _, _ = made
    report = scvec.ingest_cells(path, [tiny_adata(60)], name="few", index="ivf", **OPTIONS)
    assert any("too few cells" in note for note in report.notes)
    assert scvec.info(path, "few").references[0].details["index"] == {"kind": "flat", "search": "exact"}
    with pytest.raises(InputError) as caught:
        scvec.query(path, tiny_adata(6, seed=1), reference="few", recall=1.2)
    assert (caught.value.code, caught.value.where) == ("option-out-of-range", "--recall")

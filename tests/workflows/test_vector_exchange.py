"""Tests of export and import of vectors: unchanged vectors return, others are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scvec
from scvec.base.errors import InputError, ResourceError
from scvec.stores.store.store import Store
from scvec.workflows.export import read_vectors, write_vectors

FORMATS = ("parquet", "h5ad")
OPTIONS: dict[str, Any] = {"label_key": "cell_type", "backbone": "random:16", "encoder": "adapted"}


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    path = new_store(tmp_path_factory.mktemp("exchange") / "store")
    cells = tiny_adata(60)
    cells.obs["n.genes"] = np.arange(60)
    cells.obs["vector"] = "a name of ours"
    scvec.ingest_cells(path, [cells], name="tiny", **OPTIONS)
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "store")
    return tmp_path / "store"


def changed(path: Path, to: str, change: Callable[[pd.DataFrame, Any, dict[str, Any]], Any]) -> Path:
    """Write a file again with changed rows, vectors and tags, as another program might."""
    found = read_vectors(path)
    rows, vectors, tags = found.rows.copy(), found.vectors.copy(), dict(found.tags)
    tags.pop("columns")
    rows, vectors, tags = change(rows, vectors, tags) or (rows, vectors, tags)
    other = path.with_name(f"other{path.suffix}")
    write_vectors(other, to, rows, vectors, tags)
    return other


@pytest.mark.parametrize("to", FORMATS)
def test_cells_there_and_back(store: Path, tmp_path: Path, to: str):
    out = tmp_path / f"tiny.{to}"
    report = scvec.export(store, "tiny", to=to, output=out)
    assert (report.kind, report.n_cells) == ("cells", 60) and report.size_bytes > 1000
    stored = Store(store).reference("tiny")
    found = read_vectors(out)
    np.testing.assert_array_equal(found.vectors, stored.vectors)
    assert list(found.rows["cell"]) == list(stored.obs.index)
    assert list(found.rows["scvec_class"]) == list(stored.obs["cell_type"])
    assert list(found.rows["n.genes"]) == list(range(60)) and "vector" in found.rows
    assert found.tags["space"] == stored.meta["space"]["fingerprint"]
    before = Store(store).generation.number
    again = scvec.import_vectors(store, out)
    assert (again.kind, again.name, again.n_rows, again.n_new, again.columns) == ("cells", "tiny", 60, 0, [])
    fresh = Store(store).reference("tiny")
    assert fresh.fingerprint == stored.fingerprint or Store(store).generation.number == before + 1
    pd.testing.assert_series_equal(
        fresh.obs["n.genes"].astype(int), stored.obs["n.genes"].astype(int), check_names=False
    )
    assert scvec.verify(store).ok


@pytest.mark.parametrize("to", FORMATS)
def test_genes_go_to_another_store(store: Path, tmp_path: Path, to: str):
    (fingerprint,) = Store(store).spaces()
    out = tmp_path / f"genes.{to}"
    report = scvec.export(store, space="random:16", to=to, output=out)
    assert report.kind == "genes" and f"space {fingerprint}" in report.lines()[0]
    taken = scvec.import_vectors(tmp_path / "new", out)
    old, new = Store(store).space(fingerprint), Store(tmp_path / "new").space(fingerprint)
    assert taken.n_new == taken.n_rows == old.n
    np.testing.assert_array_equal(new.vectors, old.vectors)
    pd.testing.assert_frame_equal(new.genes.astype(str), old.genes.astype(str), check_dtype=False)
    assert scvec.import_vectors(tmp_path / "new", out).n_new == 0
    assert scvec.verify(tmp_path / "new").ok


@pytest.mark.parametrize("to", FORMATS)
def test_labels_and_columns_come_back_in_any_order(store: Path, tmp_path: Path, to: str):
    out = tmp_path / f"tiny.{to}"
    scvec.export(store, "tiny", to=to, output=out)

    def edit(rows: pd.DataFrame, vectors: Any, tags: dict[str, Any]) -> Any:
        rows["scvec_class"] = rows["scvec_class"].astype(object)
        rows.loc[0, "scvec_class"], rows.loc[1, "scvec_class"] = "beta", ""
        rows["cluster"] = [f"c{i % 2}" for i in range(60)]
        order = np.random.default_rng(0).permutation(60)
        return rows.iloc[order].reset_index(drop=True), vectors[order], tags

    report = scvec.import_vectors(store, changed(out, to, edit))
    assert (
        report.n_new == 2 and report.columns == ["cluster"] and "2 cells have new labels" in report.notes[0]
    )
    stored = Store(store).reference("tiny")
    classes = [*stored.meta["classes"], ""]
    assert [classes[c] for c in stored.obs["_scvec_class"][:3]] == ["beta", "", "acinar"]
    assert (
        stored.meta["counts"] == {"beta": 21, "acinar": 20, "alpha": 19}
        or sum(stored.meta["counts"].values()) == 59
    )
    assert list(stored.obs["cluster"][:2]) == ["c0", "c1"]
    found = scvec.search_cells(store, like="cell0-3", reference="tiny", where="cluster = 'c0'", k=3)
    assert {hit.obs["cluster"] for hit in found.hits} == {"c0"}


def spoil(name: str) -> Callable[..., Any]:
    def drop(rows: Any, vectors: Any, tags: Any) -> Any:
        return rows.iloc[1:].reset_index(drop=True), vectors[1:], tags

    def twice(rows: Any, vectors: Any, tags: Any) -> Any:
        rows.loc[1, "scvec_row"] = 0

    def outside(rows: Any, vectors: Any, tags: Any) -> Any:
        rows.loc[1, "scvec_row"] = 60

    def text(rows: Any, vectors: Any, tags: Any) -> Any:
        rows["scvec_row"] = "x"

    def renamed(rows: Any, vectors: Any, tags: Any) -> Any:
        rows.loc[1, "cell"] = "other"

    def moved(rows: Any, vectors: Any, tags: Any) -> Any:
        vectors[3, 2] += 0.01

    def nan(rows: Any, vectors: Any, tags: Any) -> Any:
        vectors[3, 2] = np.nan

    def short(rows: Any, vectors: Any, tags: Any) -> Any:
        return rows, np.ascontiguousarray(vectors[:, :-1]), tags

    def label(rows: Any, vectors: Any, tags: Any) -> Any:
        rows.loc[0, "scvec_class"] = "betta"

    def lost(rows: Any, vectors: Any, tags: Any) -> Any:
        return rows.drop(columns=["scvec_class"]), vectors, tags

    def space(rows: Any, vectors: Any, tags: Any) -> Any:
        tags["space"] = "0" * 16

    def other(rows: Any, vectors: Any, tags: Any) -> Any:
        tags["cells"] = "0" * 16

    def unknown(rows: Any, vectors: Any, tags: Any) -> Any:
        tags["reference"] = "tinny"

    def kind(rows: Any, vectors: Any, tags: Any) -> Any:
        tags["kind"] = "pickles"

    return locals()[name]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("drop", "1 of the 60 cells are missing"),
        ("twice", "row 0 is repeated"),
        ("outside", "no row 60"),
        ("text", "no row numbers"),
        ("renamed", "other names"),
        ("moved", "vectors of 1 cells differ"),
        ("nan", "NaN or infinity"),
        ("short", "127 dimensions instead of 128"),
        ("label", "not a label of the reference"),
        ("lost", "lacks the columns scvec_class"),
        ("space", "another space"),
        ("other", "ingested again"),
        ("unknown", "no reference 'tinny'"),
        ("kind", "scvec export did not write"),
    ],
)
def test_cells_that_are_refused(store: Path, tmp_path: Path, name: str, message: str):
    out = tmp_path / "tiny.parquet"
    scvec.export(store, "tiny", to="parquet", output=out)
    before = Store(store).generation.number
    with pytest.raises(InputError, match=message) as error:
        scvec.import_vectors(store, changed(out, "parquet", spoil(name)))
    assert len(str(error.value).splitlines()) <= 3
    assert Store(store).generation.number == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, v, t: t.update(space="0" * 16), "fingerprint"),
        (lambda r, v, t: t["space_record"].update(dim=15), "fingerprint"),
        (lambda r, v, t: t.update(space_record=[]), "name the space"),
        (lambda r, v, t: r.__setitem__("gene_id", "g1"), "repeated"),
        (lambda r, v, t: r.__setitem__("species", "Yeast\x1b[0m"), "no known species"),
        (lambda r, v, t: v.__setitem__((0, 0), np.inf), "NaN or infinity"),
        (lambda r, v, t: v.__setitem__(0, -v[0]), "1 genes have other vectors"),
        (lambda r, v, t: v.__imul__(3), "length 1|other vectors"),
    ],
    ids=["fingerprint", "dim", "no record", "twice", "species", "infinite", "conflict", "length"],
)
def test_genes_that_are_refused(store: Path, tmp_path: Path, change: Callable[..., Any], message: str):
    out = tmp_path / "genes.parquet"
    scvec.export(store, space="random:16", to="parquet", output=out)

    def edit(rows: Any, vectors: Any, tags: Any) -> None:
        change(rows, vectors, tags)

    with pytest.raises(InputError, match=message):
        scvec.import_vectors(store, changed(out, "parquet", edit))


@pytest.mark.parametrize("ending", FORMATS)
def test_damaged_and_foreign_files(store: Path, tmp_path: Path, ending: str):
    path = tmp_path / f"x.{ending}"
    with pytest.raises(InputError) as caught:
        scvec.import_vectors(store, path)
    assert caught.value.code == "file-not-found"
    scvec.export(store, "tiny", to=ending, output=path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError):
        scvec.import_vectors(store, path)
    if ending == "parquet":
        pd.DataFrame({"a": [1]}).to_parquet(path)
        with pytest.raises(InputError) as caught:
            scvec.import_vectors(store, path)
        assert caught.value.code == "wrong-format"
        with pytest.raises(ResourceError, match="--memory"):
            scvec.export(store, "tiny", to="parquet", output=path)
            scvec.import_vectors(store, path, memory=1000)


def test_dry_run_changes_nothing(store: Path, tmp_path: Path):
    out = tmp_path / "tiny.parquet"
    scvec.export(store, "tiny", to="parquet", output=out)
    before = Store(store).generation.number
    edited = changed(out, "parquet", lambda r, v, t: r.__setitem__("new", 1))
    report = scvec.import_vectors(store, edited, dry_run=True)
    assert report.columns == ["new"] and "nothing was changed" in report.lines()[-1]
    assert Store(store).generation.number == before


def test_wrong_usage(store: Path, tmp_path: Path):
    for options, code in (
        ({}, "usage"),
        ({"reference": "tiny", "space": "random:16"}, "usage"),
        ({"space": "minilm"}, "unknown-space"),
    ):
        with pytest.raises(InputError) as caught:
            scvec.export(store, to="parquet", output=tmp_path / "x.parquet", **options)
        assert caught.value.code == code
    for to, name in (("lance", "x.lance"), ("parquet", "x.h5ad"), ("parquet", ".")):
        with pytest.raises(InputError):
            scvec.export(store, "tiny", to=to, output=tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]

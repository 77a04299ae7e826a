"""References of the vectors that another model made: ingest, query, search, append, pack and pull."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import scvec
from scvec.base.errors import InputError
from scvec.model.card import CardOptions
from scvec.stores.store.store import Store

KEY = "X_scVI"
CENTERS = 4 * np.random.default_rng(9).normal(size=(8, 6))


def with_vectors(adata, seed=0, shift=0.0):
    """Put vectors of a made-up model into obsm: a center a type, noise, and a shift of the batch."""
    rng = np.random.default_rng(seed)
    type_number = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True)[1]
    noise = rng.normal(size=(adata.n_obs, CENTERS.shape[1]))
    adata.obsm[KEY] = (CENTERS[type_number] + noise + shift).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_adata, new_store):
    """A store with a reference of vectors, and new cells."""
    folder = tmp_path_factory.mktemp("obsm")
    new_store(folder / "store")
    with_vectors(tiny_adata(240, 3, donors=3)).write_h5ad(folder / "ref.h5ad")
    with_vectors(tiny_adata(90, 3, seed=5), seed=1, shift=0.3).write_h5ad(folder / "new.h5ad")
    report = scvec.ingest_cells(
        folder / "store",
        [folder / "ref.h5ad"],
        name="mine",
        label_key="cell_type",
        batch_key="donor",
        encoder=f"obsm:{KEY}",
        vectors_only=True,
    )
    assert report.n_cells == 240 and report.n_genes_matched == 6
    return folder


def test_labels_and_the_vectors_themselves_come_back(made):
    found = scvec.query(made / "store", made / "new.h5ad")
    new = anndata.read_h5ad(made / "new.h5ad")
    assert np.mean(found.label == new.obs["cell_type"].astype(str)) > 0.95
    assert np.mean(found.status == "novel") < 0.2
    np.testing.assert_allclose(found.vectors, new.obsm[KEY], rtol=1e-5, atol=1e-5)
    stored = Store(made / "store").reference("mine")
    ref = anndata.read_h5ad(made / "ref.h5ad")
    np.testing.assert_allclose(stored.vectors, ref.obsm[KEY], rtol=1e-5, atol=1e-5)


def test_nearest_cells_are_those_of_the_vectors(made):
    found = scvec.query(made / "store", made / "new.h5ad", n_neighbors=1)
    ref, new = (anndata.read_h5ad(made / name).obsm[KEY] for name in ("ref.h5ad", "new.h5ad"))
    oracle = ((new[:, None] - ref[None]) ** 2).sum(axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(found.neighbors.indices[:, 0], oracle)


def test_objects_zarr_small_memory_and_files_without_x_give_the_same(made, tmp_path):
    new = anndata.read_h5ad(made / "new.h5ad")
    bare = anndata.AnnData(obs=new.obs, obsm={KEY: new.obsm[KEY]})
    bare.write_h5ad(tmp_path / "bare.h5ad")
    new.write_zarr(tmp_path / "new.zarr")
    oracle = scvec.query(made / "store", made / "new.h5ad")
    for cells in (new, bare, tmp_path / "bare.h5ad", tmp_path / "new.zarr"):
        found = scvec.query(made / "store", cells, memory="600M")
        np.testing.assert_array_equal(found.label, oracle.label)
        np.testing.assert_allclose(found.proba, oracle.proba, atol=1e-5)


def test_a_parquet_table_of_vectors_and_labels_is_a_reference(made, tmp_path, new_store):
    """As LanceDB gives it, a column of lists; and as notebooks write it, a column a dimension."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ref, new = (anndata.read_h5ad(made / name) for name in ("ref.h5ad", "new.h5ad"))
    rows = {"cell_id": list(ref.obs_names), "cell_type": ref.obs["cell_type"].astype(str).tolist()}
    rows["donor"] = ref.obs["donor"].astype(str).tolist()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ref.obsm[KEY].ravel()), ref.obsm[KEY].shape[1])
    pq.write_table(pa.table({**rows, KEY: lists}), tmp_path / "ref.parquet")
    wide = new.obs.join(pd.DataFrame(new.obsm[KEY], new.obs_names).add_prefix(f"{KEY}_"))
    wide.to_parquet(tmp_path / "new.parquet")
    store = new_store(tmp_path / "store")
    options = {"label_key": "cell_type", "batch_key": "donor", "encoder": f"obsm:{KEY}"}
    assert scvec.ingest_cells(store, [tmp_path / "ref.parquet"], name="mine", **options).n_cells == ref.n_obs
    assert list(Store(store).reference("mine").obs.index) == list(ref.obs_names)
    oracle, found = scvec.query(made / "store", new), scvec.query(store, tmp_path / "new.parquet")
    np.testing.assert_array_equal(found.label, oracle.label)
    np.testing.assert_allclose(found.proba, oracle.proba, atol=1e-5)
    assert list(found.cells) == list(new.obs_names)


@pytest.mark.parametrize("kind", ["no vectors", "ragged", "missing", "damaged", "by genes", "lance"])
def test_parquet_tables_that_cannot_be_used(kind, made, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = {"ragged": [[1.0, 2.0], [1.0]], "missing": [[1.0, 2.0], None]}
    columns = {"cell_type": ["a", "b"]}
    if kind != "no vectors":
        columns[KEY] = lists.get(kind, [[1.0, 2.0], [3.0, 4.0]])
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:60])
    if kind == "lance":
        path = tmp_path / "t.lance"
        (path / "_versions").mkdir(parents=True)
    encoder = {} if kind == "by genes" else {"encoder": f"obsm:{KEY}"}
    with pytest.raises(InputError) as caught:
        scvec.ingest_cells(made / "store", [path], name="bad", label_key="cell_type", **encoder)
    assert len(caught.value.lines()) <= 3 and "bad" not in Store(made / "store").references()


def rotated(V):
    return V @ np.linalg.qr(np.random.default_rng(3).normal(size=(V.shape[1], V.shape[1])))[0]


def not_finite(V):
    return np.where(np.arange(len(V))[:, None] == 4, np.nan, V)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (rotated, "vectors-of-another-model"),
        (lambda V: V[:, ::-1], "vectors-of-another-model"),
        (lambda V: 30 * V, "vectors-of-another-model"),
        (lambda V: V[:, :5], "vectors-of-another-model"),
        (not_finite, "values-not-finite"),
        (None, "unknown-obsm"),
    ],
)
def test_wrong_vectors_are_refused(made, change, code):
    new = anndata.read_h5ad(made / "new.h5ad")
    vectors = new.obsm.pop(KEY)
    if change is not None:
        new.obsm[KEY] = np.ascontiguousarray(change(vectors), dtype=np.float32)
    with pytest.raises(InputError) as refusal:
        scvec.query(made / "store", new)
    assert refusal.value.code == code


def test_force_continues_with_a_warning(made):
    new = anndata.read_h5ad(made / "new.h5ad")
    new.obsm[KEY] = rotated(new.obsm[KEY])
    found = scvec.query(made / "store", new, force=True)
    assert any(note.startswith("warning: ") and KEY in note for note in found.notes)


def test_append_search_and_packs(made, tmp_path, new_store, tiny_adata):
    scvec.pack(made / "store", "mine", output=tmp_path / "whole.scvec", card=CardOptions())
    scvec.pack(made / "store", "mine", output=tmp_path / "bare.scvec", with_cells=False)
    target = new_store(tmp_path / "target")
    scvec.pull(target, tmp_path / "whole.scvec", name="whole")
    scvec.pull(target, tmp_path / "bare.scvec", name="bare")
    oracle = scvec.query(made / "store", made / "new.h5ad")
    whole = scvec.query(target, made / "new.h5ad", reference="whole")
    np.testing.assert_array_equal(whole.proba, oracle.proba)
    assert np.mean(scvec.query(target, made / "new.h5ad", reference="bare").label == oracle.label) > 0.95
    more = with_vectors(tiny_adata(60, 3, seed=8), seed=2)
    assert scvec.append_cells(target, [more], name="whole", label_key="cell_type").n_cells == 300
    more.obsm[KEY] = rotated(more.obsm[KEY])
    with pytest.raises(InputError) as refusal:
        scvec.append_cells(target, [more], name="whole", label_key="cell_type")
    assert refusal.value.code == "vectors-of-another-model"
    name = str(Store(target).reference("whole").obs.index[0])
    assert scvec.search_cells(target, like=name, reference="whole").hits
    assert Store(target).verify().to_dict()["problems"] == []


def test_a_reference_of_vectors_has_no_gene_evidence(made, tmp_path):
    scvec.query(made / "store", made / "new.h5ad", output=tmp_path / "out.h5ad")
    with pytest.raises(InputError) as refusal:
        scvec.explain(made / "store", tmp_path / "out.h5ad", label="beta")
    assert refusal.value.code == "vectors-without-genes"

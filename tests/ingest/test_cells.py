"""Cells read from any storage; oracle: the dense matrix in memory and NumPy."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvec
from scvec.base.errors import InputError
from scvec.ingest.cells.source import CellSource, labels, parse_memory
from scvec.stores.store.files import read_table, write_table

DEMO = Path(scvec.__file__).parent / "data"


def dense_counts(n: int = 50, genes: int = 80, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.5, 2, genes) * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def adata_of(x, **var) -> anndata.AnnData:
    n, genes = x.shape
    obs = pd.DataFrame({"cell_type": [f"t{i % 3}" for i in range(n)]}, index=[f"c{i}" for i in range(n)])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(var, index=[f"G{i}" for i in range(genes)]))


def expected(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    total = x.sum(1, keepdims=True)
    return np.log1p(np.divide(1e4 * x, total, out=np.zeros_like(x), where=total > 0))


def read(source: CellSource, size: int = 7, rows=None) -> np.ndarray:
    chunks = list(source.chunks(size, rows))
    assert all(c.dtype == np.float32 and c.shape[0] <= size for c in chunks)
    return sp.vstack(chunks).toarray()


STORED = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dense": np.asarray,
    "csr-int": lambda x: sp.csr_matrix(x.astype(np.int64)),
    "dense-uint8": lambda x: np.minimum(x, 200).astype(np.uint8),
    "dense-float16": lambda x: x.astype(np.float16),
    "dense-big-endian": lambda x: x.astype(">f4"),
    "csr-array": sp.csr_array,
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("where", ["file", "gzip", "memory", "backed"])
def test_any_storage_gives_the_same_cells(kind: str, where: str, tmp_path: Path) -> None:
    x = dense_counts()
    x[4] = 0
    adata = adata_of(STORED[kind](x))
    given = adata
    if where != "memory":
        path = tmp_path / "x.h5ad"
        adata.write_h5ad(path, compression="gzip" if where == "gzip" else None)
        given = anndata.read_h5ad(path, backed="r") if where == "backed" else path
    with CellSource.open(given) as source:
        np.testing.assert_allclose(read(source), expected(x), rtol=1e-6)
        np.testing.assert_allclose(source.totals, x.sum(1))
        np.testing.assert_allclose(source.gene_totals, x.sum(0))
        np.testing.assert_array_equal(source.n_genes_detected, (x > 0).sum(1))
        assert source.obs_names == [f"c{i}" for i in range(50)]
        assert source.var_names == [f"G{i}" for i in range(80)]
        assert "1 cell without counts" in source.notes
        assert source.state.kind == "counts"


def test_obs_is_as_anndata_reads_it_with_and_without_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scvec.base.arrays.blocks.__defaults__", (7,))
    adata = adata_of(sp.csr_matrix(dense_counts(30)))
    adata.obs["donor"] = pd.Categorical(["x", "y", None] * 10)
    adata.obs["depth"] = np.arange(30.0)
    for names in ([f"cell {i} \N{GREEK SMALL LETTER BETA}" for i in range(30)], ["a", *["b"] * 29]):
        adata.obs_names = names
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata.write_zarr(tmp_path / "x.zarr")
        expected = anndata.read_h5ad(tmp_path / "x.h5ad").obs
        repeated = len(set(names)) < 30
        if repeated:
            expected.index = anndata.utils.make_index_unique(expected.index)
        for given in (tmp_path / "x.h5ad", tmp_path / "x.zarr", adata):
            with CellSource.open(given) as source, CellSource.open(given, columns=False) as bare:
                pd.testing.assert_frame_equal(source.obs, expected, check_index_type=False)
                assert source.obs.index.dtype == object and list(bare.obs.index) == list(expected.index)
                assert bare.obs.columns.empty and bare.notes == source.notes
                assert ("made 28 repeated cell names unique with -1, -2, ..." in source.notes) == repeated


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    x = dense_counts(300)
    adata_of(sp.csr_matrix(x)).write_h5ad(tmp_path / "x.h5ad")
    rows = np.r_[np.random.default_rng(0).permutation(300)[:40], 5, 5, 299, 0, 150:160]
    with CellSource.open(tmp_path / "x.h5ad") as source:
        for size in (1, 3, 1000):
            np.testing.assert_array_equal(read(source, size, rows), read(source, 64)[rows])
        assert list(source.chunks(rows=np.array([], dtype=int))) == []
        with pytest.raises(IndexError):
            next(source.chunks(rows=np.array([300])))


def test_unsorted_and_repeated_entries_are_fixed_without_changing_the_object() -> None:
    # 200 + 100 would overflow uint8, and adding up must not happen in the caller's arrays.
    matrix = sp.csr_matrix(
        (np.array([200, 100, 3, 4, 5], np.uint8), np.array([1, 1, 2, 0, 0]), np.array([0, 3, 5])),
        shape=(2, 3),
    )
    adata = adata_of(matrix)
    stored = adata.X.indices.copy()
    with CellSource.open(adata) as source:
        np.testing.assert_allclose(source.gene_totals, [9, 300, 3])
        assert "summed 2 values stored twice for one cell and gene" in source.notes
    np.testing.assert_array_equal(adata.X.indices, stored)
    assert adata.X.nnz == 5


def test_non_gene_features_are_removed_from_all_attributes() -> None:
    x = dense_counts(30, 10)
    kinds = ["Gene Expression"] * 7 + ["Antibody Capture"] * 3
    with CellSource.open(adata_of(sp.csr_matrix(x), feature_types=kinds)) as source:
        assert source.n_vars == len(source.var_names) == len(source.var) == len(source.gene_totals) == 7
        np.testing.assert_array_equal(source.feature_mask, [True] * 7 + [False] * 3)
        np.testing.assert_allclose(source.totals, x[:, :7].sum(1))
        np.testing.assert_allclose(read(source), expected(x[:, :7]), rtol=1e-6)


def test_biotypes_in_feature_type_are_genes() -> None:
    with CellSource.open(adata_of(dense_counts(), feature_type=["lncRNA", "protein_coding"] * 40)) as source:
        assert source.n_vars == 80


@pytest.mark.parametrize(
    "name", ["ERCC1", "HTR2A", "ABCA1", "PROTOR1", "CHRNA1", "ADTRP", "HASHED", "MMP9", "HGS"]
)
def test_genes_with_names_like_other_features_stay(name: str) -> None:
    adata = adata_of(dense_counts(20, 5))
    adata.var_names = [name, "INS", "GCG", "SST", "PPY"]
    with CellSource.open(adata) as source:
        assert source.var_names[0] == name


@pytest.mark.parametrize(
    ("one", "other", "genome"),
    [
        ("GRCh38_", "mm10___", "mm10"),
        ("GRCh38-", "mm10-", "mm10"),  # Seurat allows no underscores
        ("hg19.", "mm10.", "mm10"),
        ("GRCh38_", "mRatBN7.2_", "mRatBN7.2"),
        ("GRCz11______", "GRCm39_", "GRCm39"),
        ("GRCh38-2020-A_", "mm10-2020-A_", "mm10"),
        ("HUMAN:", "MOUSE:", "MOUSE"),
    ],
)
def test_the_genome_with_most_counts_is_kept(one: str, other: str, genome: str) -> None:
    x = dense_counts(30, 10)
    x[:, 6:] *= 50
    adata = adata_of(x)
    adata.var_names = [f"{one}H{i}" for i in range(6)] + [f"{other}M{i}" for i in range(4)]
    with CellSource.open(adata) as source:
        assert source.var_names == ["M0", "M1", "M2", "M3"] and source.genome == genome
        assert any(f"kept the genes of {genome}" in note for note in source.notes)


def test_tables_as_only_objects_have_them(tmp_path: Path) -> None:
    adata = adata_of(dense_counts(6, 4))
    adata.var.index = pd.MultiIndex.from_tuples([(f"E{i}", f"G{i}") for i in range(4)], names=["id", None])
    adata.obs["batch"] = [[1], {2: 3}, (4,), {5}, np.arange(2), None]
    adata.obs["age"] = pd.cut(range(6), [-1, 2, 9])
    adata.obs["time"] = pd.period_range("2020", periods=6, freq="D")
    with CellSource.open(adata) as source:
        write_table(tmp_path / "obs.parquet", source.obs)
        assert read_table(tmp_path / "obs.parquet")["age"].iloc[0] == "(-1, 2]"
        assert source.var_names == [f"E{i}_G{i}" for i in range(4)]
        names = source.gene_name_candidates()
        assert names["id"] == [f"E{i}" for i in range(4)] and names["level_1"] == [f"G{i}" for i in range(4)]
        assert source.batches["batch"].tolist() == ["[1]", "{2: 3}", "(4,)", "{5}", "[0 1]", None]


def whole(kind: str) -> anndata.AnnData:
    """X scaled variable genes; raw all genes, log1p CP10k; counts of the variable genes in a layer."""
    x = dense_counts(60, 200)
    full = adata_of(sp.csr_matrix(expected(x).astype(np.float32)))
    part = full[:, :50].copy()
    part.raw = full
    if "hvg-counts" in kind:
        part.layers["counts"] = sp.csr_matrix(x[:, :50])
    if "all-counts" in kind:
        part = full.copy()
        part.raw = full
        part.layers["counts"] = sp.csr_matrix(x)
    part.X = expected(x)[:, : part.n_vars] - 1.0
    return part


def test_raw_of_all_genes_is_better_than_counts_of_some() -> None:
    with CellSource.open(whole("hvg-counts")) as source:
        assert (source.state.where, source.state.kind, source.n_vars) == ("raw", "log1p_cp10k", 200)
        assert any("layers/counts: it has only 50 of 200 genes" in note for note in source.notes)
        assert any("did not use X: it has negative values" in note for note in source.notes)


def test_counts_of_all_genes_are_better_than_logs() -> None:
    with CellSource.open(whole("all-counts")) as source:
        assert (source.state.where, source.state.kind) == ("layers/counts", "counts")


def test_a_given_layer_is_the_only_one_looked_at() -> None:
    adata = whole("hvg-counts")
    with CellSource.open(adata, layer="counts") as source:
        assert (source.state.where, source.n_vars) == ("layers/counts", 50)
    with CellSource.open(adata, layer="raw") as source:
        assert source.state.where == "raw"
    with pytest.raises(InputError, match=r"--layer counts or raw|--layer raw or counts"):
        CellSource.open(adata, layer="X")


def test_spliced_layers_are_a_last_resort() -> None:
    x = dense_counts()
    adata = adata_of(sp.csr_matrix(expected(x).astype(np.float32)))
    adata.layers["unspliced"] = sp.csr_matrix(np.round(x / 3))
    with CellSource.open(adata) as source:
        assert source.state.where == "X"
    adata.X = expected(x) - 1
    with CellSource.open(adata) as source:
        assert source.state.where == "layers/unspliced"


def test_problems_outside_the_sample_are_found() -> None:
    x = dense_counts(5000, 30)
    adata = adata_of(sp.csr_matrix(x))
    row = 1111  # outside the sample
    adata.X.data[adata.X.indptr[row]] = 2.5
    with CellSource.open(adata) as source:
        assert source.state.kind != "counts"
    adata.X.data[adata.X.indptr[row]] = -2.5
    with pytest.raises(InputError, match="scaled"):
        CellSource.open(adata)
    adata.X.data[adata.X.indptr[row]] = np.nan
    with pytest.raises(InputError, match="'c1111'"):
        CellSource.open(adata)


@pytest.mark.parametrize(("text", "n"), [("4G", 4 << 30), ("1.5 gib", 3 << 29), ("512M", 512 << 20), (7, 7)])
def test_memory_amounts(text, n: int) -> None:
    assert parse_memory(text) == n


@pytest.mark.parametrize("text", ["", "0", "-1G", "many", "4X"])
def test_memory_nonsense(text: str) -> None:
    with pytest.raises(InputError, match="amount of memory"):
        parse_memory(text)


def test_labels_are_sorted_and_gaps_are_minus_one() -> None:
    adata = adata_of(dense_counts(6))
    adata.obs["cell_type"] = pd.Categorical(
        ["b", "a", None, "b", "nan", " a"], ["b", "a", "nan", " a", "unused"]
    )
    with CellSource.open(adata) as source:
        codes, classes = labels(source, "cell_type")
    assert classes == ["a", "b"] and codes.dtype == np.int64
    np.testing.assert_array_equal(codes, [1, 0, -1, 1, -1, 0])


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([1.0, 2.0, np.nan] * 2, ["1", "2"]),
        ([True, False] * 3, ["False", "True"]),
        ([b"x", b"y"] * 3, ["x", "y"]),
    ],
)
def test_labels_of_any_type_become_text(values, classes) -> None:
    adata = adata_of(dense_counts(6))
    adata.obs["cell_type"] = values
    with CellSource.open(adata) as source:
        assert labels(source, "cell_type")[1] == classes


def test_other_columns_with_gene_names_are_offered() -> None:
    ids = [f"ENSG{i:011d}.2" for i in range(80)]
    with CellSource.open(
        adata_of(dense_counts(), gene_ids=ids, mean=np.ones(80), entrez=np.r_[np.nan, 1:80])
    ) as s:
        names = s.gene_name_candidates()
    assert list(names) == ["index", "gene_ids", "entrez"]
    assert names["gene_ids"] == ids and names["entrez"][:3] == ["", "1", "2"]


def test_a_file_of_old_anndata_is_read(tmp_path: Path) -> None:
    x = dense_counts(9, 5)
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = x
        obs = np.array(
            [(f"c{i}".encode(), i % 2) for i in range(9)], dtype=[("index", "S4"), ("cluster", "i8")]
        )
        file["obs"] = obs
        file["var"] = np.array([(f"G{i}".encode(),) for i in range(5)], dtype=[("index", "S4")])
    with CellSource.open(tmp_path / "old.h5ad") as source:
        assert source.obs_names[:2] == ["c0", "c1"] and source.var_names[4] == "G4"
        np.testing.assert_allclose(read(source), expected(x), rtol=1e-6)
        assert source.path == tmp_path / "old.h5ad"
        assert "before 0.7" in source.notes[0]


@pytest.mark.parametrize(
    ("species", "shape", "types"), [("human", (2142, 20125), 14), ("mouse", (1886, 14877), 13)]
)
def test_demo_data_opens_and_is_what_it_says(species: str, shape, types: int) -> None:
    path = DEMO / f"baron_{species}.h5ad"
    adata = anndata.read_h5ad(path)
    assert adata.shape == shape and adata.X.dtype == np.float32 and adata.X.indices.dtype == np.int32
    with CellSource.open(path) as source:
        assert source.notes == ["X holds raw counts; normalised a private copy to log1p CP10k"]
        codes, classes = labels(source, "cell_type")
        assert len(classes) == types and codes.min() == 0
        np.testing.assert_allclose(source.totals, np.asarray(adata.X.sum(1, dtype=np.float64)).ravel())


def test_demo_data_is_small_and_equal_to_its_source(shared_data: Path) -> None:
    assert sum((DEMO / f"baron_{s}.h5ad").stat().st_size for s in ("human", "mouse")) <= 16_000_000
    for species in ("human", "mouse"):
        ours = anndata.read_h5ad(DEMO / f"baron_{species}.h5ad")
        theirs = anndata.read_h5ad(shared_data / f"pancreas_baron_{species}.h5ad")
        pd.testing.assert_frame_equal(ours.obs, theirs.obs)
        assert list(ours.var_names) == list(theirs.var_names)
        assert (ours.X != theirs.X).nnz == 0

"""Which matrix of a file is read, and tables as other programs write them; oracle: the plain cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvec.base.errors import InputError
from scvec.ingest.cells.source import CellSource

N, GENES = 80, 300
RNG = np.random.default_rng(3)
COUNTS = RNG.poisson(RNG.gamma(0.5, 4, GENES) * RNG.uniform(0.5, 2, (N, 1))).astype(np.float32)
NAMES = [f"GENE{i}" for i in range(GENES)]


def cells(x: Any = None, **layers: Any) -> anndata.AnnData:
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(["a", "b"] * (N // 2)), "donor": [f"d{i % 3}" for i in range(N)]},
        index=[f"c{i}" for i in range(N)],
    )
    X = None if x is None else sp.csr_matrix(x)
    made = anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=NAMES))
    for name, values in layers.items():
        made.layers[name] = sp.csr_matrix(values)
    return made


def scaled() -> np.ndarray:
    return (COUNTS - COUNTS.mean(0)) / (COUNTS.std(0) + 1)


def thin(fraction: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).binomial(COUNTS.astype(int), fraction).astype(np.float32)


SPLICED, UNSPLICED, AMBIGUOUS = thin(0.7, 1), thin(0.2, 2), thin(0.05, 3)
ARCSINH = np.arcsinh(COUNTS / COUNTS.sum(1, keepdims=True) * 1e4)


@pytest.mark.parametrize(
    ("x", "layers", "place"),
    [
        (scaled(), {"ambiguous": AMBIGUOUS, "matrix": COUNTS, "spliced": SPLICED}, "layers/matrix"),
        (None, {"ambiguous": AMBIGUOUS, "spliced": COUNTS, "unspliced": UNSPLICED}, "layers/spliced"),
        (scaled(), {"antisense": COUNTS + 3, "sense": COUNTS}, "layers/sense"),
        (None, {"ambient_counts": COUNTS * 2, "raw_counts": COUNTS}, "layers/raw_counts"),
        (scaled(), {"binary": COUNTS > 0, "raw_counts": COUNTS}, "layers/raw_counts"),
        (ARCSINH, {"raw_counts": COUNTS}, "layers/raw_counts"),
        # Neighbours of these.
        (ARCSINH, {"exonic": COUNTS, "intronic": thin(0.3)}, "layers/exonic"),
        (scaled(), {"a_detected": COUNTS > 0, "b": COUNTS}, "layers/b"),
        (scaled(), {"UMIs": COUNTS, "corrected": COUNTS * 1.37}, "layers/UMIs"),
        (np.sqrt(COUNTS * 1.7), {"background": COUNTS, "umi_counts": COUNTS}, "layers/umi_counts"),
        (scaled(), {"AntiSense": COUNTS * 3, "Sense": COUNTS, "Multimapped": COUNTS * 5}, "layers/Sense"),
        (COUNTS, {"spliced": COUNTS * 2}, "X"),
        (COUNTS * 2, {"counts": COUNTS}, "layers/counts"),
    ],
)
def test_the_layer_that_holds_the_counts_is_taken(x, layers, place, tmp_path: Path) -> None:
    adata = cells(x, **{name: np.asarray(values, np.float32) for name, values in layers.items()})
    adata.write_h5ad(tmp_path / "x.h5ad")
    for given in (adata, tmp_path / "x.h5ad"):
        with CellSource.open(given) as source:
            assert source.state.where == place and source.state.kind == "counts"
            np.testing.assert_allclose(source.totals, COUNTS.sum(1))
            said = [note for note in source.notes if note.startswith(f"used {place}: ")]
            named = place in ("X", "layers/counts", "layers/raw_counts", "layers/umi_counts", "layers/UMIs")
            assert bool(said) != named


def seurat(folder: Path, *, fixed: bool, marked: bool, raw: bool = True) -> Path:
    """Write a file like SeuratDisk's Convert does for an assay without meta.features."""
    text = "S9" if fixed else h5py.string_dtype()
    x = sp.csr_matrix(COUNTS)
    with h5py.File(folder / "seurat.h5ad", "w") as file:
        for place in ("X", "raw/X") if raw else ("X",):
            group = file.create_group(place)
            group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
            if marked:
                group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
                group.attrs["shape"] = np.array(x.shape)
        for place in ("var", "raw/var") if raw else ("var",):
            file.create_dataset(f"{place}/_index", data=NAMES, dtype=text)
            file[place].attrs["_index"] = "_index"
        obs = file.create_group("obs")
        obs.create_dataset("_index", data=[f"c{i}" for i in range(N)], dtype=text)
        obs["cell_type"] = np.array([0, 1] * (N // 2), np.int32)
        obs["donor"] = np.array([i % 3 if i else np.iinfo(np.int32).min for i in range(N)], np.int32)
        obs["nCount_RNA"] = COUNTS.sum(1)
        obs.create_dataset("__categories/cell_type", data=["alpha", "b\u00eata"], dtype=h5py.string_dtype())
        obs.create_dataset("__categories/donor", data=["d0", "d1", "d2"], dtype=text)
        obs.attrs["_index"] = "_index"
        if marked:
            obs.attrs.create("column-order", ["cell_type", "donor", "nCount_RNA"], dtype=h5py.string_dtype())
            obs.attrs["encoding-type"], obs.attrs["encoding-version"] = "dataframe", "0.1.0"
    return folder / "seurat.h5ad"


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_exports_of_seuratdisk_without_features_are_read(fixed, marked, raw, tmp_path: Path) -> None:
    with CellSource.open(seurat(tmp_path, fixed=fixed, marked=marked, raw=raw)) as source:
        assert source.var_names == NAMES and source.obs_names == [f"c{i}" for i in range(N)]
        np.testing.assert_allclose(source.totals, COUNTS.sum(1))
        obs = source.obs
        assert list(obs["cell_type"]) == ["alpha", "b\u00eata"] * (N // 2)
        assert obs["donor"].isna().sum() == 1 and list(obs["donor"][1:4]) == ["d1", "d2", "d0"]
        assert sorted(obs.columns) == ["cell_type", "donor", "nCount_RNA"] and source.notes[0].startswith(
            "raw holds raw counts" if raw else "X holds raw counts"
        )


@pytest.mark.parametrize("index", ["index", "_index"])
def test_a_table_that_does_not_say_its_index_is_read(index, tmp_path: Path) -> None:
    path = seurat(tmp_path, fixed=False, marked=True, raw=False)
    with h5py.File(path, "r+") as file:
        del file["var"].attrs["_index"]
        if index != "_index":
            file["var"].move("_index", index)
    with CellSource.open(path) as source:
        assert source.var_names == NAMES


def latin(file: h5py.File, place: str, texts: list[str], dtype: Any) -> None:
    attributes = dict(file[place].attrs)
    del file[place]
    file.create_dataset(place, data=[text.encode("latin-1") for text in texts], dtype=dtype)
    file[place].attrs.update(attributes)


@pytest.mark.parametrize("dtype", ["S12", h5py.string_dtype("utf-8"), h5py.string_dtype("ascii")])
def test_names_in_latin_1_are_read(dtype, tmp_path: Path) -> None:
    cells(COUNTS).write_h5ad(tmp_path / "x.h5ad")
    names, types = [f"c\u00e9ll{i}" for i in range(N)], ["m\u00fcller", "b"]
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        latin(file, f"obs/{file['obs'].attrs['_index']}", names, dtype)
        latin(file, "obs/cell_type/categories", types, dtype)
        latin(file, "obs/donor", [f"\u00e5{i % 2}" for i in range(N)], dtype)
        latin(file, f"var/{file['var'].attrs['_index']}", [f"\u00b5{n}" for n in NAMES], dtype)
    with CellSource.open(tmp_path / "x.h5ad") as source:
        assert source.obs_names == names and source.var_names[1] == "\u00b5GENE1"
        assert list(source.obs["cell_type"][:2]) == types and list(source.obs["donor"][:2]) == [
            "\u00e50",
            "\u00e51",
        ]


def test_texts_of_folders_in_latin_1_are_read(tmp_path: Path) -> None:
    import scipy.io

    scipy.io.mmwrite(tmp_path / "matrix.mtx", sp.coo_matrix(COUNTS.T.astype(int)))
    (tmp_path / "barcodes.tsv").write_bytes("".join(f"\u00e9{i}\n" for i in range(N)).encode("latin-1"))
    (tmp_path / "features.tsv").write_text("".join(f"id{i}\t{n}\n" for i, n in enumerate(NAMES)))
    with CellSource.open(tmp_path) as source:
        assert source.obs_names[:2] == ["\u00e90", "\u00e91"]


@pytest.mark.parametrize("make", [np.asarray, lambda x: list(x), sp.csr_matrix], ids=["dense", "list", "csr"])
def test_numbers_held_as_objects_are_numbers(make: Callable, tmp_path: Path) -> None:
    adata = cells(COUNTS)
    if make is sp.csr_matrix:
        matrix = sp.csr_matrix(COUNTS)
        matrix.data = matrix.data.astype(object)
    else:
        matrix = np.array(make(COUNTS), dtype=object)
    adata.layers["counts"] = matrix
    with CellSource.open(adata) as source:
        assert source.state.where == "layers/counts"
        np.testing.assert_allclose(source.totals, COUNTS.sum(1))
    if make is np.asarray:
        matrix[3, 4] = "seven"
        with pytest.raises(InputError, match="holds text"):
            CellSource.open(adata)


@pytest.mark.parametrize("pick", [slice(10, 40), np.arange(0, N, 3), np.arange(N) % 2 == 0])
@pytest.mark.parametrize("raw", [False, True])
def test_views_of_backed_objects_are_read(pick, raw, tmp_path: Path) -> None:
    adata = cells(COUNTS)
    if raw:
        adata.raw = adata
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    with CellSource.open(backed[pick]) as source:
        np.testing.assert_allclose(source.totals, COUNTS[pick].sum(1))
    with CellSource.open(backed[pick, NAMES[:200]]) as source:
        kept = COUNTS[pick] if raw else COUNTS[pick, :200]
        np.testing.assert_allclose(source.totals, kept.sum(1))
    backed.file.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_place_without_nan_is_named(bad) -> None:
    broken = COUNTS.copy()
    broken[5, 7] = bad
    adata = cells(COUNTS, counts=broken, other=broken)
    with pytest.raises(InputError, match="1 NaN or infinite value, the first in cell 'c5'") as caught:
        CellSource.open(adata)
    assert "--layer X, which has none" in caught.value.fix
    adata = cells(broken, mine=COUNTS, other=broken)
    with pytest.raises(InputError) as caught:
        CellSource.open(adata)
    assert "--layer mine, which has none" in caught.value.fix
    with pytest.raises(InputError) as caught:
        CellSource.open(cells(broken, other=broken))
    assert "--layer" not in caught.value.fix


@pytest.mark.parametrize(("n_cells", "told"), [(30, True), (200, True), (600, False)])
def test_an_unfiltered_matrix_is_suspected(n_cells, told) -> None:
    rng = np.random.default_rng(0)
    x = sp.lil_matrix((1500, 6000), dtype=np.float32)
    x[:n_cells] = rng.poisson(0.4, (n_cells, 6000))
    x = x.tocsr() + sp.random(1500, 6000, 0.0005, "csr", np.float32, rng, data_rvs=np.ones)
    adata = anndata.AnnData(x, var=pd.DataFrame(index=[f"G{i}" for i in range(6000)]))
    with CellSource.open(adata) as source:
        assert any("unfiltered" in note for note in source.notes) == told


@pytest.mark.parametrize("value", [1e308, 2.0**62, 1e20])
@pytest.mark.parametrize("how", ["everywhere", "once", "int"])
def test_values_that_no_cell_has_are_refused(value, how) -> None:
    x = COUNTS.astype(np.float64)
    if how == "everywhere":
        x[:] = value
    else:
        x[N - 3, 7] = value
    if how == "int":
        if value > 2.0**63:
            return
        x = x.astype(np.int64)
    with pytest.raises(InputError, match="no cell has as many"):
        CellSource.open(cells(x))


@pytest.mark.parametrize("value", [1.1e9, 2.0**31, 2.0**52])
def test_counts_over_a_billion_are_noted(value) -> None:
    x = COUNTS.astype(np.float64)
    x[N - 3, 7] = value
    with CellSource.open(cells(x)) as source:
        assert any(note.startswith("warning: X holds counts up to") for note in source.notes)
        assert np.isfinite(source.totals).all() and np.isfinite(source.gene_totals).all()


@pytest.mark.parametrize("line", ["1 1 3 0", "1 1 3 4", "1\t1\t3\t4", "1 1", "1 1 3 # x"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_lines_of_mtx_have_three_numbers(line, at, tmp_path: Path) -> None:
    lines = ["1 1 1", "2 1 5", "2 2 7"]
    lines[at] = line
    for every in (False, True):
        body = [line] * 3 if every else lines
        text = "%%MatrixMarket matrix coordinate integer general\n2 2 3\n" + "\n".join(body) + "\n"
        (tmp_path / "matrix.mtx").write_text(text)
        (tmp_path / "barcodes.tsv").write_text("a\nb\n")
        (tmp_path / "features.tsv").write_text("x\ty\nz\tw\n")
        with pytest.raises(InputError, match="damaged"):
            CellSource.open(tmp_path)

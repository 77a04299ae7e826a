"""Ways to make files bad: each takes a folder, or what to change, and gives the path of the file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from bad_inputs.cells import N_CELLS, N_GENES, TYPES, good_adata, good_file, save


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def changed(change: Callable[[anndata.AnnData], anndata.AnnData | None]) -> Callable[[Path], Path]:
    """Change the AnnData object before it is written."""

    def build(folder: Path) -> Path:
        adata = good_adata()
        changed = change(adata)
        return save(adata if changed is None else changed, folder)

    return build


def edited(edit: Callable[[h5py.File], object]) -> Callable[[Path], Path]:
    """Change the file after it is written."""

    def build(folder: Path) -> Path:
        path = good_file(folder, "case.h5ad")
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return build


def hdf5(name: str, make: Callable[[h5py.File], object]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        with h5py.File(folder / name, "w") as file:
            make(file)
        return folder / name

    return build


def replace(file: h5py.File, name: str, values: Any) -> None:
    """Put other values into a dataset, attributes kept."""
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def with_values(file: h5py.File, name: str, change: Callable[[np.ndarray], Any]) -> None:
    values = file[name][:]
    replace(file, name, values if (changed := change(values)) is None else changed)


def put(index: int, value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


def missing_near(folder: Path) -> Path:
    good_file(folder, "pancreas_new.h5ad")
    return folder / "pancreas_nwe.h5ad"


def tenx_folder(folder: Path) -> Path:
    (folder / "matrix.mtx.gz").write_bytes(b"")
    return folder


def zarr(folder: Path) -> Path:
    (folder / "case.zarr").mkdir()
    (folder / "case.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    return folder / "case.zarr"


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "case.h5ad", "w") as archive:
        archive.writestr("x.txt", "x")
    return folder / "case.h5ad"


def truncated(folder: Path) -> Path:
    path = good_file(folder, "case.h5ad")
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def damaged_start(folder: Path) -> Path:
    path = good_file(folder, "case.h5ad")
    content = bytearray(path.read_bytes())
    content[5:8] = b"???"  # what an FTP transfer in text mode does to the signature
    path.write_bytes(content)
    return path


def endless_heap(folder: Path) -> Path:
    """Give free space in a heap of texts no length: HDF5 would step through it for ever."""
    path = good_file(folder, "case.h5ad")
    content = bytearray(path.read_bytes())
    heap = content.rfind(b"GCOL")
    position = heap + 16
    while content[position : position + 2] != b"\x00\x00":
        position += 16 + (int.from_bytes(content[position + 8 : position + 16], "little") + 7) // 8 * 8
    content[position + 8 : position + 16] = bytes(8)
    path.write_bytes(content)
    return path


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "case.h5ad")
    return folder / "case.h5ad"


def external_link(folder: Path) -> Path:
    other = good_file(folder, "other.h5ad")
    path = good_file(folder, "case.h5ad")
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink(str(other), "/X")
    return path


def virtual(folder: Path) -> Path:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((N_CELLS, N_GENES), np.float32)

    def edit(file: h5py.File) -> None:
        del file["X"]
        layout = h5py.VirtualLayout((N_CELLS, N_GENES), np.float32)
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (N_CELLS, N_GENES), np.float32)
        file.create_virtual_dataset("X", layout)

    return edited(edit)(folder)


def external_storage(folder: Path) -> Path:
    (folder / "secret.bin").write_bytes(b"\x00" * 4 * N_CELLS * N_GENES)

    def edit(file: h5py.File) -> None:
        del file["X"]
        outside = [(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("X", (N_CELLS, N_GENES), np.float32, external=outside)

    return edited(edit)(folder)


def bomb(file: h5py.File) -> None:
    attributes = dict(file["X"].attrs)
    n = file["X/indptr"][:]
    del file["X"]
    group = file.create_group("X")
    group.attrs.update(attributes)
    group["indptr"] = n
    for name in ("data", "indices"):
        group.create_dataset(
            name, (10**12,), "f4" if name == "data" else "i4", chunks=(2**16,), compression="gzip"
        )


def obs_bomb(file: h5py.File) -> None:
    del file["obs/donor"]
    file["obs"].create_dataset("donor", (10**11,), "i8", chunks=(2**16,), compression="gzip")


def short_column(file: h5py.File) -> None:
    del file["obs/donor"]
    file["obs/donor"] = np.arange(9)
    file["obs/donor"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def deep(file: h5py.File) -> None:
    group = file["uns"]
    for _ in range(200):
        group = group.create_group("g")


def unknown_filter(file: h5py.File) -> None:
    del file["X/data"]
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((64,))
    made.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((len(file["X/indices"]),))
    h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, made)


def csc_lie(folder: Path) -> Path:
    adata = good_adata()
    adata.X = adata.X.tocsc()
    path = save(adata, folder)
    with h5py.File(path, "r+") as file:
        with_values(file, "X/indices", put(7, N_CELLS + 5))
    return path


def names(change: Callable[[list[str]], list[str]]) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.var_names = pd.Index(change(list(adata.var_names)), dtype=object)

    return apply


def value(row: int, value: float) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.X.data[adata.X.indptr[row]] = value

    return apply


def scaled(adata: anndata.AnnData) -> np.ndarray:
    x = np.log1p(adata.X.toarray())
    return ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float32)


def scale(keep: str = "") -> Callable[[anndata.AnnData], anndata.AnnData | None]:
    def apply(adata: anndata.AnnData) -> anndata.AnnData | None:
        if keep == "raw":
            adata.raw = adata
        elif keep:
            adata.layers[keep] = adata.X.copy()
        if keep == "input":
            adata.layers["scaled"] = scaled(adata)
            del adata.layers["input"]
        else:
            adata.X = scaled(adata)
        return None

    return apply


def labels(make: Callable[[anndata.AnnData], Any]) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.obs["cell_type"] = make(adata)

    return apply


def features(adata: anndata.AnnData) -> None:
    adata.var["feature_types"] = ["Gene Expression"] * (N_GENES - 5) + ["Antibody Capture"] * 5


def all_proteins(adata: anndata.AnnData) -> None:
    adata.var["feature_types"] = "Antibody Capture"


def linear(adata: anndata.AnnData, target: float) -> sp.csr_matrix:
    x = adata.X.toarray().astype(np.float64)
    # Lengths make TPM of counts: without them the multiples of one unit would show.
    x *= np.random.default_rng(5).uniform(0.3, 3, x.shape[1])
    return sp.csr_matrix((target * x / x.sum(1, keepdims=True)).astype(np.float32))


def set_x(make: Callable[[anndata.AnnData], Any]) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.X = make(adata)

    return apply


def log2_cpm(adata: anndata.AnnData) -> sp.csr_matrix:
    x = adata.X.toarray().astype(np.float64)
    return sp.csr_matrix(np.log2(1e6 * x / x.sum(1, keepdims=True) + 1).astype(np.float32))


def swap_in_row(file: h5py.File) -> None:
    for name in ("X/indices", "X/data"):
        values = file[name][:]
        values[:2] = values[1::-1]
        replace(file, name, values)


def repeat_in_row(file: h5py.File) -> None:
    indices = file["X/indices"][:]
    indices[1] = indices[0]
    replace(file, "X/indices", indices)


def byte_labels(file: h5py.File) -> None:
    values = np.array([TYPES[i % 3].encode() for i in range(N_CELLS)], dtype="S8")
    del file["obs/cell_type"]
    file["obs/cell_type"] = values
    file["obs/cell_type"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    file["obs/donor"].attrs["encoding-type"] = "a-later-invention"


def ensembl(adata: anndata.AnnData) -> None:
    # Real ids and versions of genes among the names; the others keep symbols.
    known = {"INS": "ENSG00000254647.7", "GCG": "ENSG00000115263.15", "SST": "ENSG00000157005.4"}
    adata.var_names = pd.Index([known.get(name, name) for name in adata.var_names], dtype=object)


def few_genes(factor: float) -> Callable[[anndata.AnnData], None]:
    """Leave five genes their names, and multiply their counts."""

    def apply(adata: anndata.AnnData) -> None:
        names = list(adata.var_names[:5]) + [f"unknown_{i}" for i in range(N_GENES - 5)]
        x = adata.X.multiply(np.where(np.arange(N_GENES) < 5, factor, 1))
        adata.X = x.ceil().tocsr().astype(np.float32)
        adata.var_names = pd.Index(names, dtype=object)

    return apply


def mouse(folder: Path) -> Path:
    return save(good_adata(3, species="mouse"), folder)


def mixed_genomes(names: list[str]) -> list[str]:
    return [f"{'GRCh38_' if i < 200 else 'mm10___'}{name}" for i, name in enumerate(names)]

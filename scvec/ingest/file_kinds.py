"""Say what a file is when it is not the h5ad that was asked for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import h5py

__all__ = ["foreign_hdf5", "guess_kind", "is_tenx", "tenx_groups"]

_GZ_FIX = "unpack it first: gunzip FILE"
_ZIP_FIX = "unpack it first; of a zarr store give the folder"
_R_FIX = "in R: zellkonverter::writeH5AD(as.SingleCellExperiment(object), 'out.h5ad')"
_TABLE_FIX = "build an AnnData with cell and gene names from it and write that with write_h5ad()"
# (first bytes, what it is, how to mend it)
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive", _ZIP_FIX),
    (b"BZh", "a bzip2 file", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd FILE"),
    (b"RDX", "an R data file", _R_FIX),
    (b"X\n\x00\x00", "an R .rds file", _R_FIX),
    (b"PAR1", "a parquet table", _TABLE_FIX),
    (
        b"%%MatrixMarket",
        "a Matrix Market file",
        "give the folder that it lies in, with its features.tsv and barcodes.tsv",
    ),
    (b"\x93NUMPY", "a NumPy array", _TABLE_FIX),
    (b"\x0e\x03\x13\x01", "an HDF4 file", "convert it to HDF5 (h5ad) first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch the data with: git lfs pull"),
)


def guess_kind(path: Path, head: bytes) -> tuple[str, str]:
    """Return (what the file looks like, how to mend it) from its first bytes and its name.

    Parameters
    ----------
    head
        At least the first 512 bytes, or the whole of a shorter file.
    """
    if head.startswith(b"\x1f\x8b"):
        if path.suffix.lower() == ".rds":
            return "an R .rds file", _R_FIX
        if path.name.lower().endswith((".tar.gz", ".tgz")):
            return "a tar archive", "unpack it first: tar xf FILE"
        return "a gzip file", _GZ_FIX
    for signature, what, fix in _SIGNATURES:
        if head.startswith(signature):
            return what, fix
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, so a download went wrong", "download the file again"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first: tar xf FILE"
    if not head.strip(b"\x00"):
        return "a run of zero bytes, so a copy or download broke off", "copy or download the file again"
    if b"\x00" not in head:
        line = head.split(b"\n", 1)[0]
        for separator, what in ((b"\t", "a tab-separated text table"), (b",", "a CSV text table")):
            if separator in line:
                return what, "load it with anndata.io.read_csv() (cells as rows), then write_h5ad()"
        return "a text file", "give an AnnData file (.h5ad)"
    return "not HDF5 at all", "give an AnnData file (.h5ad)"


def foreign_hdf5(names: Collection[str]) -> tuple[str, str] | None:
    """Return (what, fix) when the root of an HDF5 file belongs to another format, else None."""
    here = set(names)
    if "matrix" in here and {"row_attrs", "col_attrs"} & here:
        return "a loom file", "convert it: anndata.io.read_loom(FILE, X_name='').write_h5ad('out.h5ad')"
    if "matrix" in here and "obs" not in here:
        return "a 10x Genomics h5 file", "give one that holds a matrix/barcodes, or an .h5ad"
    if "mod" in here:
        return "a MuData file (.h5mu)", "write its RNA part: mudata.read(FILE)['rna'].write_h5ad('out.h5ad')"
    if "assays" in here and ("cell.names" in here or "meta.data" in here):
        return "an h5Seurat file", "in R: SeuratDisk::Convert(FILE, dest = 'h5ad')"
    if not here & {"X", "layers", "raw", "raw.X"} and not {"obs", "var"} <= here:
        shown = ", ".join(sorted(here)[:5]) or "nothing"
        what = f"HDF5 but not an AnnData file (it holds {shown})"
        return what, "give a file written by adata.write_h5ad()"
    return None


def is_tenx(file: h5py.File) -> bool:
    """Return whether an open HDF5 file is one of Cell Ranger's, of version 3 (``matrix``) or 2 (a genome)."""
    return not {"obs", "var", "row_attrs", "mod"} & set(file) and bool(tenx_groups(file))


def tenx_groups(file: h5py.File) -> list[str]:
    """Return the groups of a file that hold a matrix as Cell Ranger writes it."""
    groups = ((str(name), file.get(name)) for name in file)
    return [name for name, item in groups if isinstance(item, h5py.Group) and "barcodes" in item]

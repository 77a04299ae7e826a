"""Write R's own format (R Internals, "Serialization Formats"), so that no R is needed for R's objects."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

_NA = -(2**31)


@dataclass
class R:
    """A value of R with attributes: an array, a list of texts or of values, or None of an S4 object."""

    value: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)
    s4: bool = False


def s4(name: str, package: str, **slots: Any) -> R:
    return R(None, {**slots, "class": R([name], {"package": [package]})}, s4=True)


def named(items: dict[str, Any]) -> R:
    return R(tuple(items.values()), {"names": list(items)})


def factor(values: Any) -> R:
    made = pd.Categorical(values)
    codes = np.where(made.codes < 0, _NA, made.codes + 1).astype(np.int32)
    return R(codes, {"levels": list(made.categories), "class": ["factor"]})


def data_frame(table: pd.DataFrame) -> R:
    columns = {}
    for name, values in table.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            columns[name] = factor(values)
        else:
            columns[name] = list(values) if values.dtype == object else values.to_numpy()
    numbered = isinstance(table.index, pd.RangeIndex)
    names = np.array([_NA, -len(table)], np.int32) if numbered else list(table.index)
    about = {"names": list(columns), "class": ["data.frame"], "row.names": names}
    return R(tuple(columns.values()), about)


def s4_frame(table: pd.DataFrame, *, rownames: bool = True) -> R:
    """Return a DataFrame of S4Vectors."""
    columns = dict(zip(table.columns, data_frame(table).value, strict=True))
    names = list(table.index) if rownames else None
    return s4(
        "DFrame", "S4Vectors", rownames=names, nrows=np.array([len(table)], np.int32), listData=named(columns)
    )


def dense(values: Any, names: list[Any] | None = None) -> R:
    values = np.asarray(values)
    attributes: dict[str, Any] = {"dim": np.array(values.shape, np.int32)}
    if names:
        attributes["dimnames"] = R(tuple(names))
    return R(values.ravel(order="F"), attributes)


def dgc(X: Any, names: list[Any] | None = None) -> R:
    """Return a dgCMatrix."""
    m = sp.csc_matrix(X)
    m.sort_indices()
    slots = {
        "i": m.indices.astype(np.int32),
        "p": m.indptr.astype(np.int32),
        "Dim": np.array(m.shape, np.int32),
        "Dimnames": R(tuple(names or [None, None])),
        "x": m.data.astype(float),
        "factors": R(()),
    }
    return s4("dgCMatrix", "Matrix", **slots)


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray(
            b"X\n" + struct.pack(">iii", 3, 0x040301, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
        )
        self.symbols: dict[str, int] = {}

    def int(self, *values: int) -> None:
        self.out += struct.pack(f">{len(values)}i", *values)

    def text(self, text: str | None) -> None:
        if text is None or text != text:
            self.int(9, -1)
            return
        content = text.encode()
        self.int(0x40009, len(content))
        self.out += content

    def symbol(self, name: str) -> None:
        if name in self.symbols:
            self.int(self.symbols[name] << 8 | 0xFF)
            return
        self.symbols[name] = len(self.symbols) + 1
        self.int(1)
        self.text(name)

    def value(self, item: Any) -> None:
        item = item if isinstance(item, R) else R(item)
        value, attributes = item.value, item.attributes
        if value is None and not item.s4:
            self.int(254)
            return
        flags = (0x200 if attributes else 0) | (0x100 if "class" in attributes else 0)
        if item.s4:
            self.int(25 | flags | 0x10000)
        elif isinstance(value, list):
            self.int(16 | flags, len(value))
            for text in value:
                self.text(text)
        elif isinstance(value, tuple):
            self.int(19 | flags, len(value))
            for each in value:
                self.value(each)
        else:
            value = np.asarray(value)
            kind, dtype = {"b": (10, ">i4"), "i": (13, ">i4"), "u": (13, ">i4"), "f": (14, ">f8")}[
                value.dtype.kind
            ]
            self.int(kind | flags, value.size)
            self.out += value.ravel().astype(dtype).tobytes()
        if attributes:
            for name, each in attributes.items():
                self.int(2 | 0x400)
                self.symbol(name)
                if each is None and item.s4:  # what stands for NULL in a slot
                    self.symbol("\x01NULL\x01")
                else:
                    self.value(each)
            self.int(254)


def save_rds(path: Path, item: Any, *, packed: Any = gzip) -> Path:
    """Write what saveRDS(item, path) writes."""
    writer = _Writer()
    writer.value(item)
    content = bytes(writer.out)
    path.write_bytes(packed.compress(content) if packed else content)
    return path


def save(path: Path, items: dict[str, Any]) -> Path:
    """Write what save(..., file=path) writes."""
    writer = _Writer()
    writer.out[:0] = b"RDX3\n"
    for name, item in items.items():
        writer.int(2 | 0x400)
        writer.symbol(name)
        writer.value(item)
    writer.int(254)
    path.write_bytes(gzip.compress(bytes(writer.out)))
    return path


def seurat(adata: Any, *, version: int, split: int = 1, labels: str = "cell_type") -> R:
    """Return a Seurat object with a PCA and a second assay, as SeuratObject 3, 4 or 5 builds it."""
    cells, genes = list(adata.obs_names), list(adata.var_names)
    X = adata.X.T.tocsc()
    logs = X.log1p()
    about = pd.DataFrame({"vst.mean": np.arange(len(genes), dtype=float)}, index=genes)
    empty = dense(np.zeros((0, 0)))
    if version < 5:
        slots = {
            "counts": dgc(X, [genes, cells]),
            "data": dgc(logs, [genes, cells]),
            "scale.data": dense(np.zeros((2, len(cells))), [genes[:2], cells]),
            "key": ["rna_"],
            "assay.orig": None,
            "var.features": genes[:2],
            "meta.features": data_frame(about),
            "misc": R(()),
        }
        rna = s4("Assay", "SeuratObject" if version == 4 else "Seurat", **slots)
    else:
        parts = np.array_split(np.arange(len(cells)), split)
        names = ["counts"] if split == 1 else [f"counts.s{k}" for k in range(split)]
        layers = {name: dgc(X[:, part]) for name, part in zip(names, parts, strict=True)}
        layers["scale.data"] = dense(np.zeros((2, len(cells))))
        inside = np.array([np.isin(np.arange(len(cells)), part) for part in parts] + [[True] * len(cells)]).T
        known = np.array([[True] * split + [k < 2] for k in range(len(genes))])
        maps = []
        for values, rows in ((inside, cells), (known, genes)):
            one = dense(values, [rows, list(layers)])
            one.attributes["class"] = R(["LogMap"], {"package": ["SeuratObject"]})
            maps.append(one)
        slots = {
            "layers": named(layers),
            "cells": maps[0],
            "features": maps[1],
            "default": np.array([split], np.int32),
            "assay.orig": [],
            "meta.data": data_frame(about.reset_index(drop=True)),
            "misc": R(()),
            "key": ["rna_"],
        }
        rna = s4("Assay5", "SeuratObject", **slots)
    adt = s4(
        "Assay",
        "Seurat",
        counts=dgc(np.ones((2, len(cells))), [["CD3", "CD4"], cells]),
        data=empty,
        key=["adt_"],
    )
    meta = pd.DataFrame(
        {"nCount_RNA": np.asarray(X.sum(axis=0)).ravel(), "cell_type": adata.obs[labels]}, index=cells
    )
    meta["donor"] = [f"d{i % 3}" if i else None for i in range(len(cells))]
    embedding = dense(np.arange(2.0 * len(cells)).reshape(-1, 2), [cells, ["PC_1", "PC_2"]])
    pca = s4("DimReduc", "Seurat", **{"cell.embeddings": embedding, "assay.used": ["RNA"], "key": ["PC_"]})
    ident = factor(adata.obs[labels].astype(str))
    ident.attributes["names"] = cells
    slots = {
        "assays": named({"ADT": adt, "RNA": rna}),
        "meta.data": data_frame(meta),
        "active.assay": ["ADT"],
        "active.ident": ident,
        "graphs": R(()),
        "reductions": named({"pca": pca}),
        "version": R((np.array([version, 0, 0], np.int32),)),
    }
    return s4("Seurat", "SeuratObject", **slots)


def experiment(adata: Any, *, named_by: str = "ranges") -> R:
    """Return a SingleCellExperiment as Bioconductor 3.11 and later build it."""
    cells, genes = list(adata.obs_names), list(adata.var_names)
    X = adata.X.T.tocsc()
    listed = s4("SimpleList", "S4Vectors", listData=named({"logcounts": dgc(X.log1p()), "counts": dgc(X)}))
    assays = s4("SimpleAssays", "SummarizedExperiment", data=listed)
    about = pd.DataFrame({"Symbol": genes, "ID": [f"ENSG{i:011d}" for i in range(len(genes))]})
    rows = s4_frame(about, rownames=False)
    if named_by == "ranges":
        part = s4("PartitioningByEnd", "IRanges", end=np.zeros(len(genes), np.int32), NAMES=genes)
        ranges = s4("CompressedGRangesList", "GenomicRanges", partitioning=part, elementMetadata=rows)
    else:
        ranges = s4(
            "GRanges", "GenomicRanges", ranges=s4("IRanges", "IRanges", NAMES=None), elementMetadata=rows
        )
    reduced = s4(
        "DFrame",
        "S4Vectors",
        nrows=np.array([len(cells)], np.int32),
        listData=named({"PCA": dense(np.ones((len(cells), 3)))}),
    )
    inner = s4(
        "DFrame",
        "S4Vectors",
        nrows=np.array([len(cells)], np.int32),
        listData=named({"reducedDims": reduced}),
    )
    obs = pd.DataFrame({"cell_type": adata.obs["cell_type"].astype(str).to_numpy(object)}, index=cells)
    slots = {
        "int_elementMetadata": s4_frame(pd.DataFrame(index=genes), rownames=False),
        "int_colData": inner,
        "rowRanges": ranges,
        "colData": s4_frame(obs),
        "assays": assays,
        "NAMES": None,
        "elementMetadata": s4_frame(pd.DataFrame(index=genes), rownames=False),
        "metadata": R(()),
    }
    return s4("SingleCellExperiment", "SingleCellExperiment", **slots)

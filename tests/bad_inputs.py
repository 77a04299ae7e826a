"""Bad and odd input files, and what must be said about each.

``CASES`` serves the tests of the reader and of the command line. A case is refused with an exit code and
a message, or goes through with a note. Those with ``needs`` depend on more than the file:

``reference``
    a reference named ``REFERENCE``, ingested from :func:`good_file` with label key ``cell_type``;
``newer-store``, ``locked-store``, ``full-disk``
    the same, and then the store or the disk put into that state.
"""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scvec

__all__ = ["CASES", "REFERENCE", "Case", "good_adata", "good_file"]

REFERENCE = "tiny"
N_CELLS, N_GENES = 60, 300
TYPES = ("alpha", "beta", "ductal")


@dataclass(frozen=True)
class Case:
    """One input and what is to be said about it.

    ``options`` are those of the command, with underscores; ``message`` is a regular expression to find in
    the message (refused) or in a note (noted).
    """

    name: str
    build: Callable[[Path], Path]
    command: Literal["ingest", "query"]
    options: dict[str, str]
    exit_code: int
    message: str
    outcome: Literal["refused", "noted"]
    needs: str = field(default="")


@cache
def gene_symbols(species: str = "human", n: int = N_GENES) -> tuple[str, ...]:
    """Symbols of well measured genes, from the demo data."""
    path = Path(scvec.__file__).parent / "data" / f"baron_{species}.h5ad"
    with h5py.File(path) as file:
        names = file["var"][file["var"].attrs["_index"]].asstr()[:]
        totals = np.bincount(file["X/indices"][:], weights=file["X/data"][:], minlength=len(names))
    return tuple(names[np.argsort(-totals, kind="stable")[:n]])


def good_adata(seed: int = 0, n_cells: int = N_CELLS, species: str = "human") -> anndata.AnnData:
    """Counts of three cell types that raise 30 genes each."""
    rng = np.random.default_rng(seed)
    names = gene_symbols(species)
    rate = np.tile(np.random.default_rng(99).gamma(1.0, 2.0, len(names)) + 0.2, (n_cells, 1))
    kind = np.arange(n_cells) % len(TYPES)
    for k in range(len(TYPES)):
        rate[kind == k, 30 * k : 30 * (k + 1)] *= 8
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([TYPES[k] for k in kind]),
            "donor": [f"d{i % 2}" for i in range(n_cells)],
        },
        index=[f"cell-{i}" for i in range(n_cells)],
    )
    x = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))


def good_file(folder: Path, name: str = "good.h5ad", seed: int = 0) -> Path:
    """Write :func:`good_adata`."""
    return _save(good_adata(seed), folder, name)


def _save(adata: anndata.AnnData, folder: Path, name: str = "case.h5ad") -> Path:
    adata.write_h5ad(folder / name)
    return folder / name


# -- ways to make a case ------------------------------------------------------------------------------


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def _change(change: Callable[[anndata.AnnData], anndata.AnnData | None]) -> Callable[[Path], Path]:
    """Change the AnnData object before it is written."""

    def build(folder: Path) -> Path:
        adata = good_adata()
        changed = change(adata)
        return _save(adata if changed is None else changed, folder)

    return build


def _edit(edit: Callable[[h5py.File], object]) -> Callable[[Path], Path]:
    """Change the file after it is written."""

    def build(folder: Path) -> Path:
        path = good_file(folder, "case.h5ad")
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return build


def _hdf5(name: str, make: Callable[[h5py.File], object]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        with h5py.File(folder / name, "w") as file:
            make(file)
        return folder / name

    return build


def _replace(file: h5py.File, name: str, values: Any) -> None:
    """Put other values into a dataset, attributes kept."""
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def _with_values(file: h5py.File, name: str, change: Callable[[np.ndarray], Any]) -> None:
    values = file[name][:]
    _replace(file, name, values if (changed := change(values)) is None else changed)


def _set(index: int, value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


def _missing_near(folder: Path) -> Path:
    good_file(folder, "pancreas_new.h5ad")
    return folder / "pancreas_nwe.h5ad"


def _zarr(folder: Path) -> Path:
    (folder / "case.zarr").mkdir()
    (folder / "case.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    return folder / "case.zarr"


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "case.h5ad", "w") as archive:
        archive.writestr("x.txt", "x")
    return folder / "case.h5ad"


def _truncated(folder: Path) -> Path:
    path = good_file(folder, "case.h5ad")
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def _damaged_start(folder: Path) -> Path:
    path = good_file(folder, "case.h5ad")
    content = bytearray(path.read_bytes())
    content[5:8] = b"???"  # what an FTP transfer in text mode does to the signature
    path.write_bytes(content)
    return path


def _endless_heap(folder: Path) -> Path:
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


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "case.h5ad")
    return folder / "case.h5ad"


def _external_link(folder: Path) -> Path:
    other = good_file(folder, "other.h5ad")
    path = good_file(folder, "case.h5ad")
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink(str(other), "/X")
    return path


def _virtual(folder: Path) -> Path:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((N_CELLS, N_GENES), np.float32)

    def edit(file: h5py.File) -> None:
        del file["X"]
        layout = h5py.VirtualLayout((N_CELLS, N_GENES), np.float32)
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (N_CELLS, N_GENES), np.float32)
        file.create_virtual_dataset("X", layout)

    return _edit(edit)(folder)


def _external_storage(folder: Path) -> Path:
    (folder / "secret.bin").write_bytes(b"\x00" * 4 * N_CELLS * N_GENES)

    def edit(file: h5py.File) -> None:
        del file["X"]
        outside = [(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("X", (N_CELLS, N_GENES), np.float32, external=outside)

    return _edit(edit)(folder)


def _bomb(file: h5py.File) -> None:
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


def _obs_bomb(file: h5py.File) -> None:
    del file["obs/donor"]
    file["obs"].create_dataset("donor", (10**11,), "i8", chunks=(2**16,), compression="gzip")


def _short_column(file: h5py.File) -> None:
    del file["obs/donor"]
    file["obs/donor"] = np.arange(9)
    file["obs/donor"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _deep(file: h5py.File) -> None:
    group = file["uns"]
    for _ in range(200):
        group = group.create_group("g")


def _unknown_filter(file: h5py.File) -> None:
    del file["X/data"]
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((64,))
    made.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((len(file["X/indices"]),))
    h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, made)


def _csc_lie(folder: Path) -> Path:
    adata = good_adata()
    adata.X = adata.X.tocsc()
    path = _save(adata, folder)
    with h5py.File(path, "r+") as file:
        _with_values(file, "X/indices", _set(7, N_CELLS + 5))
    return path


def _names(change: Callable[[list[str]], list[str]]) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.var_names = pd.Index(change(list(adata.var_names)), dtype=object)

    return apply


def _value(row: int, value: float) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.X.data[adata.X.indptr[row]] = value

    return apply


def _scaled(adata: anndata.AnnData) -> np.ndarray:
    x = np.log1p(adata.X.toarray())
    return ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float32)


def _scale(keep: str = "") -> Callable[[anndata.AnnData], anndata.AnnData | None]:
    def apply(adata: anndata.AnnData) -> anndata.AnnData | None:
        if keep == "raw":
            adata.raw = adata
        elif keep:
            adata.layers[keep] = adata.X.copy()
        if keep == "input":
            adata.layers["scaled"] = _scaled(adata)
            del adata.layers["input"]
        else:
            adata.X = _scaled(adata)
        return None

    return apply


def _labels(make: Callable[[anndata.AnnData], Any]) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.obs["cell_type"] = make(adata)

    return apply


def _features(adata: anndata.AnnData) -> None:
    adata.var["feature_types"] = ["Gene Expression"] * (N_GENES - 5) + ["Antibody Capture"] * 5


def _all_proteins(adata: anndata.AnnData) -> None:
    adata.var["feature_types"] = "Antibody Capture"


def _linear(adata: anndata.AnnData, target: float) -> sp.csr_matrix:
    x = adata.X.toarray().astype(np.float64)
    # Lengths make TPM of counts: without them the multiples of one unit would show.
    x *= np.random.default_rng(5).uniform(0.3, 3, x.shape[1])
    return sp.csr_matrix((target * x / x.sum(1, keepdims=True)).astype(np.float32))


def _set_x(make: Callable[[anndata.AnnData], Any]) -> Callable[[anndata.AnnData], None]:
    def apply(adata: anndata.AnnData) -> None:
        adata.X = make(adata)

    return apply


def _log2_cpm(adata: anndata.AnnData) -> sp.csr_matrix:
    x = adata.X.toarray().astype(np.float64)
    return sp.csr_matrix(np.log2(1e6 * x / x.sum(1, keepdims=True) + 1).astype(np.float32))


def _swap_in_row(file: h5py.File) -> None:
    for name in ("X/indices", "X/data"):
        values = file[name][:]
        values[:2] = values[1::-1]
        _replace(file, name, values)


def _repeat_in_row(file: h5py.File) -> None:
    indices = file["X/indices"][:]
    indices[1] = indices[0]
    _replace(file, "X/indices", indices)


def _byte_labels(file: h5py.File) -> None:
    values = np.array([TYPES[i % 3].encode() for i in range(N_CELLS)], dtype="S8")
    del file["obs/cell_type"]
    file["obs/cell_type"] = values
    file["obs/cell_type"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    file["obs/donor"].attrs["encoding-type"] = "a-later-invention"


def _ensembl(adata: anndata.AnnData) -> None:
    # Real ids and versions of genes among the names; the others keep symbols.
    known = {"INS": "ENSG00000254647.7", "GCG": "ENSG00000115263.15", "SST": "ENSG00000157005.4"}
    adata.var_names = pd.Index([known.get(name, name) for name in adata.var_names], dtype=object)


def _few_genes(adata: anndata.AnnData) -> None:
    names = list(adata.var_names[:5]) + [f"unknown_{i}" for i in range(N_GENES - 5)]
    adata.X = adata.X.multiply(np.where(np.arange(N_GENES) < 5, 0.02, 1)).ceil().tocsr().astype(np.float32)
    adata.var_names = pd.Index(names, dtype=object)


def _mouse(folder: Path) -> Path:
    return _save(good_adata(3, species="mouse"), folder)


def _mixed_genomes(names: list[str]) -> list[str]:
    return [f"{'GRCh38_' if i < 200 else 'mm10___'}{name}" for i, name in enumerate(names)]


# -- the cases ----------------------------------------------------------------------------------------

CASES: list[Case] = []


def _case(
    name: str,
    build: Callable[[Path], Path],
    message: str,
    *,
    command: Literal["ingest", "query"] = "query",
    code: int = 2,
    noted: bool = False,
    needs: str = "",
    **options: str,
) -> None:
    if command == "ingest":
        options.setdefault("label_key", "cell_type")
    outcome: Literal["refused", "noted"] = "noted" if noted else "refused"
    CASES.append(Case(name, build, command, options, 0 if noted else code, message, outcome, needs))


_LIES = "sparse matrix contradicts itself"
# No file, or no h5ad
_case("missing-file", lambda folder: folder / "nowhere.h5ad", "No such file")
_case("missing-file-similar-name", _missing_near, r"Did you mean pancreas_new\.h5ad")
_case("missing-folder", lambda folder: folder / "no" / "new.h5ad", "No such file", command="ingest")
_case("folder", lambda folder: folder, "is a folder")
_case("zarr-store", _zarr, "is a zarr store")
_case("empty-file", _bytes("case.h5ad", b""), r"empty \(0 bytes\)")
_case("text-file", _bytes("case.h5ad", b"hello\nworld\n"), "looks like a text file")
_case("csv-table", _bytes("case.csv", b",INS,GCG\ncell1,3,4\n"), "looks like a CSV text table")
_case("tsv-table", _bytes("case.tsv", b"\tINS\tGCG\ncell1\t3\t4\n"), "looks like a tab-separated")
_case("gzip-file", _bytes("case.h5ad.gz", gzip.compress(b"x" * 999)), "a gzip file(.|\n)*gunzip")
_case("zip-file", _zip, "a zip archive")
_case("rds-file", _bytes("case.rds", gzip.compress(b"X\n\x00")), r"an R \.rds file(.|\n)*writeH5AD")
_case("matrix-market", _bytes("m.mtx", b"%%MatrixMarket matrix\n"), "Matrix Market")
_case("web-page", _bytes("case.h5ad", b"<!DOCTYPE html><html>404"), "web page")
_case("lfs-pointer", _bytes("case.h5ad", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull")
_case("zero-bytes", _bytes("case.h5ad", b"\x00" * 4096), "run of zero bytes")
_case("truncated", _truncated, "truncated")
_case("damaged-start", _damaged_start, "damaged at its very start")
_case("endless-heap", _endless_heap, "texts cannot be read")
_case("pipe", _fifo, "pipe or a device")
_case(
    "loom",
    _hdf5("c.loom", lambda f: (f.create_dataset("matrix", (2, 2), "f4"), f.create_group("row_attrs"))),
    "loom",
)
_case("tenx-h5", _hdf5("filtered.h5", lambda f: f.create_group("matrix/barcodes")), "10x Genomics h5")
_case("mudata", _hdf5("case.h5mu", lambda f: f.create_group("mod/rna")), "MuData")
_case(
    "other-hdf5",
    _hdf5("case.h5", lambda f: f.create_dataset("weights", (2,), "f4")),
    "HDF5 but not an AnnData",
)
# Parts missing
_case("no-x", _edit(lambda f: f.__delitem__("X")), "There is no X")
_case("no-obs", _edit(lambda f: f.__delitem__("obs")), "no obs table")
_case("no-var", _edit(lambda f: f.__delitem__("var")), "no var table")
_case("no-indptr", _edit(lambda f: f["X"].__delitem__("indptr")), "unknown kind")
_case("zero-cells", _change(lambda a: a[:0].copy()), "no cells")
_case("zero-genes", _change(lambda a: a[:, :0].copy()), "no genes")
_case(
    "dangling-link",
    _edit(lambda f: (f["obs"].__delitem__("_index"), f["obs"].__setitem__("_index", h5py.SoftLink("/none")))),
    "damaged",
)
# Values that cannot be
_case("nan", _change(_value(4, np.nan)), "1 NaN or infinite values, the first in cell 'cell-4'")
_case("infinite", _change(_value(9, np.inf)), "1 NaN or infinite values, the first in cell 'cell-9'")
_case(
    "negative-counts", _change(_value(2, -3)), r"1 negative counts \(down to -3\), the first in cell 'cell-2'"
)
_case("scaled", _change(_scale()), r"scaled or corrected values(.|\n)*before sc\.pp\.scale")
_case("scaled-layer-given", _change(_scale("input")), "scaled(.|\n)*--layer X", layer="scaled")
_case(
    "layer-missing",
    _change(_scale("spliced")),
    "no layer 'splicd'(.|\n)*Did you mean 'spliced'",
    layer="splicd",
)
_case("all-zero", _change(_set_x(lambda a: a.X * 0)), "Every value is zero")
_case(
    "text-values", _edit(lambda f: _replace(f, "X/data", np.array([b"x"] * len(f["X/data"])))), "not numbers"
)
_case(
    "complex-values",
    _edit(lambda f: _replace(f, "X/data", f["X/data"][:] + 1j)),
    "complex64 values, not numbers",
)
_case(
    "only-peaks", _change(_names(lambda names: [f"chr1:{i}00-{i}99" for i in range(len(names))])), "is a gene"
)
_case("only-proteins", _change(_all_proteins), "None of the 300 features is a gene")
# Pointers that lie
_case(
    "indptr-start", _edit(lambda f: _with_values(f, "X/indptr", _set(0, 2))), f"{_LIES}: indptr starts at 2"
)
_case(
    "indptr-falls",
    _edit(lambda f: _with_values(f, "X/indptr", _set(5, 10**6))),
    f"{_LIES}: indptr is not asc",
)
_case(
    "indptr-ends-late",
    _edit(lambda f: _with_values(f, "X/indptr", _set(-1, 10**9))),
    f"{_LIES}: indptr ends at",
)
_case(
    "indptr-short", _edit(lambda f: _with_values(f, "X/indptr", lambda v: v[:-1])), f"{_LIES}: indptr has 60"
)
_case(
    "indptr-float",
    _edit(lambda f: _with_values(f, "X/indptr", lambda v: v * 1.0)),
    f"{_LIES}: indptr holds float",
)
_case(
    "indices-beyond",
    _edit(lambda f: _with_values(f, "X/indices", _set(3, 300))),
    "index 300 is outside 0 to 299",
)
_case("indices-negative", _edit(lambda f: _with_values(f, "X/indices", _set(3, -1))), "index -1 is outside")
_case("data-short", _edit(lambda f: _with_values(f, "X/data", lambda v: v[:-4])), f"{_LIES}: .* values but")
_case("csc-indices-beyond", _csc_lie, "index 65 is outside 0 to 59")
_case(
    "shape-disagrees",
    _edit(lambda f: f["X"].attrs.__setitem__("shape", (60, 301))),
    "60 x 301, but there are 60",
)
_case("column-length", _edit(_short_column), "column 'donor' has 9 values for 60")
# Files that reach out, or claim too much
_case("external-link", _external_link, r"links to another file .*other\.h5ad")
_case("external-storage", _external_storage, r"outside the file, in .*secret\.bin")
_case("virtual-dataset", _virtual, "virtual dataset takes its values from other files")
_case("matrix-bomb", _edit(_bomb), "claims 4.0 TB but stores only 0 bytes")
_case("obs-bomb", _edit(_obs_bomb), "claims 800.0 GB but stores only 0 bytes")
_case("circle-of-groups", _edit(lambda f: f["uns"].__setitem__("loop", f["/"])), "A group contains itself")
_case("deep-groups", _edit(_deep), "nested more than 64 deep")
_case("unknown-filter", _edit(_unknown_filter), "filter that is not installed")
# Options
_case("memory-unreadable", good_file, "Cannot read 'lots' as an amount of memory", memory="lots")
_case("memory-tiny", good_file, "of memory", memory="1K", code=6)
_case("output-is-input", good_file, "The output is the input", output="good.h5ad")
_case("output-folder-missing", good_file, "folder of the output does not exist", output="no/out.h5ad")
# Labels
_case(
    "label-missing",
    good_file,
    "no column 'celltypist'(.|\n)*Columns: cell_type, donor",
    command="ingest",
    label_key="celltypist",
)
_case("label-misspelt", good_file, "Did you mean 'cell_type'", command="ingest", label_key="Cell.Type")
_case("one-label", _change(_labels(lambda a: "beta")), "All cells have one label, 'beta'", command="ingest")
_case(
    "no-labels",
    _change(_labels(lambda a: pd.Categorical([None] * a.n_obs, TYPES))),
    "No cell has a label",
    command="ingest",
)
_case(
    "names-as-labels",
    _change(_labels(lambda a: list(a.obs_names))),
    "60 different labels for 60 cells",
    command="ingest",
)
_case(
    "numeric-labels",
    _change(_labels(lambda a: np.arange(a.n_obs) % 3)),
    "holds numbers",
    command="ingest",
    noted=True,
)
_case(
    "gaps-in-labels",
    _change(_labels(lambda a: [None if i < 6 else TYPES[i % 3] for i in range(a.n_obs)])),
    "6 cells have no label",
    command="ingest",
    noted=True,
)
_case(
    "spaces-in-labels",
    _change(_labels(lambda a: [f" {TYPES[i % 3]} " for i in range(a.n_obs)])),
    "removed spaces",
    command="ingest",
    noted=True,
)
_case(
    "byte-labels-and-unreadable-column",
    _edit(_byte_labels),
    r"left out 1 column\(s\) .*donor",
    command="ingest",
    noted=True,
)
# Odd but usable
_case(
    "duplicate-cells",
    _change(lambda a: setattr(a, "obs_names", ["x", "x", *a.obs_names[2:]])),
    "1 cell names occur more than once: made unique",
    noted=True,
)
_case(
    "duplicate-genes",
    _change(_names(lambda n: [n[0], n[0], *n[2:]])),
    "1 gene names occur more than once",
    noted=True,
)
_case("proteins-mixed-in", _change(_features), "Dropped 5 features .*Antibody Capture", noted=True)
_case(
    "totalseq-names",
    _change(_names(lambda n: [*n[:-2], "CD3_TotalSeqB", "ERCC-00002"])),
    "Dropped 2 features that are no genes",
    noted=True,
)
_case("two-genomes", _change(_names(_mixed_genomes)), "kept those of GRCh38", noted=True)
_case("unsorted-row", _edit(_swap_in_row), "Sorted the gene numbers within 1 cells", noted=True)
_case("repeated-entry", _edit(_repeat_in_row), "Added up 1 values", noted=True)
_case("scaled-with-raw", _change(_scale("raw")), "raw holds raw counts", noted=True)
_case("scaled-with-layer", _change(_scale("counts")), "layers/counts holds raw counts", noted=True)
_case("tpm", _change(_set_x(lambda a: _linear(a, 1e6))), "linear values that are no counts", noted=True)
_case("log2-cpm", _change(_set_x(_log2_cpm)), r"log2\(x \+ 1\) values of 1e\+06 counts per cell", noted=True)
_case(
    "empty-cells",
    _change(_set_x(lambda a: sp.diags((np.arange(60) > 2) * 1.0).dot(a.X).tocsr())),
    "3 cells have no counts",
    noted=True,
)
# What the store decides
_case(
    "ensembl-versions", _change(_ensembl), "genes matched", noted=True, needs="reference", reference=REFERENCE
)
_case("mouse-on-human", _mouse, "ortholog", noted=True, needs="reference", reference=REFERENCE)
_case("five-genes-match", _change(_few_genes), "genes match", needs="reference", reference=REFERENCE)
_case(
    "few-neighbours",
    good_file,
    "neighbo",
    noted=True,
    needs="reference",
    reference=REFERENCE,
    n_neighbors="500",
)
_case("unknown-reference", good_file, f"(?i)did you mean '?{REFERENCE}", needs="reference", reference="tinny")
_case("newer-store", good_file, "(?i)newer", code=3, needs="newer-store", reference=REFERENCE)
_case("locked-store", good_file, "(?i)process", command="ingest", code=7, needs="locked-store")
_case("full-disk", good_file, "(?i)room", code=6, needs="full-disk", reference=REFERENCE, output="out.h5ad")

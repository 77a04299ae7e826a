"""The cases: each bad file, and the expected message."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from bad_inputs import builders as make
from bad_inputs.cells import TYPES, good_file

__all__ = ["CASES", "REFERENCE", "Case"]

REFERENCE = "tiny"


@dataclass(frozen=True)
class Case:
    """One input and the expected message.

    ``options`` are those of the command, with underscores; ``code`` is that of the error (refused);
    ``message`` is a regular expression to find in the error, names only, or in a note (noted).
    """

    name: str
    build: Callable[[Path], Path]
    command: Literal["ingest", "query"]
    options: dict[str, str]
    exit_code: int
    code: str
    message: str
    outcome: Literal["refused", "noted"]
    needs: str = field(default="")


CASES: list[Case] = []


def _case(
    name: str,
    build: Callable[[Path], Path],
    said: str,
    *,
    names: str = "",
    command: Literal["ingest", "query"] = "query",
    code: int = 2,
    noted: bool = False,
    needs: str = "",
    **options: str,
) -> None:
    if command == "ingest":
        options.setdefault("label_key", "cell_type")
    outcome: Literal["refused", "noted"] = "noted" if noted else "refused"
    told = ("", said) if noted else (said, names)
    CASES.append(Case(name, build, command, options, 0 if noted else code, *told, outcome, needs))


# No file, or no h5ad
_case("missing-file", lambda folder: folder / "nowhere.h5ad", "file-not-found")
_case("missing-file-similar-name", make.missing_near, "file-not-found", names=r"pancreas_new\.h5ad")
_case(
    "missing-folder",
    lambda folder: folder / "no" / "new.h5ad",
    "file-not-found",
    names="no does not exist$",
    command="ingest",
)
_case("folder", lambda folder: folder, "not-a-file", names="folder")
_case("tenx-folder", make.tenx_folder, "wrong-format", names="barcodes.tsv")
_case("zarr-store", make.zarr, "wrong-format", names="obs")
_case("empty-file", make.raw("case.h5ad", b""), "empty-file")
_case("text-file", make.raw("case.h5ad", b"hello\nworld\n"), "wrong-format", names="text file")
_case("csv-table", make.raw("case.csv", b",INS,GCG\na,3,4\nb,1,2\nc,1,x\n"), "input", names="line 4")
_case("tsv-table", make.raw("case.tsv", b"\tINS\tGCG\na\t3\t4\nb\t3\n"), "input", names="line 3")
_case("gzip-file", make.raw("case.h5ad.gz", gzip.compress(b"x" * 999)), "wrong-format", names="gunzip")
_case("zip-file", make.zipped, "wrong-format", names="zip archive")
_case("rds-file", make.raw("case.rds", gzip.compress(b"X\n\x00")), "damaged-file", names="damaged")
_case("matrix-market", make.raw("m.mtx", b"%%MatrixMarket matrix\n"), "wrong-format", names="Matrix Market")
_case("web-page", make.raw("case.h5ad", b"<!DOCTYPE html><html>404"), "wrong-format", names="web page")
_case(
    "lfs-pointer",
    make.raw("case.h5ad", b"version https://git-lfs.github.com/spec/v1\n"),
    "wrong-format",
    names="git lfs pull",
)
_case("zero-bytes", make.raw("case.h5ad", b"\x00" * 4096), "wrong-format", names="zero bytes")
_case("truncated", make.truncated, "damaged-file", names="truncated")
_case("damaged-start", make.damaged_start, "damaged-file", names="start")
_case("endless-heap", make.endless_heap, "damaged-file", names="texts")
_case("pipe", make.fifo, "not-a-file", names="pipe")
_case(
    "loom",
    make.hdf5("c.loom", lambda f: (f.create_dataset("matrix", (2, 2), "f4"), f.create_group("row_attrs"))),
    "wrong-format",
    names="loom",
)
_case(
    "tenx-h5",
    make.hdf5("filtered.h5", lambda f: f.create_group("matrix/barcodes")),
    "damaged-file",
    names="data and",
)
_case("mudata", make.hdf5("case.h5mu", lambda f: f.create_group("mod/rna")), "wrong-format", names="MuData")
_case(
    "other-hdf5",
    make.hdf5("case.h5", lambda f: f.create_dataset("weights", (2,), "f4")),
    "wrong-format",
    names="HDF5",
)
# Parts missing
_case("no-x", make.edited(lambda f: f.__delitem__("X")), "no-values", names="X")
_case("no-obs", make.edited(lambda f: f.__delitem__("obs")), "wrong-format", names="obs")
_case("no-var", make.edited(lambda f: f.__delitem__("var")), "wrong-format", names="var")
_case("no-indptr", make.edited(lambda f: f["X"].__delitem__("indptr")), "damaged-file", names="indptr")
_case("zero-cells", make.changed(lambda a: a[:0].copy()), "no-cells")
_case("zero-genes", make.changed(lambda a: a[:, :0].copy()), "no-genes")
_case(
    "dangling-link",
    make.edited(
        lambda f: (f["obs"].__delitem__("_index"), f["obs"].__setitem__("_index", h5py.SoftLink("/none")))
    ),
    "damaged-file",
)
# Values that cannot be
_case("nan", make.changed(make.value(4, np.nan)), "values-not-finite", names="'cell-4'")
_case("infinite", make.changed(make.value(9, np.inf)), "values-not-finite", names="'cell-9'")
_case(
    "negative-counts",
    make.changed(make.value(2, -3)),
    "values-not-counts",
    names=r"-3(.|\n)*'cell-2'",
)
_case("scaled", make.changed(make.scale()), "values-not-counts", names=r"sc\.pp\.scale")
_case(
    "scaled-layer-given",
    make.changed(make.scale("input")),
    "values-not-counts",
    names="--layer X",
    layer="scaled",
)
_case(
    "layer-missing",
    make.changed(make.scale("spliced")),
    "unknown-layer",
    names=r"'splicd'(.|\n)*'spliced'",
    layer="splicd",
)
_case("all-zero", make.changed(make.set_x(lambda a: a.X * 0)), "no-values", names="zero")
_case(
    "text-values",
    make.edited(lambda f: make.replace(f, "X/data", np.array([b"x"] * len(f["X/data"])))),
    "wrong-format",
    names="text",
)
_case(
    "complex-values",
    make.edited(lambda f: make.replace(f, "X/data", f["X/data"][:] + 1j)),
    "wrong-format",
    names="complex64",
)
_case(
    "only-peaks",
    make.changed(make.names(lambda names: [f"chr1:{i}00-{i}99" for i in range(len(names))])),
    "no-genes",
    names="chr1:000-099",
)
_case(
    "only-proteins",
    make.changed(make.all_proteins),
    "no-genes",
    names="Antibody Capture",
)
# Pointers that lie
_case(
    "indptr-start",
    make.edited(lambda f: make.with_values(f, "X/indptr", make.put(0, 2))),
    "damaged-file",
    names="indptr starts at 2",
)
_case(
    "indptr-falls",
    make.edited(lambda f: make.with_values(f, "X/indptr", make.put(5, 10**6))),
    "damaged-file",
    names="indptr is not",
)
_case(
    "indptr-ends-late",
    make.edited(lambda f: make.with_values(f, "X/indptr", make.put(-1, 10**9))),
    "damaged-file",
    names="indptr ends at",
)
_case(
    "indptr-short",
    make.edited(lambda f: make.with_values(f, "X/indptr", lambda v: v[:-1])),
    "damaged-file",
    names="indptr has 60",
)
_case(
    "indptr-float",
    make.edited(lambda f: make.with_values(f, "X/indptr", lambda v: v * 1.0)),
    "damaged-file",
    names="indptr holds float",
)
_case(
    "indices-beyond",
    make.edited(lambda f: make.with_values(f, "X/indices", make.put(3, 300))),
    "damaged-file",
    names=r"300(.|\n)*299",
)
_case(
    "indices-negative",
    make.edited(lambda f: make.with_values(f, "X/indices", make.put(3, -1))),
    "damaged-file",
    names="-1",
)
_case(
    "data-short",
    make.edited(lambda f: make.with_values(f, "X/data", lambda v: v[:-4])),
    "damaged-file",
    names="values",
)
_case("csc-indices-beyond", make.csc_lie, "damaged-file", names=r"65(.|\n)*59")
_case(
    "shape-disagrees",
    make.edited(lambda f: f["X"].attrs.__setitem__("shape", (60, 301))),
    "damaged-file",
    names="60 x 301",
)
_case("column-length", make.edited(make.short_column), "damaged-file", names="'donor' has 9")
# Files that reach out, or claim too much
_case("external-link", make.external_link, "file-links-outside", names=r"other\.h5ad")
_case("external-storage", make.external_storage, "file-links-outside", names=r"secret\.bin")
_case("virtual-dataset", make.virtual, "file-links-outside", names="virtual dataset")
_case("matrix-bomb", make.edited(make.bomb), "damaged-file", names="4.0 TB")
_case("obs-bomb", make.edited(make.obs_bomb), "damaged-file", names="800.0 GB")
_case(
    "circle-of-groups",
    make.edited(lambda f: f["uns"].__setitem__("loop", f["/"])),
    "damaged-file",
    names="group",
)
_case("deep-groups", make.edited(make.deep), "damaged-file", names="64")
_case("unknown-filter", make.edited(make.unknown_filter), "damaged-file", names="filter")
# Options
_case("memory-unreadable", good_file, "option-out-of-range", names="'lots'", memory="lots")
_case("memory-tiny", good_file, "out-of-memory", names="1.0 kB", memory="1K", code=6)
_case("output-is-input", good_file, "output-is-input", output="good.h5ad")
_case("output-folder-missing", good_file, "output-not-writable", output="no/out.h5ad")
# Labels
_case(
    "label-missing",
    good_file,
    "unknown-column",
    names=r"'celltypist'(.|\n)*cell_type, donor",
    command="ingest",
    label_key="celltypist",
)
_case(
    "label-misspelt",
    good_file,
    "unknown-column",
    names="'cell_type'",
    command="ingest",
    label_key="Cell.Type",
)
_case(
    "one-label",
    make.changed(make.labels(lambda a: "beta")),
    "one-label",
    names="'beta'",
    command="ingest",
    needs="reference",  # another file may hold other labels
)
_case(
    "no-labels",
    make.changed(make.labels(lambda a: pd.Categorical([None] * a.n_obs, TYPES))),
    "no-labels",
    command="ingest",
)
_case(
    "names-as-labels",
    make.changed(make.labels(lambda a: list(a.obs_names))),
    "too-many-labels",
    names="60",
    command="ingest",
)
_case(
    "numeric-labels",
    make.changed(make.labels(lambda a: np.arange(a.n_obs) % 3)),
    "holds numbers",
    command="ingest",
    noted=True,
)
_case(
    "gaps-in-labels",
    make.changed(make.labels(lambda a: [None if i < 6 else TYPES[i % 3] for i in range(a.n_obs)])),
    "6 cells without a label",
    command="ingest",
    noted=True,
)
_case(
    "spaces-in-labels",
    make.changed(make.labels(lambda a: [f" {TYPES[i % 3]} " for i in range(a.n_obs)])),
    "removed spaces",
    command="ingest",
    noted=True,
)
_case(
    "byte-labels-and-unreadable-column",
    make.edited(make.byte_labels),
    r"ignored 1 unreadable column: donor",
    command="ingest",
    noted=True,
)
# Odd but usable
_case(
    "duplicate-cells",
    make.changed(lambda a: setattr(a, "obs_names", ["x", "x", *a.obs_names[2:]])),
    "made 1 repeated cell name unique",
    noted=True,
)
_case(
    "duplicate-genes",
    make.changed(make.names(lambda n: [n[0], n[0], *n[2:]])),
    "summed the values of 1 repeated gene name",
    noted=True,
)
_case(
    "proteins-mixed-in",
    make.changed(make.features),
    "dropped 5 non-gene features .*Antibody",
    noted=True,
)
_case(
    "totalseq-names",
    make.changed(make.names(lambda n: [*n[:-2], "CD3_TotalSeqB", "ERCC-00002"])),
    "dropped 2 non-gene features",
    noted=True,
)
_case("two-genomes", make.changed(make.names(make.mixed_genomes)), "kept the genes of GRCh38", noted=True)
_case("unsorted-row", make.edited(make.swap_in_row), "sorted the gene numbers within 1 cell", noted=True)
_case("repeated-entry", make.edited(make.repeat_in_row), "summed 1 value stored twice", noted=True)
_case("scaled-with-raw", make.changed(make.scale("raw")), "raw holds raw counts", noted=True)
_case("scaled-with-layer", make.changed(make.scale("counts")), "layers/counts holds raw counts", noted=True)
_case(
    "tpm",
    make.changed(make.set_x(lambda a: make.linear(a, 1e6))),
    "linear values, not counts",
    noted=True,
)
_case(
    "log2-cpm",
    make.changed(make.set_x(make.log2_cpm)),
    r"log2\(x \+ 1\) values of 1,000,000 counts per cell",
    noted=True,
)
_case(
    "empty-cells",
    make.changed(make.set_x(lambda a: sp.diags((np.arange(60) > 2) * 1.0).dot(a.X).tocsr())),
    "3 cells without counts",
    noted=True,
)
# What the store decides
_on_store = {"needs": "reference", "reference": REFERENCE}
_case(
    "ensembl-versions",
    make.changed(make.ensembl),
    r"300 of 300 genes matched \(100\.0% of counts\): .*, human",
    noted=True,
    **_on_store,
)
_case(
    "mouse-on-human",
    make.mouse,
    "mouse genes were mapped to human through orthologs",
    noted=True,
    **_on_store,
)
_case(
    "five-genes-match",
    make.changed(make.few_genes(0.02)),
    "genes-not-recognised",
    names=r"5 of 300 genes(.|\n)*'unknown_\d+'(.|\n)*--force",
    **_on_store,
)
_case(
    "five-genes-match-and-hold-the-counts",
    make.changed(make.few_genes(50)),
    "genes-not-recognised",
    names=r"5 of 300 genes(.|\n)*--force",
    **_on_store,
)
_case(
    "few-neighbours",
    good_file,
    "n_neighbors reduced from 500 to 60",
    noted=True,
    n_neighbors="500",
    **_on_store,
)
_case(
    "unknown-reference", good_file, "unknown-reference", names="'tiny'", needs="reference", reference="tinny"
)
_case("newer-store", good_file, "store-format", names="install scvec", code=3, needs="newer-store")
_case(
    "locked-store",
    good_file,
    "locked",
    names=r"process \d+ on",
    command="ingest",
    code=7,
    needs="locked-store",
)
_case("full-disk", good_file, "disk-full", code=6, needs="full-disk", output="out.h5ad")

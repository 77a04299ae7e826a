"""The shapes in which people have cells: how each is made of real cells, and what must come of it."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from baron_parts import DATA
from r_parts import experiment, save_rds, seurat

__all__ = ["SHAPES", "Shape", "query_cells", "reference_cells"]

#: Genes with most counts, enough that the values are taken for those of whole cells.
N_GENES = 10_500
_TYPES = ("alpha", "beta", "delta", "ductal", "acinar", "gamma", "endothelial", "activated_stellate")


@cache
def _cells(first: bool) -> anndata.AnnData:
    adata = anndata.read_h5ad(DATA)
    most = np.sort(np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel(), kind="stable")[:N_GENES])
    donors = ["human1", "human2"] if first else ["human3", "human4"]
    kept = adata.obs["donor"].isin(donors) & adata.obs["cell_type"].isin(_TYPES)
    table = adata.obs[kept]
    number = table.groupby("cell_type", observed=True).cumcount()
    # Every donor, more of types that differ little.
    step = table.groupby("cell_type", observed=True)["donor"].transform("size") // (40 if first else 20) + 1
    rows = np.flatnonzero(kept)[(number % step == 0).to_numpy()]
    adata = adata[rows, most].copy()
    obs = adata.obs[["cell_type", "donor"]].astype(str)
    x = adata.X.tocsr().astype(np.float32)
    x.sort_indices()
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=adata.var_names))


def reference_cells() -> anndata.AnnData:
    """Return the labelled cells, of donors 1 and 2."""
    return _cells(True).copy()


def query_cells() -> anndata.AnnData:
    """Return the cells to annotate, of donors 3 and 4."""
    return _cells(False).copy()


@dataclass(frozen=True)
class Shape:
    """One way of having cells.

    Attributes
    ----------
    make
        Takes an empty folder and the cells; returns a path, or an AnnData object.
    code
        Of the error; empty where the cells are to be annotated as the plain ones are.
    says
        Part of a note or of the error.
    options
        Of :class:`scvec.QueryOptions`.
    of
        Smallest accuracy, as a fraction of that of the plain cells. Less than 0.99 where information is lost.
    no_file
        Whether such an object is no file, so that the command line never sees it.
    quick
        Whether it is tested each time.
    """

    name: str
    make: Callable[[Path, anndata.AnnData], Any]
    code: str = ""
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    of: float = 0.99
    no_file: bool = False
    quick: bool = False


# Values


def per_cell(x: Any, total: float = 1e4) -> sp.csr_matrix:
    made = sp.csr_matrix(sp.diags(total / np.asarray(x.sum(axis=1)).ravel()) @ x)
    return made.astype(np.float32)


def each(x: Any, of: Callable[[Any], Any]) -> sp.csr_matrix:
    made = sp.csr_matrix(x, copy=True)
    made.data = of(made.data.astype(np.float64)).astype(np.float32)
    made.eliminate_zeros()
    return made


def log1p(x: Any) -> sp.csr_matrix:
    return each(per_cell(x), np.log1p)


def log2_cpm(x: Any) -> sp.csr_matrix:
    return each(per_cell(x, 1e6), lambda v: np.log2(v + 1))


def tpm(x: Any) -> sp.csr_matrix:
    lengths = np.random.default_rng(5).gamma(2, 1, x.shape[1]) + 0.1
    return per_cell(x @ sp.diags(1 / lengths), 1e6)


def scaled(x: Any) -> np.ndarray:
    dense = log1p(x).toarray()
    sd = dense.std(axis=0)
    return np.clip((dense - dense.mean(axis=0)) / np.where(sd > 0, sd, 1), -10, 10).astype(np.float32)


def with_values(of: Callable[[Any], Any]) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        cells.X = of(cells.X)
        return cells

    return make


def mixed(*scales: Callable[[Any], Any], apart: bool = False) -> Callable[[Path, anndata.AnnData], Any]:
    """Let samples be on scales of their own, cell by cell or one sample after the other."""

    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        made = [scale(cells.X).tocsr() for scale in scales]
        k = len(made)
        which = [i * k // cells.n_obs if apart else i % k for i in range(cells.n_obs)]
        cells.X = sp.vstack([made[w][i] for i, w in enumerate(which)], format="csr")
        return cells

    return make


def missing(x: Any) -> Any:
    made = sp.csr_matrix(x, copy=True)
    made.data[len(made.data) // 2] = np.nan
    return made


def placed(
    x: Callable[[Any], Any] | None, raw: Callable[[Any], Any] | None = None, **layers: Callable[[Any], Any]
) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    """Put values where people put them."""

    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        counts = cells.X
        made = anndata.AnnData(None if x is None else x(counts), obs=cells.obs, var=cells.var)
        for name, of in layers.items():
            made.layers[name] = of(counts)
        if raw is not None:
            made.raw = anndata.AnnData(raw(counts), obs=cells.obs[[]], var=cells.var)
        return made

    return make


def same(x: Any) -> Any:
    return x


def part(fraction: float) -> Callable[[Any], Any]:
    return lambda x: each(x, lambda v: np.floor(v * fraction))


# Names


@cache
def _ids() -> tuple[dict[str, str], dict[str, str], dict[str, str], dict[str, str]]:
    """Return symbol -> Ensembl, Entrez and HGNC id, and a previous symbol, of the genes that have one."""
    from scvec.model.resolvers import snapshot_resolver

    resolver = snapshot_resolver()
    table = resolver._names["human"].exact
    found: list[dict[str, str]] = []
    for kind in ("ensembl", "entrez", "previous"):
        of_gene: dict[str, str] = {}
        for name, genes in table[kind].items():
            if len(genes) == 1:
                of_gene.setdefault(genes[0], name)
        found.append(of_gene)
    names = list(_cells(False).var_names)
    genes = dict(zip(names, resolver.resolve(names, "human").gene_ids, strict=True))
    ensembl, entrez, previous = ({n: of[g] for n, g in genes.items() if g in of} for of in found)
    return ensembl, entrez, {n: g for n, g in genes.items() if g is not None}, previous


def spelled(spell: Callable[[int, str], str | None]) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    """Name genes otherwise; genes without such a name are left out."""

    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        names = [spell(i, name) for i, name in enumerate(cells.var_names)]
        cells = cells[:, [name is not None for name in names]].copy()
        cells.var_names = [name for name in names if name is not None]
        return cells

    return make


def ensembl(form: str) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    return spelled(
        lambda i, n: form.format(id=_ids()[0][n], name=n, v=i % 19 + 1) if n in _ids()[0] else None
    )


def entrez(form: str) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    return spelled(lambda i, n: form.format(_ids()[1][n]) if n in _ids()[1] else None)


def numbered(
    numbers: Callable[[int], Sequence[Any]], **columns: Callable[[list[str]], Any]
) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    """Let var hold row numbers, and names in a column, if anywhere."""

    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        names = list(cells.var_names)
        index = [str(n) for n in numbers(cells.n_vars)]
        cells.var = pd.DataFrame({c.replace("__", " "): of(names) for c, of in columns.items()}, index=index)
        return cells

    return make


def chosen_genes(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
    """Keep 3,000 genes, which are numbered by what they were among all."""
    some = np.sort(np.random.default_rng(1).permutation(cells.n_vars)[:3000])
    cells = cells[:, some].copy()
    cells.var_names = [str(i) for i in some]
    return cells


def raw_numbered(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
    counts, var = cells.X.copy(), pd.DataFrame(index=[str(i) for i in range(cells.n_vars)])
    cells.X = log1p(counts)
    cells.raw = anndata.AnnData(counts, obs=cells.obs[[]], var=var)
    return cells


def with_rows(*names: str) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    """Put rows after the genes that hold more counts than these."""

    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        more = sp.csr_matrix(np.full((cells.n_obs, len(names)), 2000, np.float32))
        var = pd.DataFrame(index=[*cells.var_names, *names])
        return anndata.AnnData(sp.hstack([cells.X, more], format="csr"), obs=cells.obs, var=var)

    return make


def two_genomes(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
    names = [f"{genome}_{name}" for genome in ("GRCh38", "mm10") for name in cells.var_names]
    x = sp.hstack([cells.X, each(cells.X, lambda v: np.floor(v / 20))], format="csr")
    return anndata.AnnData(x, obs=cells.obs, var=pd.DataFrame(index=names))


def transposed(names: str) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        turned = anndata.AnnData(cells.X.T.tocsr(), obs=cells.var, var=cells.obs)
        if names == "numbered":
            turned.var_names = [str(i) for i in range(turned.n_vars)]
        elif names == "prefixed":
            turned.obs_names = [f"hg19_{name}" for name in turned.obs_names]
        return turned

    return make


# Samples


def joined(n: int, fraction: float) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    """Join samples of which each but the first lacks some genes."""

    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        rng = np.random.default_rng(2)
        parts = []
        for k in range(n):
            there = rng.random(cells.n_vars) >= (fraction if k else 0)
            one = cells[k::n, there].copy()
            one.obs["sample"] = f"s{k}"
            parts.append(one)
        both = anndata.concat(parts, join="outer")
        return both[cells.obs_names].copy()

    return make


def joined_dense(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
    """Join two dense samples, which leaves NaN in the genes that one of them lacks."""
    cells.X = cells.X.toarray()
    return anndata.concat([cells[::2], cells[1::2, : N_GENES // 2]], join="outer")


# Objects and files


def changed(how: Callable[[anndata.AnnData], Any]) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    def make(_: Path, cells: anndata.AnnData) -> anndata.AnnData:
        made = how(cells)
        return made if isinstance(made, anndata.AnnData) else cells

    return make


def repeated_names(cells: anndata.AnnData) -> None:
    cells.obs_names = [f"c{i // 2}" for i in range(cells.n_obs)]


def odd_obs(cells: anndata.AnnData) -> None:
    n = cells.n_obs
    cells.obs["batch"] = [f"b{i}" for i in range(n)]
    cells.obs["sample"] = np.nan
    cells.obs["flag"] = pd.array([True, None] * (n // 2) + [True] * (n % 2), dtype="boolean")
    cells.obs["n"] = pd.array([1, None] * (n // 2) + [1] * (n % 2), dtype="Int64")
    cells.obs["donor"] = cells.obs["donor"].astype("category")


def empty_cells(cells: anndata.AnnData) -> anndata.AnnData:
    blank = anndata.AnnData(sp.csr_matrix((3, cells.n_vars), dtype=np.float32), var=cells.var)
    blank.obs_names = ["e1", "e2", "e3"]
    return anndata.concat([cells, blank], join="outer")


def backed(*, raw: bool = False, view: bool = False) -> Callable[[Path, anndata.AnnData], anndata.AnnData]:
    def make(folder: Path, cells: anndata.AnnData) -> anndata.AnnData:
        if raw:
            cells.raw, cells.X = cells.copy(), scaled(cells.X)
        cells.write_h5ad(folder / "b.h5ad")
        opened = anndata.read_h5ad(folder / "b.h5ad", backed="r")
        return opened[np.arange(cells.n_obs)] if view else opened

    return make


def written(**how: Any) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, cells: anndata.AnnData) -> Path:
        cells.write_h5ad(folder / "c.h5ad", **how)
        return folder / "c.h5ad"

    return make


def zarr(folder: Path, cells: anndata.AnnData) -> Path:
    cells.write_zarr(folder / "c.zarr")
    return folder / "c.zarr"


def latin(folder: Path, cells: anndata.AnnData) -> Path:
    """Write names in Latin-1, as older programs do."""
    path = written()(folder, cells)
    with h5py.File(path, "r+") as file:
        index = file["obs"][file["obs"].attrs["_index"]]
        attributes, where = dict(index.attrs), index.name
        texts = [f"{name}\u00e9".encode("latin-1") for name in index.asstr()[:]]
        del file[where]
        file.create_dataset(where, data=texts, dtype=h5py.string_dtype("ascii"))
        file[where].attrs.update(attributes)
    return path


def seuratdisk(*, fixed: bool) -> Callable[[Path, anndata.AnnData], Path]:
    """Write a file like SeuratDisk's Convert does for an assay without meta.features."""

    def make(folder: Path, cells: anndata.AnnData) -> Path:
        text = "S64" if fixed else h5py.string_dtype()
        with h5py.File(folder / "s.h5ad", "w") as file:
            for place, x in (("X", log1p(cells.X)), ("raw/X", cells.X)):
                group = file.create_group(place)
                group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
            for place in ("var", "raw/var"):
                file.create_dataset(f"{place}/_index", data=list(cells.var_names), dtype=text)
            file.create_dataset("obs/_index", data=list(cells.obs_names), dtype=text)
            codes = pd.Categorical(cells.obs["donor"])
            file["obs/donor"] = codes.codes.astype(np.int32)
            file.create_dataset("obs/__categories/donor", data=list(codes.categories), dtype=text)
        return folder / "s.h5ad"

    return make


def tenx(*, version: int) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, cells: anndata.AnnData) -> Path:
        x, ids = cells.X.astype(np.int32), [f"E{i}" for i in range(cells.n_vars)]
        with h5py.File(folder / "t.h5", "w") as file:
            group = file.create_group("matrix" if version == 3 else "GRCh38")
            group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
            group["shape"], group["barcodes"] = [cells.n_vars, cells.n_obs], list(cells.obs_names)
            if version == 3:
                group["features/id"], group["features/name"] = ids, list(cells.var_names)
                group["features/feature_type"] = ["Gene Expression"] * cells.n_vars
            else:
                group["genes"], group["gene_names"] = ids, list(cells.var_names)
        return folder / "t.h5"

    return make


def mtx(
    genes: Callable[[int, str], str] = lambda i, n: f"E{i}\t{n}\tGene Expression",
    *,
    prefix: str = "",
    turned: bool = False,
    title: str = "",
    at: str = "",
    names: tuple[str, str, str] = ("matrix.mtx", "features.tsv", "barcodes.tsv"),
) -> Callable[[Path, anndata.AnnData], Path]:
    """Write a folder of Cell Ranger, or one with prefix, titles or other names."""

    def make(folder: Path, cells: anndata.AnnData) -> Path:
        inside = folder / at
        inside.mkdir(parents=True, exist_ok=True)
        text = io.BytesIO()
        scipy.io.mmwrite(text, (cells.X if turned else cells.X.T).astype(int), field="integer")
        lines = [genes(i, name) for i, name in enumerate(cells.var_names)]
        made = "\n".join([title] * bool(title) + lines) + "\n"
        barcodes = "\n".join(cells.obs_names) + "\n"
        for name, content in zip(names, (text.getvalue(), made.encode(), barcodes.encode()), strict=True):
            packed = prefix and not name.startswith("cells")
            path = inside / f"{prefix}{name}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content, 1) if packed else content)
        return folder

    return make


def parse(folder: Path, cells: anndata.AnnData) -> Path:
    made = mtx(turned=True, names=("count_matrix.mtx", "x", "y"))(folder, cells)
    genes = pd.DataFrame({"gene_id": [f"E{i}" for i in range(cells.n_vars)], "gene_name": cells.var_names})
    genes.assign(genome="hg38").to_csv(folder / "all_genes.csv", index=False)
    pd.DataFrame({"bc_wells": cells.obs_names, "sample": "s"}).to_csv(
        folder / "cell_metadata.csv", index=False
    )
    return made


def text(
    *, turned: bool = False, name: str = "t.csv", edit: Callable[[str], str] = str, **how: Any
) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, cells: anndata.AnnData) -> Path:
        frame = pd.DataFrame(
            cells.X.toarray().astype(how.pop("dtype", int)), index=cells.obs_names, columns=cells.var_names
        )
        content = edit((frame if turned else frame.T).to_csv(**how)).encode("utf-8")
        path = folder / name
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        return path

    return make


def loom(folder: Path, cells: anndata.AnnData) -> Path:
    import loompy

    genes, barcodes = {"Gene": cells.var_names.to_numpy()}, {"CellID": cells.obs_names.to_numpy()}
    loompy.create(str(folder / "c.loom"), cells.X.T.toarray(), genes, barcodes)
    return folder / "c.loom"


def h5mu(folder: Path, cells: anndata.AnnData) -> Path:
    import mudata

    proteins = anndata.AnnData(
        np.full((cells.n_obs, 3), 90.0, np.float32), cells.obs[[]], pd.DataFrame(index=["CD3", "CD4", "CD8"])
    )
    mudata.MuData({"prot": proteins, "rna": cells}).write(folder / "c.h5mu")
    return folder / "c.h5mu"


def rds(of: Callable[..., Any], **how: Any) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, cells: anndata.AnnData) -> Path:
        cells.var_names = [name.replace("_", "-") for name in cells.var_names]
        return save_rds(folder / "c.rds", of(cells, **how))

    return make


def put(name: str, content: bytes) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, _: anndata.AnnData) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def archive(name: str, *members: str) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, _: anndata.AnnData) -> Path:
        with zipfile.ZipFile(folder / name, "w") as file:
            for member in members:
                file.writestr(member, "x" * 600)
        return folder / name

    return make


def several(*names: str) -> Callable[[Path, anndata.AnnData], Path]:
    def make(folder: Path, cells: anndata.AnnData) -> Path:
        for name in names:
            cells[:5].copy().write_h5ad(folder / name)
        return folder

    return make


def prefixed_samples(folder: Path, cells: anndata.AnnData) -> Path:
    for prefix in ("GSM1_A_", "GSM2_B_"):
        mtx(prefix=prefix)(folder, cells[:9].copy())
    return folder


def packed_h5ad(folder: Path, cells: anndata.AnnData) -> Path:
    plain = written()(folder, cells[:9].copy())
    (folder / "c.h5ad.gz").write_bytes(gzip.compress(plain.read_bytes(), 1))
    return folder / "c.h5ad.gz"


def broken_off(folder: Path, cells: anndata.AnnData) -> Path:
    path = written()(folder, cells)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


_PROTEINS = [f"CD{i}-AB" for i in range(1, 40)]
_UNKNOWN = "genes-not-recognised"
_ROWS = "row numbers"
_A = Shape

SHAPES: tuple[Shape, ...] = (
    # 1. Row numbers
    _A("positions-0", numbered(range), _UNKNOWN, _ROWS, quick=True),
    _A("positions-1", numbered(lambda n: range(1, n + 1)), _UNKNOWN, _ROWS),
    _A("positions-floats", numbered(lambda n: [f"{i}.0" for i in range(n)]), _UNKNOWN, _ROWS),
    _A("positions-offset", numbered(lambda n: range(100, 100 + n)), _UNKNOWN, _ROWS),
    _A("positions-chosen", chosen_genes, _UNKNOWN, _ROWS, quick=True),
    _A("positions-named", numbered(lambda n: [f"feature_{i}" for i in range(n)]), _UNKNOWN),
    _A("positions-and-index", numbered(range, index=same), says="var['index']", quick=True),
    _A("positions-and-symbols", numbered(lambda n: range(1, n + 1), gene_symbols=pd.Categorical)),
    _A("positions-and-any-column", numbered(range, Unnamed__0=same), says="names from var"),
    _A("positions-in-raw", raw_numbered, says="used X", quick=True),
    # 2. Scales
    _A("scales-counts-log1p", mixed(same, log1p), says="different scales", quick=True),
    _A("scales-log1p-log2", mixed(log1p, log2_cpm, apart=True), says="different scales"),
    _A("scales-three", mixed(same, log1p, log2_cpm), says="different scales"),
    _A("scales-two-sums", mixed(log1p, lambda x: each(per_cell(x, 1e6), np.log1p), apart=True)),
    _A("scales-linear-counts", mixed(lambda x: per_cell(x, 1e6), same)),
    # 3. Places
    _A("layers-velocyto", placed(None, ambiguous=part(0.05), matrix=same, spliced=part(0.7)), says="matrix"),
    _A("layers-antisense", placed(None, antisense=part(0.05), sense=same), says="layers/sense"),
    _A("layers-ambient", placed(scaled, ambient_counts=part(0.1), raw_counts=same), quick=True),
    _A("layers-binary", placed(scaled, binary=lambda x: each(x, np.sign), raw_counts=same)),
    _A(
        "layers-unknown-names",
        placed(scaled, unnormalized=same, normed=log1p, ranks=lambda x: x.ceil() * 0 + x),
    ),
    _A("layers-corrected", placed(scaled, cellbender=same, background=part(0.1))),
    _A("x-arcsinh", placed(lambda x: each(x, np.arcsinh), raw_counts=same), says="layers/raw_counts"),
    _A("x-scaled-raw-counts", placed(scaled, raw=same), says="did not use X"),
    _A("x-scaled-raw-log", placed(scaled, raw=log1p), says="did not use X"),
    _A("x-log-layer-counts", placed(log1p, counts=same)),
    _A("x-scaled-only", placed(scaled), "values-not-counts", "scaled", quick=True),
    _A("x-absent", placed(None), "no-values"),
    _A("x-zero", placed(lambda x: x * 0, counts=same), says="every value is zero"),
    _A("x-all-zero", placed(lambda x: x * 0), "no-values"),
    _A("layer-asked", placed(scaled, counts=same, other=log1p), options={"layer": "other"}),
    _A(
        "layer-unknown",
        placed(same, counts=same),
        "unknown-layer",
        "did you mean",
        options={"layer": "count"},
    ),
    # Values
    _A("counts", changed(same), quick=True),
    _A("log1p", with_values(log1p), quick=True),
    _A("log1p-median", with_values(lambda x: each(per_cell(x, 4321), np.log1p))),
    _A("cpm", with_values(lambda x: per_cell(x, 1e6))),
    _A("tpm", with_values(tpm), of=0.96),
    _A("log2-cpm", with_values(log2_cpm)),
    _A("log2-counts", with_values(lambda x: each(x, lambda v: np.log2(v + 1)))),
    _A("log10-cpm", with_values(lambda x: each(per_cell(x, 1e6), lambda v: np.log10(v + 1)))),
    _A("sqrt", with_values(lambda x: each(x, np.sqrt))),
    _A("arcsinh", with_values(lambda x: each(x, np.arcsinh))),
    _A("soupx", with_values(lambda x: each(x, lambda v: v * 0.96))),
    _A("values-told", with_values(log2_cpm), options={"values": "log2-cpm"}),
    _A("values-negative", with_values(lambda x: each(x, lambda v: -v)), "values-not-counts"),
    _A("values-huge", with_values(lambda x: sp.csr_matrix(x, dtype=np.float64) * 1e300), "values-not-counts"),
    _A("nan", with_values(missing), "values-not-finite", quick=True),
    _A("nan-beside-counts", placed(log1p, counts=missing), "values-not-finite", "give --layer X"),
    _A("nan-in-x", placed(missing, norm=log1p), "values-not-finite", "give --layer norm"),
    # 5, 10. Names
    _A("ensembl", ensembl("{id}"), quick=True),
    _A("ensembl-version", ensembl("{id}.{v}")),
    _A("ensembl-gtf", ensembl("gene:{id}")),
    _A("ensembl-symbol", ensembl("{id}.{v}_{name}")),
    _A("symbol-ensembl", ensembl("{name}|{id}")),
    _A("entrez", entrez("{}")),
    _A("entrez-r", entrez("X{}")),
    _A("entrez-loc", entrez("LOC{}")),
    _A("hgnc", spelled(lambda i, n: _ids()[2].get(n))),
    _A("previous-symbols", spelled(lambda i, n: _ids()[3].get(n, n))),
    _A("lower-case", spelled(lambda i, n: n.lower()), of=0.98),
    _A("capitals", spelled(lambda i, n: n.upper())),
    _A("made-unique", spelled(lambda i, n: f"{n}.1" if i % 40 == 0 else n)),
    _A("make-names", spelled(lambda i, n: n.replace("-", "."))),
    _A("chromosomes", spelled(lambda i, n: f"{n}__chr{i % 22 + 1}"), says="were read as", quick=True),
    _A("prefix-genome", spelled(lambda i, n: f"GRCh38-{n}"), says="were read as"),
    _A("prefix-rna", spelled(lambda i, n: f"rna_{n}"), says="were read as"),
    _A("quoted", spelled(lambda i, n: f'"{n}"'), says="were read as"),
    _A("unseen-marks", spelled(lambda i, n: f"\ufeff{n}\u200b\u00a0"), quick=True),
    _A("apostrophe", spelled(lambda i, n: f"'{n}")),
    _A("full-width", spelled(lambda i, n: "".join(chr(ord(c) + 0xFEE0) for c in n))),
    _A("bytes", spelled(lambda i, n: str(n.encode())), says="were read as"),
    _A("lists", spelled(lambda i, n: f"['{n}']"), says="were read as"),
    _A("bd-rhapsody", spelled(lambda i, n: f"{n}|NM_{i:06d}|PolyA"), says="were read as"),
    _A("positions-after", spelled(lambda i, n: f"{n}@chr{i % 22}"), says="were read as"),
    _A("two-genomes", two_genomes, says="several genomes"),
    _A("proteins-marked", with_rows(*_PROTEINS), says="dropped 39 non-gene", quick=True),
    _A("proteins-bare", with_rows("CD3", "CD4", "CD8a", "CD19", "CD45RA", "HLA-DR", "IgG1_isotype")),
    _A("proteins-colon", with_rows(*(f"prot:CD{i}" for i in range(1, 40))), says="dropped 39 non-gene"),
    _A("htseq-rows", with_rows("__no_feature", "__ambiguous", "__not_aligned"), says="dropped 3"),
    _A("star-rows", with_rows("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")),
    _A("transcripts", spelled(lambda i, n: f"ENST{i:011d}.2"), _UNKNOWN, "transcript"),
    _A("rat", spelled(lambda i, n: f"ENSRNOG{i:011d}"), "species-not-loaded", "rat"),
    _A("fly", spelled(lambda i, n: f"FBgn{i:07d}"), "species-not-loaded", "fly"),
    _A("invented", spelled(lambda i, n: f"peak{i}x"), _UNKNOWN),
    _A("transposed", transposed(""), _UNKNOWN, "adata.T", quick=True),
    _A("transposed-numbered", transposed("numbered"), _UNKNOWN, "adata.T"),
    _A("transposed-prefixed", transposed("prefixed"), _UNKNOWN, "adata.T"),
    # 7. Samples
    _A("outer-join-dense", joined_dense, "values-not-finite", "fill_value=0", quick=True),
    _A("outer-join", joined(2, 0.3), says="outer join", of=0.97),
    # 12. Objects
    _A("names-repeat", changed(repeated_names), says="repeated cell name"),
    _A("odd-columns", changed(odd_obs)),
    _A("one-cell", changed(lambda c: c[:1].copy()), of=0),
    _A("no-cells", changed(lambda c: c[:0].copy()), "no-cells"),
    _A("no-genes", changed(lambda c: c[:, :0].copy()), "no-genes"),
    _A("empty-cells", changed(empty_cells), says="without counts"),
    _A("vectors-only", placed(None), "no-values"),
    _A("float64", with_values(lambda x: x.astype(np.float64))),
    _A("int64", with_values(lambda x: x.astype(np.int64))),
    _A("uint16", with_values(lambda x: x.astype(np.uint16))),
    _A("float16", with_values(lambda x: x.toarray().astype(np.float16))),
    _A("zero-one", with_values(lambda x: x.astype(bool)), says="0 or 1", of=0.85),
    _A("sparse-array", with_values(sp.csr_array)),
    _A("objects", with_values(lambda x: x.toarray().astype(int).astype(object)), no_file=True),
    _A("backed", backed(), no_file=True),
    _A("backed-view", backed(raw=True, view=True), no_file=True),
    # 8, 11. Files
    _A("h5ad-csc", with_values(lambda x: x.tocsc())),
    _A("h5ad-dense", with_values(lambda x: x.toarray()), quick=True),
    _A("h5ad-lzf", written(compression="lzf")),
    _A("h5ad-latin-1", latin),
    _A("zarr", zarr),
    _A("seuratdisk", seuratdisk(fixed=False), quick=True),
    _A("seuratdisk-bytes", seuratdisk(fixed=True)),
    _A("10x-h5", tenx(version=3), quick=True),
    _A("10x-h5-2", tenx(version=2)),
    _A("mtx", mtx(), quick=True),
    _A("mtx-one-column", mtx(lambda i, n: n, names=("matrix.mtx", "genes.tsv", "barcodes.tsv"))),
    _A("mtx-names-first", mtx(lambda i, n: f"{n}\tE{i}")),
    _A("mtx-turned", mtx(turned=True)),
    _A("mtx-titles", mtx(lambda i, n: f'"{i + 1}","{n}"', title='"","x"')),
    _A("mtx-title-line", mtx(lambda i, n: f"E{i}\t{n}", title="gene_id\tgene_name")),
    _A("geo", mtx(prefix="GSM1_A_")),
    _A("geo-several", prefixed_samples, "input", "GSM1_A_"),
    _A("outs", mtx(at="outs/filtered_feature_bc_matrix"), says="read"),
    _A("starsolo", mtx(at="S1_Solo.out/Gene/filtered"), says="read"),
    _A(
        "kb",
        mtx(
            lambda i, n: n,
            turned=True,
            names=("cells_x_genes.mtx", *(f"cells_x_genes.{e}.txt" for e in ("genes", "barcodes"))),
        ),
    ),
    _A("parse", parse),
    _A("csv", text(), says="genes in its rows", quick=True),
    _A("csv-turned", text(turned=True), says="genes in its columns"),
    _A("csv-semicolons", text(sep=";", decimal=",", dtype=float)),
    _A("csv-bom-quotes", text(edit=lambda t: "\ufeff" + t, quoting=1)),
    _A("txt-short-title", text(name="t.txt", sep="\t", edit=lambda t: t.split("\t", 1)[1])),
    _A("tsv-gz", text(name="t.tsv.gz", sep="\t")),
    _A("loom", loom),
    _A("h5mu", h5mu),
    _A("rds-seurat-4", rds(seurat, version=4)),
    _A("rds-seurat-5", rds(seurat, version=5)),
    _A("rds-experiment", rds(experiment)),
    _A("excel", archive("t.xlsx", "[Content_Types].xml", "xl/workbook.xml"), "wrong-format", "Excel"),
    _A("npz", archive("t.npz", "data.npy", "indices.npy"), "wrong-format", "NumPy"),
    _A("h5ad-gz", packed_h5ad, "wrong-format", "gunzip"),
    _A("h5ad-broken-off", broken_off, "damaged-file"),
    _A("folder-of-one", several("a.h5ad"), "not-a-file", "a.h5ad"),
    _A("folder-of-several", several("a.h5ad", "b.h5ad"), "not-a-file", "b.h5ad"),
    _A("web-page", put("t.h5ad", b"<!DOCTYPE html><html></html>" * 30), "wrong-format", "web page"),
    _A("pdf", put("t.pdf", b"%PDF-1.7 1 0 obj, 2 0 obj\n" * 30), "wrong-format", "PDF"),
    _A("json", put("t.json", b'{"a": [1, 2], "b": [3, 4]}\n' * 30), "wrong-format", "JSON"),
    _A("empty-file", put("t.h5ad", b""), "empty-file"),
)

"""Recompress the Baron pancreas files into the demo data that ships with the package.

    python tools/build_demo_data.py SOURCE_DIR

``SOURCE_DIR`` holds ``pancreas_baron_human.h5ad`` and ``pancreas_baron_mouse.h5ad`` (GSE84133, Baron et
al. 2016, https://doi.org/10.1016/j.cels.2016.08.011). Values, names and obs columns stay exactly as they
are; only the storage changes: byte shuffle and gzip 9 in large chunks, which every h5py reads without a
plugin. Writes ``scvec/data/baron_human.h5ad`` and ``baron_mouse.h5ad`` and compares them with the source.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np

DATA = Path(__file__).resolve().parents[1] / "scvec" / "data"
MAX_BYTES = 16_000_000
CHUNK = 1 << 16


def recompress(source: Path, target: Path) -> None:
    """Copy an h5ad, storing the three arrays of its CSR matrix as small as gzip can."""
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            if name != "X":
                old.copy(name, new)
        x = new.create_group("X")
        x.attrs.update(old["X"].attrs)
        for name in ("data", "indices", "indptr"):
            values = old["X"][name][:]
            x.create_dataset(
                name,
                data=values,
                chunks=(min(CHUNK, len(values)),),
                compression="gzip",
                compression_opts=9,
                shuffle=True,
            )


def check_equal(source: Path, target: Path) -> None:
    """Raise ``ValueError`` unless both files hold the same cells, genes, labels and values."""
    a, b = anndata.read_h5ad(source), anndata.read_h5ad(target)
    same = (
        a.obs.equals(b.obs)
        and a.obs_names.equals(b.obs_names)
        and a.var_names.equals(b.var_names)
        and a.X.dtype == b.X.dtype
        and all(np.array_equal(getattr(a.X, k), getattr(b.X, k)) for k in ("data", "indices", "indptr"))
    )
    if not same:
        raise ValueError(f"{target} differs from {source}")


def main() -> int:
    """Build both files; exit 1 when they are too large together."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("source", type=Path)
    source: Path = parser.parse_args().source
    total = 0
    for species in ("human", "mouse"):
        old, new = source / f"pancreas_baron_{species}.h5ad", DATA / f"baron_{species}.h5ad"
        recompress(old, new)
        check_equal(old, new)
        total += new.stat().st_size
        sys.stdout.write(f"{new.name}: {new.stat().st_size:,} bytes, was {old.stat().st_size:,}\n")
    sys.stdout.write(f"together {total:,} bytes (at most {MAX_BYTES:,})\n")
    return int(total > MAX_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())

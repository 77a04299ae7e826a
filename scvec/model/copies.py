"""Find repeated cells by a hash of their values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base.results import count_text
from scvec.base.types import Float32, Int64

if TYPE_CHECKING:
    from scvec.ingest.cells.source import CellSource

__all__ = [
    "HASH_COLUMN",
    "PRIMARY_COLUMN",
    "Seen",
    "cell_hashes",
    "gene_keys",
    "is_primary",
    "left_out_notes",
    "repeated",
    "source_digest",
]

#: Column of a reference's obs with the hash of each cell, 8 bytes per cell.
HASH_COLUMN = "_scvec_hash"
#: Column of the CELLxGENE schema: False for cells that are repeated from another data set.
PRIMARY_COLUMN = "is_primary_data"
#: Cells with fewer genes above zero may be equal by chance.
MIN_DETECTED = 10


def gene_keys(gene_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return (n_genes,) odd numbers for the genes in hashes, independent of the order of the genes."""
    digests = b"".join(hashlib.blake2b(gene.encode(), digest_size=8).digest() for gene in gene_ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64) | np.uint64(1)


def cell_hashes(X: Any, keys: npt.NDArray[np.uint64], factors: Float32 | None = None) -> Int64:
    """Return (n,) hashes of cells; 0 for a cell with too few genes.

    The values are hashed as multiples of the cell's smallest value, so that counts and their normalised
    logarithms have the same hash. The hash is linear (modulo 2**64), so it needs one matrix product.

    Parameters
    ----------
    X
        (n, n_genes) CSR float32, log1p of linear values.
    keys
        Keys of the genes, from :func:`gene_keys`.
    factors
        (n_genes,) factors that were applied to the linear values, or None.
    """
    linear = np.expm1(X.data)
    if factors is not None:
        linear /= factors[X.indices]
    lengths = np.diff(X.indptr)
    filled = np.flatnonzero(lengths)
    if len(filled):
        least = np.minimum.reduceat(linear, X.indptr[filled])
        linear /= np.repeat(least, lengths[filled])
    whole = np.rint(linear).astype(np.uint64)
    hashes = (sp.csr_matrix((whole, X.indices, X.indptr), shape=X.shape) @ keys).view(np.int64)
    return np.where(lengths >= MIN_DETECTED, hashes, 0)


def repeated(hashes: Int64, codes: Int64 | None = None) -> npt.NDArray[np.bool_]:
    """Return (n,) bool: cells with the hash (and class number, if given) of an earlier cell.

    Cells with hash 0 are never copies.
    """
    table = {"hash": hashes} if codes is None else {"hash": hashes, "code": codes}
    again: npt.NDArray[np.bool_] = pd.DataFrame(table).duplicated().to_numpy(dtype=bool, copy=True)
    again &= hashes != 0
    return again


def left_out_notes(n_met: int, n_other: int) -> list[str]:
    """Return notes about cells that are already in the reference or are not primary data."""
    met = f"left out {count_text(n_met, 'cell')} that are already in the reference"
    other = f"left out {count_text(n_other, 'cell')} with {PRIMARY_COLUMN} False"
    return [met] * bool(n_met) + [other] * bool(n_other)


class Seen:
    """Hashes of earlier cells, for cells in chunks."""

    def __init__(self, hashes: Int64 | None = None) -> None:
        self._hashes: set[int] = set() if hashes is None else set(hashes.tolist())

    def first(self, hashes: Int64, among: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
        """Return (n,) bool: cells (with ``among`` True) that are not copies of earlier ones, and record them.

        Cells with hash 0 are never copies.
        """
        new = np.ones(len(hashes), dtype=bool) if among is None else among.copy()
        for k in np.flatnonzero(new):
            cell = int(hashes[k])
            new[k] = cell == 0 or cell not in self._hashes
            self._hashes.add(cell)
        return new


def source_digest(hashes: Int64) -> str:
    """Return a digest of 16 hex digits of the cells of a file in their order."""
    return hashlib.blake2b(hashes.astype("<i8").tobytes(), digest_size=8).hexdigest()


def is_primary(source: CellSource) -> npt.NDArray[np.bool_]:
    """Return (n_obs,) bool: False if the file marks the cell as repeated from another data set."""
    table = source.obs
    if PRIMARY_COLUMN not in table.columns:
        return np.ones(source.n_obs, dtype=bool)
    said = table[PRIMARY_COLUMN].astype(str).str.strip().str.lower()
    return ~said.isin(("false", "0", "0.0")).to_numpy()

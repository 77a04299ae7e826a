"""The golden query of a pack: cells with the labels that its model must predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import StoreError
from scvec.base.types import CellChunk, Float32
from scvec.model.gene_members import PREFIX, GeneSide, gene_side
from scvec.model.matching import obsm_key
from scvec.model.storage import class_statistics, genes_of, load_model

if TYPE_CHECKING:
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["check_golden", "make_golden"]

Tensors = dict[str, npt.NDArray[Any]]

#: Number of cells of a golden query, at least one per label (for up to so many labels).
N_CELLS = 120
#: Counts of a simulated cell.
DEPTH = 4000
#: Tolerance of probabilities, because processors and libraries sum in different orders.
TOLERANCE = 5e-3
#: A label must be equal if its probability exceeds the next one by at least this much.
LEAD = 2e-2


def make_golden(stored: StoredReference, *, seed: int = 0) -> tuple[Tensors, dict[str, Any]]:
    """Return arrays and JSON values of a golden query for a reference, and for gene-based members beside it.

    The cells are simulated: Poisson counts around the mean cell of a label, mixed with a small fraction of
    the mean of all cells; for a reference of vectors, vectors around the mean vector. So they do not reveal
    cells of the reference.
    """
    tensors, described = _made(stored, seed)
    side = gene_side(stored)
    if side is not None:
        more, described["beside"] = _made(side, seed)
        tensors |= {f"{PREFIX}{name}": values for name, values in more.items()}
    return tensors, described


def _made(stored: StoredReference | GeneSide, seed: int) -> tuple[Tensors, dict[str, Any]]:
    from scipy.sparse import csr_matrix

    genes, classes = genes_of(stored), list(stored.meta["classes"])
    means, spread = (part.astype(np.float64) for part in class_statistics(stored.tensors))
    filled = np.flatnonzero(means.any(axis=1))
    rng = np.random.default_rng(seed)
    per_label = max(1, min(20, N_CELLS // max(len(filled), 1)))
    rows = np.repeat(filled, per_label)[: max(N_CELLS, len(filled))]
    if obsm_key(stored) is None:
        means = np.expm1(means)
        rates = 0.9 * means[rows] + 0.1 * means[filled].mean(axis=0)
        cells = _log1p(rng.poisson(DEPTH * rates / rates.sum(axis=1, keepdims=True)))
    else:
        cells = csr_matrix(
            (means[rows] + spread * rng.normal(size=(len(rows), len(genes)))).astype(np.float32)
        )
    proba, alone = _answers(stored, cells)
    tensors: Tensors = {
        "data": cells.data.astype(np.float32),
        "indices": cells.indices.astype(np.int32),
        "indptr": cells.indptr.astype(np.int64),
        "proba": proba,
        "proba.head": alone,
    }
    return tensors, {"genes": genes, "classes": classes}


def check_golden(stored: StoredReference, tensors: Tensors, described: Mapping[str, Any]) -> int:
    """Compare the predictions of a reference with its golden query; return the number of cells.

    Genes and labels are looked up by name, so that a pack with a changed order fails.

    Raises
    ------
    StoreError
        A prediction differs, or the golden query does not belong to the reference.
    """
    side = gene_side(stored)
    if side is not None:
        own = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
        _check(side, own, described.get("beside", {}))
    return _check(stored, tensors, described)


def _check(stored: StoredReference | GeneSide, tensors: Tensors, described: Mapping[str, Any]) -> int:
    from scipy.sparse import csr_matrix

    try:
        genes, classes = [str(g) for g in described["genes"]], [str(c) for c in described["classes"]]
        own = genes_of(stored)
        place = {gene: i for i, gene in enumerate(own)}
        columns = np.array([place[gene] for gene in genes], dtype=np.int64)
        order = [list(stored.meta["classes"]).index(label) for label in classes]
        wanted = np.asarray(tensors["proba"], dtype=np.float64)
        alone = np.asarray(tensors["proba.head"], dtype=np.float64)
        if len(set(genes)) != len(own) or len(order) != len(stored.meta["classes"]):
            raise ValueError("it has other genes or labels")
        cells = csr_matrix(
            (tensors["data"].astype(np.float32), tensors["indices"], tensors["indptr"]),
            shape=(len(wanted), len(genes)),
        )
        cells.check_format(full_check=True)
        if (
            alone.shape != wanted.shape
            or wanted.shape[1] != len(classes)
            or len(wanted) == 0
            or not np.isfinite(cells.data).all()
        ):
            raise ValueError("its predictions have another shape")
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise _failed(stored, f"it does not belong to the reference ({error})") from error
    moved = csr_matrix((cells.data, columns[cells.indices], cells.indptr), shape=cells.shape)
    moved.sort_indices()
    found, by_head = (part[:, order].astype(np.float64) for part in _answers(stored, moved))
    worst = float(max(np.abs(found - wanted).max(), np.abs(by_head - alone).max()))
    top = np.sort(wanted, axis=1)
    clear = top[:, -1] - top[:, -2] > LEAD if wanted.shape[1] > 1 else np.ones(len(wanted), dtype=bool)
    other = int((found.argmax(axis=1) != wanted.argmax(axis=1))[clear].sum())
    if other or not worst <= TOLERANCE:
        raise _failed(stored, f"{other} of {len(wanted)} labels differ, probabilities by up to {worst:.3f}")
    return len(wanted)


def _answers(stored: StoredReference | GeneSide, cells: Any) -> tuple[Float32, Float32]:
    """Return (n, n_classes) probabilities by all members and by the head, of cells CSR of log1p CP10k."""
    model = stored.model if isinstance(stored, GeneSide) else load_model(stored, device="cpu", exact=True)
    chunk = CellChunk(cells, np.ones(cells.shape[1], dtype=bool))
    n_neighbors = min(15, model.members.index.n)
    both, head = (model.predict(chunk, method=m, n_neighbors=n_neighbors) for m in ("both", "head"))
    return both.proba, head.proba


def _log1p(counts: npt.NDArray[np.int64]) -> Any:
    from scipy.sparse import csr_matrix

    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return csr_matrix(np.log1p(counts * (1e4 / totals)).astype(np.float32))


def _failed(stored: StoredReference | GeneSide, what: str) -> StoreError:
    return StoreError(
        f"the golden query of the pack gives other results: {what}",
        stored.name,
        "do not use this pack; inform its publisher",
    )

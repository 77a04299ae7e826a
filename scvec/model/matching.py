"""Matching the genes of a data set to the knowledge base, and to a reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.parallel import read_ahead
from scvec.base.types import CellChunk, GeneMatch
from scvec.model.gene_names import WARN_SHARE, find_genes, unknown, unknown_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from scvec.ingest.cells.source import CellSource
    from scvec.ingest.genes.names import GeneMap, GeneResolver

__all__ = ["MatchedSource", "match_genes", "settle_values"]

#: Cells that tell what the values of a file are.
N_TOLD = 512

#: Fraction of counts below which a match is useless.
REFUSE_SHARE = 0.1


@dataclass(frozen=True)
class MatchedSource:
    """Cells of a file, and which genes its columns are.

    Attributes
    ----------
    names_from
        ``"index"`` or the column of ``var`` whose names matched best.
    share
        Share (0-1) of the counts that matched genes hold.
    """

    source: CellSource
    match: GeneMatch
    names_from: str
    share: float

    @property
    def summary(self) -> str:
        """One line for people."""
        extra = "" if self.names_from == "index" else f" (names from var['{self.names_from.strip()}'])"
        return self.match.summary(self.source.gene_totals) + extra

    def chunks(
        self,
        genes: GeneMap,
        size: int | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> Iterator[CellChunk]:
        """Yield cells over the target genes of ``genes``, while the next ones are read."""

        def cells() -> Iterator[CellChunk]:
            for X in self.source.chunks(size, rows):
                yield CellChunk(over_targets(X, genes.weights), genes.measured)

        return read_ahead(cells)


def over_targets(X: Any, weights: Any) -> Any:
    """Return log1p CP10k over target genes: sums are taken on the linear scale.

    Parameters
    ----------
    X
        (n, n_names) CSR float32 of log1p CP10k.
    weights
        (n_names, n_targets) CSR float32.
    """
    # expm1 and log1p would change the last bits of every value, so plain selections go without.
    plain = bool((weights.data == 1).all()) and np.bincount(weights.indices, minlength=1).max(initial=0) <= 1
    linear = X if plain else type(X)((np.expm1(X.data), X.indices, X.indptr), shape=X.shape)
    # Transposed twice, the columns of a row are in order: half the time of sorting them.
    mapped = (linear @ weights).tocsc().tocsr()
    if not plain:
        mapped.data = np.log1p(mapped.data)
    mapped.eliminate_zeros()
    return mapped.astype(np.float32)


def settle_values(matched: MatchedSource, genes: GeneMap, reference: npt.NDArray[Any]) -> None:
    """Take values that may be several things for that which makes genes as high as in the reference.

    Nothing is done where the values themselves said what they are.

    Parameters
    ----------
    reference
        (n_target,) mean log1p CP10k of the target genes of ``genes`` in the reference.
    """
    from scvec.ingest.cells.expression import normalize
    from scvec.ingest.cells.values import best_transform, candidate_states

    source = matched.source
    shared = np.flatnonzero(genes.measured)
    if not source.state.candidates or not len(shared):
        return
    rows = np.unique(np.linspace(0, source.n_obs - 1, min(N_TOLD, source.n_obs)).astype(np.int64))
    cells = source.stored_rows(rows)
    states = candidate_states(source.state, cells)
    means = [
        np.asarray(over_targets(normalize(cells, s), genes.weights).mean(axis=0)).ravel() for s in states
    ]
    best = states[best_transform(np.array(means)[:, shared], np.asarray(reference)[shared])]
    told = f"{best.message} (nothing else told; of what is possible this fits the reference best)"
    source.take_for(replace(best, message=told, candidates=source.state.candidates))


def match_genes(
    source: CellSource, resolver: GeneResolver, *, species: str = "auto", force: bool = False
) -> MatchedSource:
    """Find out which genes the columns of a data set are (:func:`scvec.model.gene_names.find_genes`).

    Raises
    ------
    InputError
        If under a tenth of the counts lies on known genes, unless ``force``; if all names are row numbers.
    """
    found = find_genes(source, resolver, species)
    best = MatchedSource(source, found.match, found.names_from, found.share)
    if best.share < REFUSE_SHARE and not force:
        raise unknown_names(source, found, best.summary, resolver)
    source.notes.extend(best.match.notes)
    if best.share < WARN_SHARE:
        source.notes.append(
            f"warning: few genes are known: {best.summary}; unknown are names like "
            f"{unknown(found.match, source.gene_totals)}"
        )
    return best

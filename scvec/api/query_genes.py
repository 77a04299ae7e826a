"""How the columns of a query become the genes of a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvec.protocols import Progress, no_progress

if TYPE_CHECKING:
    from scvec.api.matching import MatchedSource
    from scvec.ingest.identity import GeneMap
    from scvec.stores.store import Store
    from scvec.stores.stored import StoredReference

__all__ = ["query_genes"]


def query_genes(
    store: Store,
    stored: StoredReference,
    matched: MatchedSource,
    *,
    unmatched_genes: str = "drop",
    device: str = "auto",
    progress: Progress = no_progress,
) -> GeneMap:
    """Return the map from the names of a query to all genes of a reference.

    Through orthologs, with the factors of the query's species where the reference holds cells of it, and by
    text on request. Notes about it are those of the map.
    """
    from scvec.api.matching import settle_values
    from scvec.api.references import FACTOR, genes_of
    from scvec.api.resolvers import stored_resolver
    from scvec.api.unmatched import text_partners

    genes = stored_resolver(store).map_to(matched.match, genes_of(stored), stored.meta["species"])
    factors = stored.tensors.get(FACTOR + matched.match.species)
    if factors is not None:
        genes = genes.scaled(factors)
    if matched.source.state.candidates:
        settle_values(matched, genes, stored.tensors["classes.means"].mean(axis=0))
    matched.source.notes += [matched.summary, *genes.notes]
    if unmatched_genes == "text":
        genes = text_partners(store, stored, matched, genes, device=device, progress=progress)
    return genes

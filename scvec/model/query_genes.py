"""How the columns of a query become the genes of a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvec.base.protocols import Progress, no_progress

if TYPE_CHECKING:
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.matching import MatchedSource
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

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
    from scvec.model.matching import settle_values
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import FACTOR, genes_of
    from scvec.model.unmatched import text_partners

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

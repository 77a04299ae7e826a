"""Which genes names stand for: by the knowledge base of a store, or by the names that ship with scvec."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.base.types import SPECIES, GeneMatch, Progress, no_progress

if TYPE_CHECKING:
    from scvec.ingest.genes.names import GeneResolver
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.store import Store

__all__ = ["ensure_knowledge", "resolve", "resolver_of", "snapshot_resolver", "stored_resolver"]


def ensure_knowledge(kb: KnowledgeBase, *, progress: Progress = no_progress) -> bool:
    """Load the shipped snapshot where the knowledge base is empty; return whether it was."""
    if kb.counts()["genes"]:
        return False
    progress("loading gene knowledge", 0, None)
    kb.load_snapshot(SPECIES)
    progress("loading gene knowledge", 1, 1)
    return True


# Digest of a knowledge base -> its resolver, the last one only. It takes most of the time of a small query,
# so that notebooks and servers, which ask many, need not build it again.
_last: dict[str, GeneResolver] = {}


def resolver_of(kb: KnowledgeBase, digest: str | None = None) -> GeneResolver:
    """Return the resolver over all names that the knowledge base knows, whose digest may be known."""
    from scvec.ingest.genes.names import GeneResolver

    if digest is not None and digest in _last:
        return _last[digest]
    resolver = GeneResolver(kb.aliases(), kb.orthologs())
    if digest is not None:
        _last.clear()
        _last[digest] = resolver
    return resolver


def stored_resolver(store: Store) -> GeneResolver:
    """Return the resolver over the knowledge base of a store's generation."""
    entry = store.generation.manifest.knowledge
    if entry is not None and entry.digest in _last:
        return _last[entry.digest]
    with store.knowledge() as kb:
        return resolver_of(kb, None if entry is None else entry.digest)


def snapshot_resolver() -> GeneResolver:
    """Return the resolver over the gene names that ship with scvec."""
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.knowledge.snapshot import Snapshot

    snapshot = Snapshot.open()
    key = f"snapshot {snapshot.version}"
    if key not in _last:
        with (
            tempfile.TemporaryDirectory() as folder,
            KnowledgeBase.open(Path(folder) / "genes.duckdb") as kb,
        ):
            kb.load_snapshot(snapshot=snapshot)
            return resolver_of(kb, key)
    return _last[key]


def resolve(names: Sequence[str], species: str = "auto", *, store: Path | str | None = None) -> GeneMatch:
    """Find out which genes a list of names stands for.

    Parameters
    ----------
    names
        n symbols (also previous ones, aliases, in any case), Ensembl or Entrez ids, in any mixture.
    species
        ``human``, ``mouse`` or ``auto``.
    store
        Store whose knowledge base is asked; that which ships with scvec when None.

    Returns
    -------
    GeneMatch
        Per name its gene id or None. Names that could be several genes are listed, never guessed.

    Raises
    ------
    InputError
        If the species is unknown, or there is no such store.
    """
    if store is None:
        return snapshot_resolver().resolve(names, species)
    from scvec.stores.store.store import Store

    return stored_resolver(Store(store)).resolve(names, species)

"""What a writer keeps under ``work/``: a copy of the knowledge base, vectors of texts, answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.stores.knowledge.knowledge_copy import KnowledgeCopy
from scvec.stores.store.generations import Generation
from scvec.stores.store.reference_reader import StoredSpace
from scvec.stores.store.vector_cache import VectorCache

if TYPE_CHECKING:
    from scvec.stores.store.journal import Journal

__all__ = ["WorkingFiles", "journal_path"]


def journal_path(folder: Path) -> Path:
    """Path of a store's journal of answers."""
    return folder / "work" / "answers.log"


class WorkingFiles:
    """The working files of one transaction, each made or opened when it is asked for.

    Parameters
    ----------
    folder
        The store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vectors_path = folder / "work" / "vectors.log"
        self._cache: VectorCache | None = None
        self._journal: Journal | None = None
        self.copy: KnowledgeCopy | None = None

    def vectors(self, spaces: Mapping[str, StoredSpace]) -> VectorCache:
        """Return the cache of text vectors, open for writing, over spaces that are stored."""
        if self._cache is None:
            self._cache = VectorCache(dict(spaces), self._vectors_path)
        return self._cache

    def knowledge(self, base: Generation, origin: dict[str, Any], *, resume: bool) -> KnowledgeCopy:
        """Return the copy of the knowledge base."""
        if self.copy is None:
            self.copy = KnowledgeCopy(base, origin, resume=resume)
        return self.copy

    def journal(self) -> Journal:
        """Return the journal of answers."""
        if self._journal is None:
            from scvec.stores.store.journal import Journal

            self._journal = Journal(journal_path(self._folder))
        return self._journal

    def finish_vectors(self) -> None:
        """Write the cache to the disk and close it."""
        if self._cache is not None:
            self._cache.close()

    def forget(self, generation: Generation) -> list[str]:
        """Drop what a generation that is in place holds; return notes on what could not be dropped."""
        notes: list[str] = []
        # The change is made: a working file that stays too large is no failure. What was absorbed is absorbed
        # once more, which changes nothing.
        try:
            if self._vectors_path.exists():
                spaces = {k: StoredSpace(generation, e) for k, e in generation.manifest.spaces.items()}
                VectorCache({}, self._vectors_path).drop_stored(spaces)
        except Exception as error:
            notes.append(f"the working cache could not be trimmed ({type(error).__name__})")
        if self._journal is not None:
            try:
                self._journal.clear()
            except Exception as error:
                notes.append(f"the journal of answers could not be cleared ({type(error).__name__})")
            notes += self._journal.notes
        return notes

    def close(self, *, committed: bool) -> None:
        """Close everything; the error that ends a transaction is the one to be seen, so none is raised."""
        for part in (self._cache, self._journal):
            with suppress(Exception):
                if part is not None:
                    part.close()
        with suppress(Exception):
            if self.copy is not None:
                self.copy.discard(committed=committed)
        self._cache = self._journal = self.copy = None

"""What a writer keeps under ``work/``: its copy of the knowledge base, which becomes a file of the store."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import StoreError
from scvec.stores.store.files import content_name, holds, os_errors, sha256_file, sync_file
from scvec.stores.store.generations import Generation
from scvec.stores.store.manifest import KnowledgeEntry

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["KnowledgeCopy", "journal_path"]


def journal_path(folder: Path) -> Path:
    """Path of a store's journal of answers."""
    return folder / "work" / "answers.log"


class KnowledgeCopy:
    """A private copy of a generation's knowledge base under ``work/``; no file if the generation has none."""

    def __init__(self, base: Generation) -> None:
        self._base = base
        self._kb: KnowledgeBase | None = None
        self.path = base.folder / "work" / "kb.duckdb"
        entry = base.manifest.knowledge
        with os_errors(base.folder):
            self._remove()
            if entry is not None:
                shutil.copyfile(base.path_of(entry.file), self.path)

    def open(self) -> KnowledgeBase:
        """Return the copy open for writing; :meth:`close` closes it."""
        from scvec.stores.knowledge.knowledge import KnowledgeBase

        if self._kb is None:
            with os_errors(self.path):
                self._kb = KnowledgeBase.open(self.path)
        return self._kb

    def close(self) -> None:
        """Close what :meth:`open` opened."""
        kb, self._kb = self._kb, None
        if kb is not None:
            kb.close()

    def finish(self) -> KnowledgeEntry | None:
        """Write everything to the one file; return what it is, or None if there is no file."""
        self.close()
        if not self.path.exists():
            return None
        _require_one_file(self.path)
        old = self._base.manifest.knowledge
        if old is not None:
            entry = self._base.manifest.entry(old.file)
            if holds(self.path, entry.n_bytes, entry.sha256):
                return old  # only read from: no need for a digest, which takes seconds
        from scvec.stores.knowledge.knowledge import KnowledgeBase
        from scvec.stores.knowledge.schema import SCHEMA_VERSION

        kb = KnowledgeBase.open(self.path)
        try:
            # Jobs are no content, but to forget them would be to ask again: the name tells them apart.
            name, digest = kb.digests()
        finally:
            kb.close()
        return KnowledgeEntry(content_name("kb", name, "duckdb"), digest, SCHEMA_VERSION)

    def publish(self, entry: KnowledgeEntry) -> dict[str, Any]:
        """Move it to ``files/``; return its size and SHA-256 as the manifest's ``run`` keeps them."""
        target = self._base.folder / "files" / entry.file
        # An older generation may have the same content in other bytes, which its manifest names: keep those.
        if not _holds_content(target, entry):
            sync_file(self.path)
            os.replace(self.path, target)
        return {"kb_bytes": target.stat().st_size, "kb_sha256": sha256_file(target)}

    def discard(self) -> None:
        """Close and delete the copy."""
        self.close()
        with suppress(OSError):
            self._remove()

    def _remove(self) -> None:
        for path in (self.path, self.path.with_name("kb.duckdb.wal")):
            path.unlink(missing_ok=True)


def _holds_content(path: Path, entry: KnowledgeEntry) -> bool:
    if not path.is_file():
        return False
    from scvec.stores.knowledge.knowledge import KnowledgeBase

    try:
        with KnowledgeBase.open(path, read_only=True) as kb:
            return kb.digest() == entry.digest
    except Exception:  # whatever ails it, it is replaced
        return False


def _require_one_file(path: Path) -> None:
    # Closing the last connection writes the log into the file; if one is left, somebody holds a connection.
    if path.with_name(path.name + ".wal").exists():
        raise StoreError(
            "the knowledge base is still open elsewhere in this process",
            str(path),
            "close it before the commit",
        )

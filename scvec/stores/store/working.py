"""What a writer keeps under ``work/``: its copy of the knowledge base, which becomes a file of the store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import StoreError
from scvec.base.types import text_sha256
from scvec.stores.store.files import content_name, holds, os_errors, publish, sha256_file, sync_file
from scvec.stores.store.generations import Generation
from scvec.stores.store.manifest import KnowledgeEntry

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["KnowledgeCopy", "journal_path", "stale_copies"]


def journal_path(folder: Path) -> Path:
    """Path of a store's journal of answers."""
    return folder / "work" / "answers.log"


class KnowledgeCopy:
    """A private copy of a generation's knowledge base under ``work/``; no file if the generation has none.

    Parameters
    ----------
    base
        The generation.
    origin
        Command and parameters: a copy left by an earlier attempt is gone on with if these are the same.
    resume
        Keep the copy on failure, and go on with such a one.
    """

    def __init__(self, base: Generation, origin: dict[str, Any], *, resume: bool) -> None:
        self._base = base
        self._resume = resume
        self._kb: KnowledgeBase | None = None
        key = "-" + text_sha256(json.dumps(origin, sort_keys=True))[:8] if resume else ""
        self.path = base.folder / "work" / f"kb{key}.duckdb"
        entry = base.manifest.knowledge
        note = self.path.with_suffix(".json")
        origin = {**origin, "base": "" if entry is None else entry.file}
        with os_errors(base.folder):
            if resume and self.path.is_file() and not self.path.is_symlink() and _read_json(note) == origin:
                return
            _remove_database(self.path)
            if entry is not None:
                shutil.copyfile(base.path_of(entry.file), self.path)
            if resume:
                note.write_text(json.dumps(origin), encoding="utf-8")

    def open(self) -> KnowledgeBase:
        """Return it open for writing; :meth:`close` closes it."""
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
            publish(self.path, target)
        return {"kb_bytes": target.stat().st_size, "kb_sha256": sha256_file(target)}

    def discard(self, *, committed: bool) -> None:
        """Delete the copy, unless it is kept for the next attempt."""
        self.close()
        if committed or not self._resume:
            with suppress(OSError):
                _remove_database(self.path)


def stale_copies(current: Generation) -> Iterator[Path]:
    """Files of copies under ``work/`` that no later attempt can go on with."""
    entry = current.manifest.knowledge
    base = "" if entry is None else entry.file
    for path in sorted((current.folder / "work").glob("kb*")):
        note = current.folder / "work" / (path.name.split(".")[0] + ".json")
        found = _read_json(note)
        if not isinstance(found, dict) or found.get("base") != base:
            yield path


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


def _remove_database(path: Path) -> None:
    for name in (path.name, path.name + ".wal", path.stem + ".json"):
        with suppress(FileNotFoundError):
            os.unlink(path.with_name(name))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None

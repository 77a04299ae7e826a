"""Generations (versions) of a store: find the current one, read one, write one, delete old ones."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, StoreError
from scvec.stores.store.files import (
    check_file,
    content_name,
    holds,
    open_regular,
    os_errors,
    sha256_file,
    sync_file,
    write_atomic,
)
from scvec.stores.store.manifest import KnowledgeEntry, Manifest

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = [
    "Generation",
    "KnowledgeCopy",
    "journal_path",
    "list_generations",
    "manifest_path",
    "read_current",
    "read_generation",
    "try_drop",
    "write_generation",
]

_CURRENT = re.compile(rb"(\d{6})\n([0-9a-f]{64})\n")
_MANIFEST = re.compile(r"(\d{6})\.json")


class Generation:
    """An immutable version of the store.

    While this object exists, `compact` does not delete the generation's files, in any process. This needs a
    platform with ``flock``.
    """

    def __init__(self, folder: Path, manifest: Manifest, fd: int | None) -> None:
        self.folder = folder
        self.manifest = manifest
        if fd is not None:
            weakref.finalize(self, os.close, fd)

    @property
    def number(self) -> int:
        """Number of the generation; 0 is the empty store."""
        return self.manifest.generation

    def path_of(self, name: str) -> Path:
        """Return the path of one of its files, after a check of size and SHA-256.

        Raises
        ------
        StoreError
            The file is missing, has another size, or is damaged.
        """
        entry = self.manifest.entry(name)
        return check_file(self.folder / "files" / name, entry.n_bytes, entry.sha256)


def manifest_path(folder: Path, number: int) -> Path:
    """Return the path of a generation's manifest."""
    return folder / "generations" / f"{number:06d}.json"


def list_generations(folder: Path) -> list[int]:
    """Return the numbers of all manifests in the folder, ascending, unfinished generations included."""
    try:
        names = os.listdir(folder / "generations")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(m.group(1)) for m in map(_MANIFEST.fullmatch, names) if m)


def current_number(folder: Path) -> tuple[int, str]:
    """Return the number in ``CURRENT``, and the SHA-256 of the manifest of that generation.

    The SHA-256 reveals a flipped bit in ``CURRENT``, which could otherwise name another generation.

    Raises
    ------
    StoreError
        ``CURRENT`` is missing or damaged.
    """
    path = folder / "CURRENT"
    try:
        with open(open_regular(path), "rb") as handle:
            content = handle.read(200)
    except FileNotFoundError:
        raise StoreError(
            "the file CURRENT of the store is missing",
            str(path),
            "restore the store from a copy, or ingest again",
        ) from None
    except PermissionError as error:
        raise InputError("no permission to read the store", str(path), code="permission-denied") from error
    except OSError as error:
        raise StoreError(f"the store cannot be read ({error.strerror})", str(path)) from error
    match = _CURRENT.fullmatch(content)
    if match is None:
        raise StoreError(
            "the file CURRENT of the store is damaged",
            str(path),
            "restore the store from a copy, or ingest again",
        )
    return int(match.group(1)), match.group(2).decode("ascii")


def read_current(folder: Path) -> Generation:
    """Return the current generation.

    Raises
    ------
    StoreError
        The store is damaged, or has a newer format.
    """
    for _ in range(20):
        number, sha256 = current_number(folder)
        path = manifest_path(folder, number)
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            # Either a compaction deleted the manifest after CURRENT was read, or it is lost: read CURRENT
            # again.
            if current_number(folder) == (number, sha256):
                raise StoreError(
                    f"the manifest of version {number} is missing", str(path), "restore the store from a copy"
                ) from None
            continue
        except OSError as error:
            raise StoreError(f"the manifest cannot be read ({error.strerror})", str(path)) from error
        found = _read_shared(folder, number, fd, sha256)
        if found is not None:
            return found
    raise StoreError("the store changes faster than it can be read", str(folder), "run the command again")


def read_generation(folder: Path, number: int) -> Generation:
    """Return the current or an older generation.

    Raises
    ------
    InputError
        The generation does not exist, or `compact` has deleted it. The message lists the existing ones.
    StoreError
        The store is damaged, or has a newer format.
    """
    current = read_current(folder)
    if number == current.number:
        return current
    if 0 <= number < current.number:  # a killed writer may have left a manifest beyond CURRENT
        with suppress(FileNotFoundError):
            found = _read_shared(folder, number, open_regular(manifest_path(folder, number)), None)
            if found is not None:
                return found
    existing = [n for n in list_generations(folder) if n <= current.number]
    listed = ("..., " if len(existing) > 12 else "") + ", ".join(map(str, existing[-12:]))
    raise InputError(
        f"the store has no version {number}",
        str(folder),
        f"it has: {listed}; scvec compact deletes older versions",
        code="unknown-version",
    )


def _read_shared(folder: Path, number: int, fd: int, sha256: str | None) -> Generation | None:
    """Read the open manifest ``fd`` under a shared lock; return None if the manifest was deleted.

    The generation keeps ``fd`` open if it holds a shared lock; otherwise this function closes it. ``sha256``
    is None for older generations: only ``CURRENT`` stores the SHA-256 of a manifest.
    """
    path = manifest_path(folder, number)
    keep = False
    try:
        shared = _share(fd)
        if os.fstat(fd).st_nlink == 0:
            return None  # deleted between opening and locking
        with open(fd, "rb", closefd=False) as handle:
            data = handle.read()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(
                f"the manifest of version {number} is damaged (its SHA-256 differs)",
                str(path),
                "restore the store from a copy, or ingest into a new one",
            )
        manifest = Manifest.from_bytes(data, str(path))
        if manifest.generation != number:
            raise StoreError(f"the manifest of version {number} belongs to another version", str(path))
        keep = shared
        return Generation(folder, manifest, fd if shared else None)
    finally:
        if not keep:
            os.close(fd)


def write_generation(folder: Path, manifest: Manifest) -> None:
    """Write a manifest and make it current. The files that it lists must already be on the disk."""
    data = manifest.to_bytes()
    write_atomic(manifest_path(folder, manifest.generation), data)
    sha256 = hashlib.sha256(data).hexdigest()
    write_atomic(folder / "CURRENT", f"{manifest.generation:06d}\n{sha256}\n".encode("ascii"))


def try_drop(folder: Path, number: int) -> bool:
    """Delete the manifest of an old generation, unless a reader uses it; return True if it is deleted."""
    path = manifest_path(folder, number)
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        return True
    try:
        if not _claim(fd):
            return False
        path.unlink()
        return True
    finally:
        os.close(fd)


def _share(fd: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows does not delete open files, so no lock is needed
        return False
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)
        return True
    return False


def _claim(fd: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without flock
        return True
    return True


def journal_path(folder: Path) -> Path:
    """Return the path of a store's journal of answers."""
    return folder / "work" / "answers.log"


class KnowledgeCopy:
    """A writer's copy of a generation's knowledge base, under ``work/``, if the generation has one."""

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
        """Open the copy for writing and return it; :meth:`close` closes it."""
        from scvec.stores.knowledge.knowledge import KnowledgeBase

        if self._kb is None:
            with os_errors(self.path):
                self._kb = KnowledgeBase.open(self.path)
        return self._kb

    def close(self) -> None:
        """Close the copy if it is open."""
        kb, self._kb = self._kb, None
        if kb is not None:
            kb.close()

    def finish(self) -> KnowledgeEntry | None:
        """Close the copy, so that DuckDB writes everything to one file.

        Returns
        -------
        KnowledgeEntry or None
            Entry for the manifest; None if there is no file.

        Raises
        ------
        StoreError
            Another connection in this process has the copy open.
        """
        self.close()
        if not self.path.exists():
            return None
        _require_one_file(self.path)
        old = self._base.manifest.knowledge
        if old is not None:
            entry = self._base.manifest.entry(old.file)
            if holds(self.path, entry.n_bytes, entry.sha256):
                return old  # the copy did not change; computing a digest would take seconds
        from scvec.stores.knowledge.knowledge import KnowledgeBase
        from scvec.stores.knowledge.tables import SCHEMA_VERSION

        kb = KnowledgeBase.open(self.path)
        try:
            # Finished jobs are not part of the content digest, but losing them would repeat paid questions.
            # So the file name depends on them too.
            name, digest = kb.digests()
        finally:
            kb.close()
        return KnowledgeEntry(content_name("kb", name, "duckdb"), digest, SCHEMA_VERSION)

    def publish(self, entry: KnowledgeEntry) -> dict[str, Any]:
        """Move the copy to ``files/``; return its size and SHA-256 for the manifest's ``run``."""
        target = self._base.folder / "files" / entry.file
        # An older generation may have the same content in other bytes. Its manifest lists those: keep that
        # file.
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
    except Exception:  # whatever the damage is, the file is replaced
        return False


def _require_one_file(path: Path) -> None:
    # Closing the last connection merges DuckDB's log into the file. A remaining log shows an open connection.
    if path.with_name(path.name + ".wal").exists():
        raise StoreError(
            "the knowledge base is still open elsewhere in this process",
            str(path),
            "close it before the commit",
        )

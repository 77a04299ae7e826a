"""The folder that holds it all."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Progress, no_progress
from scvec.stores.store.files import check_folder, open_regular, os_errors
from scvec.stores.store.generations import (
    Generation,
    list_generations,
    manifest_path,
    read_current,
    read_generation,
    try_drop,
    write_generation,
)
from scvec.stores.store.lock import WriterLock, is_held
from scvec.stores.store.manifest import Manifest
from scvec.stores.store.reference_reader import StoredReference, StoredSpace
from scvec.stores.store.transaction import Transaction
from scvec.stores.store.vector_cache import VectorCache
from scvec.stores.store.verify import VerifyReport, verify_generation
from scvec.stores.store.working import journal_path

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.journal import Journal

__all__ = ["CompactReport", "Store"]

_FOLDERS = ("files", "generations", "work")
# What may lie in a folder whose creation as a store was interrupted.
_OURS = re.compile(r"files|generations|work|lock|lock\.json|lock\.json\.tmp|\.CURRENT\..*\.tmp|\.DS_Store")


@dataclass
class CompactReport:
    """What `Store.compact` removed.

    Attributes
    ----------
    generation
        The current generation.
    dropped
        Numbers of older generations that are gone.
    kept
        Numbers of older generations that a reader is using.
    n_files, n_bytes
        Files deleted, and their size.
    """

    generation: int
    dropped: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


class Store:
    """A store that is there; `Store.open` can also create one.

    A Store reads the current generation once and stays on it while others write, until :meth:`refresh` or a
    commit of its own. Everything is read from the disk when it is asked for.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    InputError
        There is no store at ``path`` yet.
    StoreError
        The folder is not a store, the store is damaged, or of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expanded(path)
        _require(self.path)
        self._generation = read_current(self.path)

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open a store, or create an empty one where nothing is.

        Raises
        ------
        InputError
            There is none and ``create`` is False; the message says how to make one.
        StoreError
            The folder holds something else, the store is damaged, or of a newer format.
        """
        if create:
            _create(expanded(path))
        return cls(path)

    @property
    def generation(self) -> Generation:
        """The generation this object reads; number 0 is the empty store."""
        return self._generation

    def refresh(self) -> Generation:
        """Go to the generation that is current now."""
        self._generation = read_current(self.path)
        return self._generation

    def at(self, number: int) -> Store:
        """Return this store as it was in an older generation, for reading.

        Raises
        ------
        InputError
            There is no such generation, or `compact` has dropped it; names those there are.
        """
        older = copy(self)
        older._generation = read_generation(self.path, number)
        return older

    def journal(self) -> Journal:
        """Return the journal of answers of live sources, to look at; it belongs to no generation."""
        from scvec.stores.store.journal import Journal

        return Journal(journal_path(self.path), writable=False)

    @contextmanager
    def begin(
        self, command: str, params: Mapping[str, Any] | None = None, *, wait: float = 0.0
    ) -> Iterator[Transaction]:
        """Begin a change of the current generation (see `Transaction`), holding the writer lock.

        Raises
        ------
        LockedError
            Another process, which is named, writes to the store and is not done in ``wait`` seconds.
        """
        with Transaction(self.path, command, params, wait=wait) as transaction:
            try:
                yield transaction
            finally:
                if transaction.committed:
                    self.refresh()

    @contextmanager
    def knowledge(self) -> Iterator[KnowledgeBase]:
        """Open this generation's knowledge base for reading.

        Raises
        ------
        InputError
            The store has none yet.
        StoreError
            It is damaged.
        """
        entry = self._generation.manifest.knowledge
        if entry is None:
            raise InputError(
                "the store has no gene knowledge yet",
                str(self.path),
                "run: scvec ingest genes",
                code="store-empty",
            )
        from scvec.stores.knowledge.knowledge import KnowledgeBase

        kb = KnowledgeBase.open(self._generation.path_of(entry.file), read_only=True)
        try:
            yield kb
        finally:
            kb.close()

    def references(self) -> dict[str, dict[str, Any]]:
        """Name -> description (JSON values) of every reference, sorted by name."""
        names = sorted(self._generation.manifest.references)
        return {name: self.reference(name).meta for name in names}

    def reference(self, name: str) -> StoredReference:
        """Return a reference, or raise InputError that names those there are."""
        entries = self._generation.manifest.references
        if name in entries:
            return StoredReference(self._generation, name, entries[name])
        raise InputError(
            f"the store has no reference {name!r}",
            str(self.path),
            _suggest(name, sorted(entries), "scvec ingest cells REF.h5ad --name NAME --label-key COLUMN"),
            code="unknown-reference",
        )

    def spaces(self) -> dict[str, StoredSpace]:
        """Fingerprint -> gene vectors of every embedding space, sorted by fingerprint."""
        entries = self._generation.manifest.spaces
        return {f: StoredSpace(self._generation, entries[f]) for f in sorted(entries)}

    def space(self, fingerprint: str) -> StoredSpace:
        """Return gene vectors of a space, or raise InputError that names those there are."""
        entries = self._generation.manifest.spaces
        if fingerprint in entries:
            return StoredSpace(self._generation, entries[fingerprint])
        raise InputError(
            f"the store has no embedding space {fingerprint!r}",
            str(self.path),
            _suggest(fingerprint, sorted(entries), "scvec ingest embeddings"),
            code="unknown-space",
        )

    def vectors(self) -> VectorCache:
        """Return the text vectors of this generation, for reading only."""
        return VectorCache(self.spaces())

    def verify(self, *, progress: Progress = no_progress) -> VerifyReport:
        """Check every file and what is in it (see `verify_generation`)."""
        return verify_generation(self._generation, progress=progress)

    def compact(self, *, wait: float = 0.0) -> CompactReport:
        """Delete older generations that nobody reads, unused files, and what killed writers left.

        The cache of text vectors under ``work/`` stays. Encoders whose training was killed start again.

        Raises
        ------
        LockedError
            Another process writes to the store.
        """
        with WriterLock(self.path, "scvec compact", wait=wait), os_errors(self.path):
            current = self.refresh()
            report = CompactReport(current.number)
            used = set(current.manifest.all_files())
            for number in list_generations(self.path):
                if number == current.number:
                    continue
                if try_drop(self.path, number):
                    report.dropped.append(number)
                    continue
                report.kept.append(number)
                path = manifest_path(self.path, number)
                with open(open_regular(path), "rb") as file:
                    used.update(Manifest.from_bytes(file.read(), str(path)).all_files())
            files = self.path / "files"
            unused = [path for path in sorted(files.iterdir()) if path.name not in used]
            for path in (*unused, *_leftovers(self.path)):
                if path.is_dir() and not path.is_symlink():
                    continue  # somebody else's, such as .ipynb_checkpoints
                size = path.lstat().st_size
                path.unlink()
                report.n_files += 1
                report.n_bytes += size
        return report


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` and ``$NAME`` replaced, as a shell does."""
    return Path(os.path.expandvars(path)).expanduser()


def _leftovers(folder: Path) -> Iterator[Path]:
    yield from folder.glob(".*.tmp")
    yield from folder.glob("generations/.*.tmp")
    yield from folder.glob("work/kb*")
    # Cells that `ingest census` has read, unless it still reads.
    for place in folder.glob("work/census-*"):
        if not place.is_symlink() and not is_held(place / "lock"):
            yield from place.glob("*")
    # Fits to the genes of queries are made again when they are asked for.
    for name in ("work/stage", "work/prompt", "fits"):
        if not (folder / name).is_symlink():
            yield from folder.glob(f"{name}/*")


def _suggest(name: str, known: list[str], create: str) -> str:
    if not known:
        return f"it has none yet; run: {create}"
    close = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"it has: {listed}"


def _require(path: Path) -> None:
    if (path / "CURRENT").is_file():
        for name in _FOLDERS:
            check_folder(path / name)
        return
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        names = []
    except NotADirectoryError:
        raise StoreError(
            "a store is a folder, this is a file", str(path), "give another --store", code="not-a-store"
        ) from None
    except OSError as error:
        raise InputError(f"the store cannot be read ({error.strerror})", str(path)) from error
    if any(number > 0 for number in list_generations(path)):
        raise StoreError(
            "the store has lost its file CURRENT", str(path), "restore the store from a copy, or ingest again"
        )
    if not all(_OURS.fullmatch(name) for name in names):
        raise StoreError(
            "the folder is not a store of scvec", str(path), "give another --store", code="not-a-store"
        )
    raise InputError(
        "there is no store here yet",
        str(path),
        f"run: scvec ingest cells REF.h5ad --name NAME --label-key COLUMN --store {path}",
        code="store-empty",
    )


def _create(path: Path) -> None:
    try:
        _require(path)
        return
    except InputError:  # nothing is there: what is wanted
        pass
    with os_errors(path):
        for name in _FOLDERS:
            (path / name).mkdir(parents=True, exist_ok=True)
        with WriterLock(path, "create the store", wait=10.0):
            if not (path / "CURRENT").exists():
                with suppress(FileNotFoundError):
                    manifest_path(path, 0).unlink()
                write_generation(path, Manifest(0))

"""The store: a folder with genes, text vectors and references. Open, read, verify and compact it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import InputError, ResourceError, ScvecError, StoreError, did_you_mean
from scvec.base.resources import expanded
from scvec.base.types import Float32, Progress, no_progress
from scvec.stores.index.distances import Index, brute_force
from scvec.stores.store.files import check_file, check_folder, open_regular, os_errors
from scvec.stores.store.generations import (
    Generation,
    journal_path,
    list_generations,
    manifest_path,
    read_current,
    read_generation,
    try_drop,
    write_generation,
)
from scvec.stores.store.manifest import Manifest
from scvec.stores.store.reference_reader import StoredReference, StoredSpace
from scvec.stores.store.transaction import Transaction, WriterLock, is_held
from scvec.stores.store.vector_cache import VectorCache

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.journal import Journal

__all__ = ["CompactReport", "Store", "VerifyReport", "unreferenced_files", "verify_generation"]

SAMPLE_QUERIES = 16
SAMPLE_NEIGHBORS = 10
#: Tolerance of `verify`: recall on 16 sampled vectors may be lower than the measured recall by this much.
APPROXIMATE_SLACK = 0.2


@dataclass
class VerifyReport:
    """Result of a check of the store.

    Attributes
    ----------
    generation
        Number of the checked generation.
    n_files, n_bytes
        Number of files read, and their size in bytes.
    problems
        One line for each problem; empty if there is none.
    unreferenced
        Names under ``files/`` that the generation does not use. They belong to older generations, or a killed
        writer left them. `compact` deletes them.
    """

    generation: int
    n_files: int = 0
    n_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    unreferenced: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            "ok": self.ok,
            "generation": self.generation,
            "n_files": self.n_files,
            "n_bytes": self.n_bytes,
            "problems": list(self.problems),
            "unreferenced": list(self.unreferenced),
        }


def unreferenced_files(generation: Generation) -> list[str]:
    """Return the names under ``files/`` that the generation does not use, sorted."""
    try:
        names = set(os.listdir(generation.folder / "files"))
    except OSError:
        return []
    return sorted(names - set(generation.manifest.all_files()))


def verify_generation(generation: Generation, *, progress: Progress = no_progress) -> VerifyReport:
    """Read every file of a generation and check that the contents are consistent.

    The checks are: sizes and SHA-256 agree; vectors, tables and indices have the same length; index and
    vector file hold the same vectors; for sampled rows the index finds the same neighbours as brute force;
    the knowledge base opens and has the digest of the manifest.
    """
    report = VerifyReport(generation.number)
    manifest = generation.manifest
    damaged: set[str] = set()
    files = sorted(manifest.all_files().items())
    for done, (name, entry) in enumerate(files):
        progress("checking files", done, len(files))
        report.n_files += 1
        report.n_bytes += entry.n_bytes
        path = generation.folder / "files" / name
        if not _passes(report, lambda p=path, e=entry: check_file(p, e.n_bytes, e.sha256, fresh=True)):  # type: ignore[misc]
            damaged.add(name)
    progress("checking files", len(files), len(files))

    for fingerprint, space in manifest.spaces.items():
        if not damaged.intersection(space.files()):
            stored_space = StoredSpace(generation, space)
            _passes(report, lambda s=stored_space, f=fingerprint: _check_space(report, s, f))  # type: ignore[misc]
    for name, reference in manifest.references.items():
        if not damaged.intersection(reference.files()):
            stored = StoredReference(generation, name, reference)
            _passes(report, lambda s=stored: _check_reference(report, s))  # type: ignore[misc]
    if manifest.knowledge is not None and manifest.knowledge.file not in damaged:
        _passes(report, lambda: _check_knowledge(report, generation))
    report.unreferenced = unreferenced_files(generation)
    return report


def _passes(report: VerifyReport, check: Callable[[], object]) -> bool:
    """Run a check; add its error to the problems and return False if it fails."""
    try:
        check()
    except ResourceError:
        raise
    except ScvecError as error:
        report.problems.append(f"{error.what}: {Path(error.where).name}" if error.where else error.what)
        return False
    except Exception as error:  # a file with the right checksum that cannot be read is a problem, not a crash
        report.problems.append(f"a file cannot be read ({type(error).__name__}: {error})")
        return False
    return True


def _check_space(report: VerifyReport, stored: StoredSpace, fingerprint: str) -> None:
    where = f"space {fingerprint}"
    if stored.genes["gene_id"].duplicated().any():
        report.problems.append(f"{where}: a gene is listed twice")
    _check_index(report, stored.index, stored.vectors, where)


def _check_reference(report: VerifyReport, stored: StoredReference) -> None:
    _ = (stored.meta, stored.tensors, stored.obs, stored.index)
    for i, (index, vectors) in enumerate(stored.segments()):
        _check_index(report, index, vectors, f"reference {stored.name}" + (f", segment {i}" if i else ""))


def _check_index(report: VerifyReport, index: Index, vectors: Float32, where: str) -> None:
    n = len(vectors)
    held = index.vectors()
    for start in range(0, n, 65536):
        stop = min(n, start + 65536)
        if not np.isfinite(vectors[start:stop]).all():
            report.problems.append(f"{where}: a vector holds NaN or infinity")
            return
        if not np.array_equal(held[start:stop], vectors[start:stop]):
            report.problems.append(f"{where}: the vectors in the index differ from the vector file")
            return
    if n == 0:
        return
    rows = np.unique(np.linspace(0, n - 1, num=min(n, SAMPLE_QUERIES)).astype(np.int64))
    queries = np.ascontiguousarray(vectors[rows])
    if not index.is_exact:
        _check_approximate(report, index, queries, where)
        return
    found = index.search(queries, min(n, SAMPLE_NEIGHBORS))
    oracle = brute_force(np.asarray(vectors), queries, min(n, SAMPLE_NEIGHBORS))
    same = np.array_equal(found.indices, oracle.indices) and np.array_equal(found.distances, oracle.distances)
    if not same:
        report.problems.append(f"{where}: the index finds other neighbours than brute force")


def _check_approximate(report: VerifyReport, index: Any, queries: Float32, where: str) -> None:
    """Check that each sampled vector finds itself, and that recall is close to the recall at the ingest.

    The check compares distances, not rows, because identical cells are interchangeable.
    """
    k = min(index.n, SAMPLE_NEIGHBORS)
    found, truth = index.search(queries, k).distances, index.exact().search(queries, k).distances
    hits = float((found <= truth[:, -1:]).mean())
    if (
        hits < index.settings.recall.get("at_15", 1.0) - APPROXIMATE_SLACK
        or (found[:, 0] > truth[:, 0]).any()
    ):
        report.problems.append(f"{where}: the index finds {hits:.0%} of the neighbours of its own vectors")


def _check_knowledge(report: VerifyReport, generation: Generation) -> None:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

    entry = generation.manifest.knowledge
    if entry is None:
        return
    with KnowledgeBase.open(generation.folder / "files" / entry.file, read_only=True) as kb:
        if kb.digest() != entry.digest:
            report.problems.append("the content of the knowledge base differs from the manifest")
        if kb.schema_version != entry.schema_version:
            report.problems.append("the schema of the knowledge base differs from the manifest")


_FOLDERS = ("files", "generations", "work")
# Names that a folder may contain if the creation of a store in it was interrupted.
_INCOMPLETE = re.compile(
    r"files|generations|work|lock|lock\.json|lock\.json\.tmp|\.CURRENT\..*\.tmp|\.DS_Store"
)


@dataclass
class CompactReport:
    """Result of `Store.compact`.

    Attributes
    ----------
    generation
        Number of the current generation.
    dropped
        Numbers of deleted older generations.
    kept
        Numbers of older generations that a reader still uses.
    n_files, n_bytes
        Number of deleted files, and their size in bytes.
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
    """An existing store; `Store.open` can also create one.

    A Store reads the current generation once. It keeps reading that generation while other processes write,
    until :meth:`refresh` or its own commit. Files are read on first use.

    Parameters
    ----------
    path
        Folder of the store.

    Raises
    ------
    InputError
        There is no store at ``path`` yet.
    StoreError
        The folder is not a store, the store is damaged, or it has a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expanded(path)
        _require(self.path)
        self._generation = read_current(self.path)

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open a store, or create an empty one.

        Raises
        ------
        InputError
            There is no store and ``create`` is False; the message says how to make one.
        StoreError
            The folder is not a store, the store is damaged, or it has a newer format.
        """
        if create:
            _create(expanded(path))
        return cls(path)

    @property
    def generation(self) -> Generation:
        """The generation that this object reads; number 0 is the empty store."""
        return self._generation

    def refresh(self) -> Generation:
        """Switch to the newest generation and return it."""
        self._generation = read_current(self.path)
        return self._generation

    def at(self, number: int) -> Store:
        """Return this store at an older generation, read-only.

        Raises
        ------
        InputError
            The generation does not exist, or `compact` has deleted it. The message lists the existing ones.
        """
        older = copy(self)
        older._generation = read_generation(self.path, number)
        return older

    def journal(self) -> Journal:
        """Return the journal of answers of live sources, read-only; it belongs to no generation."""
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
            Another process writes to the store for longer than ``wait`` seconds; the message names it.
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
            The store has no knowledge base yet.
        StoreError
            The knowledge base is damaged.
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
        """Return name -> description (JSON values) of every reference, sorted by name."""
        names = sorted(self._generation.manifest.references)
        return {name: self.reference(name).meta for name in names}

    def reference(self, name: str) -> StoredReference:
        """Return a reference; raise InputError, which lists the references, if it does not exist."""
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
        """Return fingerprint -> gene vectors of every embedding space, sorted by fingerprint."""
        entries = self._generation.manifest.spaces
        return {f: StoredSpace(self._generation, entries[f]) for f in sorted(entries)}

    def space(self, fingerprint: str) -> StoredSpace:
        """Return the gene vectors of a space; raise InputError, which lists the spaces, if there are none."""
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
        """Return the text vectors of this generation, read-only."""
        return VectorCache(self.spaces())

    def verify(self, *, progress: Progress = no_progress) -> VerifyReport:
        """Check every file and its content (see `verify_generation`)."""
        return verify_generation(self._generation, progress=progress)

    def compact(self, *, wait: float = 0.0) -> CompactReport:
        """Delete older generations without readers, unused files, and files that killed writers left.

        The cache of text vectors under ``work/`` stays.

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
                    continue  # a folder of another program, such as .ipynb_checkpoints
                size = path.lstat().st_size
                path.unlink()
                report.n_files += 1
                report.n_bytes += size
        return report


def _leftovers(folder: Path) -> Iterator[Path]:
    yield from folder.glob(".*.tmp")
    yield from folder.glob("generations/.*.tmp")
    yield from folder.glob("work/kb*")
    # Cells that `ingest census` has read, unless it is still running.
    for place in folder.glob("work/census-*"):
        if not place.is_symlink() and not is_held(place / "lock"):
            yield from place.glob("*")
    # Fits to the genes of queries are computed again when a query needs them.
    for name in ("work/stage", "fits"):
        if not (folder / name).is_symlink():
            yield from folder.glob(f"{name}/*")


def _suggest(name: str, known: list[str], create: str) -> str:
    if not known:
        return f"it has none yet; run: {create}"
    listed = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
    return f"{did_you_mean(name, known)}it has: {listed}"


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
            "the path of the store is a file, not a folder",
            str(path),
            "give another --store",
            code="not-a-store",
        ) from None
    except OSError as error:
        raise InputError(f"the store cannot be read ({error.strerror})", str(path)) from error
    if any(number > 0 for number in list_generations(path)):
        raise StoreError(
            "the file CURRENT of the store is missing",
            str(path),
            "restore the store from a copy, or ingest again",
        )
    if not all(_INCOMPLETE.fullmatch(name) for name in names):
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
    except InputError:  # there is no store yet: create one
        pass
    with os_errors(path):
        for name in _FOLDERS:
            (path / name).mkdir(parents=True, exist_ok=True)
        with WriterLock(path, "create the store", wait=10.0):
            if not (path / "CURRENT").exists():
                with suppress(FileNotFoundError):
                    manifest_path(path, 0).unlink()
                write_generation(path, Manifest(0))

"""Transactions: a change is prepared under the lock of the writer, and then made current in one step."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, LockedError, StoreError
from scvec.base.types import Float32, Int64, Space
from scvec.stores.index import build_index
from scvec.stores.index.distances import checked_vectors
from scvec.stores.store.files import (
    check_folder,
    check_reference_name,
    content_name,
    holds,
    is_full,
    os_errors,
    sha256_file,
    sync_file,
    sync_folder,
    write_json,
    write_table,
    write_tensors,
)
from scvec.stores.store.generations import (
    Generation,
    KnowledgeCopy,
    journal_path,
    read_current,
    write_generation,
)
from scvec.stores.store.journal import Journal
from scvec.stores.store.manifest import (
    FileEntry,
    Manifest,
    ReferenceEntry,
    SegmentEntry,
    SpaceEntry,
    library_versions,
    portable,
)
from scvec.stores.store.reference_reader import StoredReference, StoredSpace
from scvec.stores.store.vector_cache import VectorCache

if TYPE_CHECKING:
    import pandas as pd

    from scvec.stores.index.distances import Index
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["GENE_COLUMNS", "Transaction", "WriterLock", "checked_genes", "is_held", "merged_genes"]


class WriterLock:
    """Write lock of a store.

    The operating system locks the file ``lock``. It releases the lock when the process ends, so a killed
    writer never blocks other processes. ``lock.json`` names the process that holds the lock.

    Parameters
    ----------
    folder
        Folder of the store.
    command
        Command of the holder, for the error message of other processes.
    wait
        Seconds to wait for another writer.
    """

    def __init__(self, folder: Path, command: str, *, wait: float = 0.0) -> None:
        self._folder = folder
        self._command = command
        self._wait = wait
        self._lock: Any = None

    @property
    def held(self) -> bool:
        """True while this object holds the lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        LockedError
            Another process holds the lock; the message names it.
        StoreError
            ``lock`` is not a regular file.
        """
        import filelock

        path = self._folder / "lock"
        lock = filelock.FileLock(str(path), thread_local=False)
        with os_errors(self._folder):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise StoreError("the lock of the store is not a file", str(path), "delete it")
            try:
                lock.acquire(timeout=self._wait, poll_interval=0.02)
            except filelock.Timeout:
                raise self._refusal() from None
            self._lock = lock
            try:
                self._sign()
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Release the lock."""
        if self._lock is None:
            return
        with suppress(OSError):
            (self._folder / "lock.json").unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def __enter__(self) -> WriterLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _sign(self) -> None:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": self._command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        temporary = self._folder / "lock.json.tmp"
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "x", encoding="utf-8") as file:  # "x" does not write through a link
                file.write(json.dumps(holder, sort_keys=True) + "\n")
            os.replace(temporary, self._folder / "lock.json")
        except OSError as error:
            # On a full disk the lock holds without lock.json, because `compact` must still run to free space.
            if not is_full(error):
                raise

    def _refusal(self) -> LockedError:
        where = str(self._folder)
        holder: dict[str, Any] | None = None
        for _ in range(10):  # the holder may have the lock but not yet have written lock.json
            holder = _read_holder(self._folder / "lock.json")
            if holder is not None and _alive(holder):
                break
            time.sleep(0.02)
        if holder is None:
            return LockedError("another process is writing to the store", where, "wait until it ends")
        return LockedError(
            f"process {holder['pid']} on {holder['host']} is writing to the store"
            f" ({holder['command']}, since {holder['started']})",
            where,
            "wait until it ends, or stop that process",
        )


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    names = ("pid", "host", "command", "started")
    if not isinstance(holder, dict) or any(name not in holder for name in names):
        return None
    return holder


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname() or not isinstance(holder["pid"], int) or holder["pid"] < 1:
        return True  # processes of another machine cannot be checked
    if os.name == "nt":  # os.kill ends the process on Windows
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock on a file."""
    import filelock

    if not path.is_file():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True


GENE_COLUMNS = ("gene_id", "species", "symbol", "text_sha256")


def checked_genes(genes: pd.DataFrame, vectors: Float32, dim: int) -> tuple[pd.DataFrame, Float32]:
    """Check a table of n genes and their vectors; return both in the form that the store keeps.

    Raises
    ------
    InputError
        A column is missing, a gene is listed twice, or the vectors are not finite (n, dim) float32.
    """
    missing = [c for c in GENE_COLUMNS if c not in genes.columns]
    if missing:
        raise InputError(f"the table of genes lacks the columns {', '.join(missing)}")
    table = genes.loc[:, list(GENE_COLUMNS)].reset_index(drop=True)
    ready = checked_vectors(vectors, dim, "gene vectors")
    if len(table) != len(ready):
        raise InputError(f"{len(table):,} genes but {len(ready):,} vectors")
    twice = table["gene_id"].duplicated()
    if twice.any():
        raise InputError(f"gene {table['gene_id'][twice].iloc[0]} is listed twice")
    return table, ready


def merged_genes(
    old: StoredSpace | None, table: pd.DataFrame, vectors: Float32
) -> tuple[pd.DataFrame, Float32]:
    """Return the genes of ``table`` and the other genes of ``old``, sorted by gene_id, with their vectors."""
    import pandas as pd

    if old is not None:
        keep = (~old.genes["gene_id"].isin(table["gene_id"])).to_numpy()
        table = pd.concat([old.genes.loc[keep], table], ignore_index=True)
        vectors = np.concatenate([old.vectors[keep], vectors])
    order = np.argsort(table["gene_id"].to_numpy(dtype=str), kind="stable")
    return table.iloc[order].reset_index(drop=True), np.ascontiguousarray(vectors[order])


class Transaction:
    """Prepares the next generation; a context manager that holds the writer lock.

    Readers see no change before :meth:`commit`. If the block ends without a commit or with an error, the
    store is unchanged; only the working file of `vectors` stays for the next attempt. Reads through the
    transaction (:meth:`space`, :meth:`reference`) include its own changes.

    Parameters
    ----------
    folder
        Folder of the store.
    command, params
        Command and parameters, for the manifest and for the message to processes that wait for the lock.
    wait
        Seconds to wait for another writer.
    """

    def __init__(
        self, folder: Path, command: str, params: Mapping[str, Any] | None = None, *, wait: float = 0.0
    ) -> None:
        self._folder = folder
        self._command = command
        self._params = portable(dict(params or {}))
        self._lock = WriterLock(folder, command, wait=wait)
        self._stage = folder / "work" / "stage"
        self._staged: dict[str, Path] = {}
        self._base: Generation | None = None
        self._draft = Manifest(0)
        self._run: dict[str, Any] = {}
        self._entries: dict[str, FileEntry] = {}
        self._copy: KnowledgeCopy | None = None
        self._cache: VectorCache | None = None
        self._journal: Journal | None = None
        self._started = 0.0
        self._done = False
        #: Messages for the user that are not errors.
        self.notes: list[str] = []

    def __enter__(self) -> Transaction:
        with os_errors(self._folder):
            check_folder(self._folder / "work")
            (self._folder / "work").mkdir(exist_ok=True)
        self._lock.acquire()
        try:
            self._base = read_current(self._folder)
            self._draft = self._base.manifest
            self._run = {"references": dict(self._draft.run.get("references", {}))}
            with os_errors(self._folder):
                check_folder(self._stage)
                shutil.rmtree(self._stage, ignore_errors=True)  # left by a killed writer
                self._stage.mkdir()
            self._started = time.monotonic()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            # The user must see the error that ended the block, so errors of cleaning up are ignored.
            for part in (self._cache, self._journal):
                with suppress(Exception):
                    if part is not None:
                        part.close()
            with suppress(Exception):
                if self._copy is not None:
                    self._copy.discard()
            self._cache = self._journal = self._copy = None
            shutil.rmtree(self._stage, ignore_errors=True)
        finally:
            self._base = None  # releases the generation, so that `compact` may delete it
            self._lock.release()

    @property
    def base(self) -> Generation:
        """The generation that this transaction started from."""
        if self._base is None or not self._lock.held:
            raise RuntimeError("use a transaction only inside its with-block")
        return self._base

    @property
    def committed(self) -> bool:
        """True after a successful :meth:`commit`."""
        return self._done

    def path_of(self, name: str) -> Path:
        """Return the path of a file of this transaction or of its base generation, after a check."""
        return self._staged[name] if name in self._staged else self.base.path_of(name)

    def put_file(self, name: str, ext: str, write: Callable[[Path], None]) -> str:
        """Write a file with ``write(path)``; return its name in the store, which contains its SHA-256.

        Raises
        ------
        ResourceError
            The disk is full.
        """
        self._check_open()
        path = self._stage / f"{uuid.uuid4().hex}.{ext}"
        try:
            with os_errors(self._folder):
                write(path)
                sync_file(path)
                sha256 = sha256_file(path)
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        final = content_name(name, sha256, ext)
        if final in self._staged:
            path.unlink()
        else:
            self._staged[final] = path
            self._entries[final] = FileEntry(path.stat().st_size, sha256)
        return final

    def put_tensors(self, name: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
        """Write named arrays; return the file name."""
        return self.put_file(name, "safetensors", lambda path: write_tensors(path, tensors))

    def put_table(self, name: str, table: pd.DataFrame) -> str:
        """Write a table; return the file name. :attr:`notes` lists columns that were converted to text."""
        return self.put_file(name, "parquet", lambda path: self.notes.extend(write_table(path, table)))

    def open_knowledge(self) -> KnowledgeBase:
        """Return a writable copy of the knowledge base; `commit` closes it and stores it."""
        self._check_open()
        if self._copy is None:
            self._copy = KnowledgeCopy(self.base)
        return self._copy.open()

    def vectors(self) -> VectorCache:
        """Return the cache of text vectors, open for writing."""
        self._check_open()
        if self._cache is None:
            spaces = {k: StoredSpace(self, e) for k, e in self._draft.spaces.items()}
            self._cache = VectorCache(spaces, self._cache_path)
        return self._cache

    def journal(self) -> Journal:
        """Return the journal of answers of live sources.

        The journal is not part of the transaction: answers stay in it if the transaction fails.
        :meth:`commit` deletes the answers that `KnowledgeBase.absorb` has copied into the knowledge base.
        """
        self._check_open()
        if self._journal is None:
            self._journal = Journal(journal_path(self._folder))
        return self._journal

    def space(self, fingerprint: str) -> StoredSpace | None:
        """Return a space with the changes of this transaction, or None."""
        entry = self._draft.spaces.get(fingerprint)
        return None if entry is None else StoredSpace(self, entry)

    def put_space(
        self,
        space: Space,
        genes: pd.DataFrame,
        vectors: Float32,
        *,
        merge: bool = False,
    ) -> None:
        """Store the gene vectors of a space and replace earlier ones.

        Parameters
        ----------
        space
            Settings that make the vectors comparable.
        genes
            Table of n rows with the columns gene_id (unique), species, symbol, text_sha256.
        vectors
            (n, dim) float32.
        merge
            Keep stored genes that ``genes`` does not list; rows are then sorted by gene_id.

        Raises
        ------
        InputError
            A column is missing, a gene is listed twice, or the vectors are not finite (n, dim) float32.
        """
        self._check_open()
        table, vectors = checked_genes(genes, vectors, space.dim)
        if merge:
            table, vectors = merged_genes(self.space(space.fingerprint), table, vectors)
        index = build_index(vectors)
        entry = SpaceEntry(
            space=space,
            n=len(table),
            genes=self.put_table("genes", table),
            vectors=self.put_tensors("gene-vectors", {"vectors": vectors}),
            index=self.put_file("gene-index", index.extension, index.save),
            index_kind=index.kind,
        )
        self._change(spaces={**self._draft.spaces, space.fingerprint: entry})

    def reference(self, name: str) -> StoredReference | None:
        """Return a reference with the changes of this transaction, or None."""
        entry = self._draft.references.get(name)
        return None if entry is None else StoredReference(self, name, entry)

    def put_reference(
        self,
        name: str,
        *,
        meta: Mapping[str, Any],
        tensors: Mapping[str, npt.NDArray[Any]],
        obs: pd.DataFrame,
        vectors: Float32,
        index: Index | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> None:
        """Store labelled cells and replace an earlier reference of the same name.

        Parameters
        ----------
        name
            Name of the reference: letters, digits, ``.``, ``_`` and ``-``.
        meta
            Source, settings and statistics as JSON values. Equal runs must give equal values, so times belong
            in ``run``.
        tensors
            Named arrays of numbers.
        obs
            Table of n cells.
        vectors
            (n, dim) float32.
        index
            Index of the vectors; None builds a flat index. ``meta["index"]`` then holds the settings and the
            measured recall of an approximate index.
        run
            JSON values that differ between equal runs; kept in the manifest's ``run["references"][name]``.

        Raises
        ------
        InputError
            The name is not valid, the vectors are not finite (n, dim) float32, or ``obs``, ``vectors`` and
            ``index`` do not have the same length.
        """
        self._check_open()
        check_reference_name(name)
        dim = int(vectors.shape[1]) if getattr(vectors, "ndim", 0) == 2 else 0
        vectors = checked_vectors(vectors, dim, "cell vectors")
        if len(obs) != len(vectors):
            raise InputError(f"{len(obs):,} cells but {len(vectors):,} vectors", name)
        index = build_index(vectors) if index is None else index
        if (index.n, index.dim) != vectors.shape:
            what = f"the index holds {index.n:,} x {index.dim} vectors instead of {vectors.shape}"
            raise InputError(what, name)
        described = {k: v for k, v in meta.items() if k != "index"}
        if (settings := getattr(index, "settings", None)) is not None:
            described["index"] = settings.to_dict()
        entry = ReferenceEntry(
            n=len(vectors),
            dim=dim,
            meta=self._put_meta(name, described),
            tensors=self.put_tensors(f"{name}.model", tensors),
            obs=self.put_table(f"{name}.obs", obs),
            vectors=self.put_tensors(f"{name}.vectors", {"vectors": vectors}),
            index=self.put_file(f"{name}.index", index.extension, index.save),
            index_kind=index.kind,
        )
        self._run["references"][name] = portable(dict(run or {}))
        self._put_entry(name, entry)

    def adopt_reference(self, name: str, entry: ReferenceEntry) -> None:
        """Add a reference whose files were written one by one, and replace one of the same name."""
        self._check_open()
        check_reference_name(name)
        self._run["references"][name] = {}
        self._put_entry(name, entry)

    def add_cells(self, name: str, *, meta: Mapping[str, Any], obs: pd.DataFrame, vectors: Float32) -> None:
        """Append cells to a reference, as a new segment.

        Parameters
        ----------
        name
            Name of the reference.
        meta, obs
            Description and table of the whole reference, with the new cells last.
        vectors
            (n, dim) float32 vectors of the new cells.

        Raises
        ------
        KeyError
            There is no reference of this name.
        """
        self._check_open()
        old = self._draft.references[name]
        vectors = checked_vectors(vectors, old.dim, "cell vectors")
        index = build_index(vectors)
        segment = SegmentEntry(
            n=len(vectors),
            vectors=self.put_tensors(f"{name}.vectors", {"vectors": vectors}),
            index=self.put_file(f"{name}.index", index.extension, index.save),
        )
        grown = replace(old, n=old.n + segment.n, appended=(*old.appended, segment))
        self._put_described(name, grown, meta, obs)

    def drop_cells(
        self,
        name: str,
        rows: Int64,
        *,
        meta: Mapping[str, Any],
        tensors: Mapping[str, npt.NDArray[Any]],
        obs: pd.DataFrame,
    ) -> None:
        """Delete cells of a reference. Their vectors stay in the files until `compact` merges them.

        Parameters
        ----------
        name
            Name of the reference.
        rows
            Row numbers (int64) of the cells to delete.
        meta, tensors, obs
            Description, arrays and table of the remaining cells.

        Raises
        ------
        KeyError
            There is no reference of this name.
        """
        self._check_open()
        old = self._draft.references[name]
        before = StoredReference(self, name, old).deleted
        n_all = old.n + old.n_deleted
        deleted = np.union1d(before, np.delete(np.arange(n_all), before)[rows])
        shrunk = replace(
            old,
            n=n_all - len(deleted),
            tensors=self.put_tensors(f"{name}.model", tensors),
            deleted=self.put_tensors(f"{name}.deleted", {"rows": deleted}),
            n_deleted=len(deleted),
        )
        self._put_described(name, shrunk, meta, obs)

    def put_meta(self, name: str, meta: Mapping[str, Any], *, obs: pd.DataFrame | None = None) -> None:
        """Replace the description of a reference, and its obs if given; raise KeyError if it is missing."""
        self._check_open()
        self._put_described(name, self._draft.references[name], meta, obs)

    def remove_reference(self, name: str) -> None:
        """Delete a reference; raise KeyError if it does not exist."""
        self._check_open()
        left = dict(self._draft.references)
        del left[name]
        self._run["references"].pop(name, None)
        self._change(references=left)

    def commit(self) -> Generation:
        """Make the change the current generation and return it.

        If the change is empty, the current generation stays and is returned.

        Raises
        ------
        ResourceError
            The disk is full; the store is unchanged.
        """
        self._check_open()
        base = self.base
        with os_errors(self._folder):
            if self._cache is not None:
                self._cache.close()
            draft, knowledge, copy = self._draft, base.manifest.knowledge, self._copy
            if copy is not None:
                knowledge = copy.finish() or knowledge
            same = (knowledge, draft.files, draft.spaces, draft.references) == (
                base.manifest.knowledge,
                base.manifest.files,
                base.manifest.spaces,
                base.manifest.references,
            )
            # Check the files even if nothing changed, because ingesting again repairs a damaged file.
            for name in sorted(draft.files):
                if name in self._staged:
                    target, entry = self._folder / "files" / name, draft.files[name]
                    if not holds(target, entry.n_bytes, entry.sha256):
                        os.replace(self._staged[name], target)
            if copy is not None and knowledge is not None and knowledge != base.manifest.knowledge:
                self._run.update(copy.publish(knowledge))
            elif knowledge is not None:
                self._run.update({k: base.manifest.run[k] for k in ("kb_bytes", "kb_sha256")})
            sync_folder(self._folder / "files")
            if not same:
                self._run["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
                self._run["seconds"] = round(time.monotonic() - self._started, 3)
                manifest = Manifest(
                    generation=base.number + 1,
                    command=self._command,
                    params=self._params,
                    versions=library_versions(),
                    files=draft.files,
                    knowledge=knowledge,
                    spaces=draft.spaces,
                    references=draft.references,
                    run=self._run,
                )
                write_generation(self._folder, manifest)
        self._done = True
        generation = read_current(self._folder)
        self._forget(generation)
        return generation

    def _forget(self, generation: Generation) -> None:
        """Delete content of a committed generation from the working files.

        The commit has succeeded, so an error here is only noted. Entries that stay in the journal are
        absorbed again by the next transaction, which changes nothing.
        """
        try:
            if self._cache_path.exists():
                spaces = {k: StoredSpace(generation, e) for k, e in generation.manifest.spaces.items()}
                VectorCache({}, self._cache_path).drop_stored(spaces)
        except Exception as error:
            self.notes.append(f"the working cache could not be trimmed ({type(error).__name__})")
        if self._journal is not None:
            try:
                self._journal.clear()
            except Exception as error:
                self.notes.append(f"the journal of answers could not be cleared ({type(error).__name__})")
            self.notes += self._journal.notes

    @property
    def _cache_path(self) -> Path:
        return self._folder / "work" / "vectors.log"

    def _check_open(self) -> None:
        if self._done or not self._lock.held:
            raise RuntimeError("the transaction has ended")

    def _change(self, **changes: Any) -> None:
        self._draft = self._draft.with_files_of_use(files={**self._draft.files, **self._entries}, **changes)

    def _put_meta(self, name: str, meta: Mapping[str, Any]) -> str:
        return self.put_file(f"{name}.meta", "json", lambda path: write_json(path, dict(meta)))

    def _put_described(
        self, name: str, entry: ReferenceEntry, meta: Mapping[str, Any], obs: pd.DataFrame | None
    ) -> None:
        """Write the description of a reference, and its table if given."""
        if obs is not None and len(obs) != entry.n:
            raise InputError(f"{len(obs):,} rows for {entry.n:,} cells", name)
        table = entry.obs if obs is None else self.put_table(f"{name}.obs", obs)
        self._put_entry(name, replace(entry, meta=self._put_meta(name, meta), obs=table))

    def _put_entry(self, name: str, entry: ReferenceEntry) -> None:
        self._change(references={**self._draft.references, name: entry})

"""Journal of answers of live sources: it keeps each answer on the disk until a generation holds it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

from scvec.base.errors import InputError, StoreError
from scvec.base.resources import Closes
from scvec.base.types import Answer, Description, Failure, Gene, Job, Marker, Note
from scvec.stores.store.files import open_regular, os_errors, sync_file, sync_folder

__all__ = ["AppendLog", "Entry", "Journal"]

# Format of a line: length of the content in 8 hex digits, SHA-256 of the content in hex, content. The content
# is the head as JSON, a tab, the body and a line end. JSON escapes tabs and line ends, so records have none.
_SHA = slice(9, 73)
_START = 74


class Entry(NamedTuple):
    """Position and head of a record.

    Attributes
    ----------
    at
        Position of the first byte, for :meth:`AppendLog.bodies`.
    sha256
        SHA-256 of head and body, in hex.
    head
        The head, a JSON list.
    """

    at: int
    sha256: str
    head: list[Any]


class AppendLog:
    """A file of records, one a line, each with its length and checksum.

    :meth:`append` returns when its records are on the disk. If a process is killed during a write, the file
    ends with an incomplete record, which readers ignore. Readers also ignore a damaged record. A writable log
    then keeps a copy of the damaged file, and continues with the intact records.

    Only the holder of the store's writer lock may write. Other processes may read at any time; they see the
    records that are complete at that time.

    Parameters
    ----------
    path
        The file. The first record creates it.
    writable
        False to only read. The file is then never changed, even if it is damaged.

    Attributes
    ----------
    n_damaged
        Number of damaged lines at the last reading of the complete file.
    aside
        Copy of the damaged file, or None.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self._writable = writable
        self._file: IO[bytes] | None = None
        self._end: int | None = None
        self.n_damaged = 0
        self.aside: Path | None = None

    @property
    def end(self) -> int:
        """Position after the last record that this object has read or written."""
        return self._end or 0

    def close(self) -> None:
        """Close the file; the next read or write opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def entries(self) -> list[Entry]:
        """Read the complete file; return its records in order.

        Damaged records are left out. A writable log then copies the damaged file to :attr:`aside`, and
        replaces it with a file of the intact records.
        """
        with os_errors(self.path.parent):
            found, self.n_damaged, self._end = self._scan()
            if self.n_damaged and self._writable:
                self.aside = self._copy_aside()
                self.keep([entry.at for entry in found])
                found, _, self._end = self._scan()
        return found

    def append(self, records: Iterable[tuple[Sequence[Any], str]]) -> list[int]:
        """Append records; each has a head (a JSON list) and a body (JSON text).

        All records are on the disk when this returns. If it raises, the file holds none of them.

        Returns
        -------
        list of int
            Position of each record in the file.

        Raises
        ------
        InputError
            The log is read-only.
        ResourceError
            The disk is full.
        """
        lines = [_line(head, body) for head, body in records]
        if not lines:
            return []
        if not self._writable:
            raise InputError("this file is open read-only", str(self.path))
        with os_errors(self.path.parent):
            if self._end is None or self._opened().seek(0, os.SEEK_END) != self._end:
                self.entries()
            file, end = self._opened(), self.end
            try:
                # Delete the incomplete record that an interrupted write left at the end.
                file.truncate(end)
                file.seek(end)
                rest = memoryview(b"".join(lines))
                while rest:
                    rest = rest[file.write(rest) or 0 :]
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(end)
                raise
        places = list(accumulate(map(len, lines), initial=end))
        self._end = places.pop()
        return places

    def bodies(self, places: Iterable[int]) -> Iterator[str]:
        """Yield the bodies of the records at the given positions. The file is opened at the first one.

        Raises
        ------
        StoreError
            A record has changed since it was found.
        """
        with self._reading() as file:
            for at in places:
                file.seek(at)
                line = file.readline()
                if _head(line) is None:
                    what = "a record changed while it was read"
                    raise StoreError(what, str(self.path), "run the command again; it continues from here")
                yield line[_START:-1].partition(b"\t")[2].decode("utf-8")

    def keep(self, places: Sequence[int]) -> None:
        """Keep only the records at the given positions; delete the file if there are none."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        with os_errors(self.path.parent):
            self.close()
            if places:
                fresh.unlink(missing_ok=True)  # "x" does not write through a link
                with self._reading() as old, open(fresh, "xb") as new:
                    for at in places:
                        old.seek(at)
                        new.write(old.readline())
                sync_file(fresh)
                os.replace(fresh, self.path)
            else:
                self.path.unlink(missing_ok=True)
                fresh.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        self._end = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            is_new = not self.path.exists()
            fd = open_regular(self.path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if is_new else 0))
            self._file = open(fd, "r+b", buffering=0)  # noqa: SIM115
            if is_new:
                sync_folder(self.path.parent)
        return self._file

    def _reading(self) -> IO[bytes]:
        return open(open_regular(self.path), "rb")

    def _scan(self) -> tuple[list[Entry], int, int]:
        """Return the records, the number of damaged lines, and the position after the last intact record."""
        found: list[Entry] = []
        n_damaged = at = end = 0
        with suppress(FileNotFoundError), self._reading() as file:
            for line in file:
                head = _head(line)
                if head is not None:
                    found.append(Entry(at, line[_SHA].decode(), head))
                    end = at + len(line)
                elif not _is_begun(line):
                    n_damaged += 1
                at += len(line)
        return found, n_damaged, end

    def _copy_aside(self) -> Path:
        aside = self.path.with_name(f"{self.path.stem}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.log")
        shutil.copyfile(self.path, aside)
        sync_file(aside)
        sync_folder(aside.parent)
        return aside


def _line(head: Sequence[Any], body: str) -> bytes:
    # Half of a surrogate pair has no UTF-8 form. Replace it, so that one such text does not lose the others.
    text = json.dumps(list(head), ensure_ascii=False).encode("utf-8", "replace")
    text += b"\t" + body.encode("utf-8", "replace") + b"\n"
    return b"%08x %s %s" % (len(text), hashlib.sha256(text).hexdigest().encode(), text)


def _head(line: bytes) -> list[Any] | None:
    """Return the head of a complete, undamaged line, else None."""
    text = line[_START:]
    start = b"%08x %s " % (len(text), hashlib.sha256(text).hexdigest().encode())
    if line[:_START] != start or not text.endswith(b"\n"):
        return None
    head = json.loads(text.partition(b"\t")[0])
    return head if isinstance(head, list) else None


def _is_begun(line: bytes) -> bool:
    """Return whether a line is the beginning of a record, as a process killed during a write leaves it."""
    if line.endswith(b"\n"):
        return False
    digits, rest = line[:8], line[9:_START]
    if any(c not in b"0123456789abcdef" for c in digits) or any(c not in b"0123456789abcdef " for c in rest):
        return False
    return len(line) <= _START or len(line) < _START + int(digits, 16)


_KEY = attrgetter(*(field.name for field in fields(Job)))


class _Place(NamedTuple):
    """Position of the answer to a job. If a job has several answers, the largest tuple counts."""

    retrieved_at: str
    sha256: str
    at: int
    has_gene: bool


class Journal(Closes):
    """Answers of live sources that no generation holds yet.

    The journal lies beside the generations and belongs to none. So paid answers stay if a transaction fails.
    Records are on the disk when :meth:`write` returns, and each has a checksum
    (:class:`~scvec.stores.store.journal.AppendLog`). If the file is damaged, a copy of it is kept, and the
    journal continues with the intact records.

    Each job counts once. An answer wins over a failure, and a later answer over an earlier one. So the
    content does not depend on the order of writing or on repeats.

    Parameters
    ----------
    path
        The file, such as ``STORE/work/answers.log``. The first record creates it.
    writable
        False to read a journal that another process may be writing. Only the holder of the store's writer
        lock may write.
    """

    def __init__(self, path: Path | str, *, writable: bool = True) -> None:
        self.path = Path(path)
        self._log = AppendLog(self.path, writable=writable)
        self._answers: dict[Job, _Place] = {}
        self._failures: dict[Job, Failure] = {}
        # True if the file holds no newer records; None before the first read.
        self._is_read: bool | None = None
        self._absorbed: tuple[int, frozenset[Job]] | None = None
        #: Messages about damage of the file.
        self.notes: list[str] = []

    def close(self) -> None:
        """Close the file; the next read or write opens it again."""
        self._log.close()

    def write(self, answers: Sequence[Answer], failures: Sequence[Failure] = ()) -> None:
        """Write answers and failures. All are on the disk when this returns; none is if it raises.

        Raises
        ------
        ResourceError
            The disk is full.
        """
        rows: list[tuple[list[Any], str]] = [
            (["answer", *_KEY(a.job), a.retrieved_at, a.gene is not None], _body(a)) for a in answers
        ]
        rows += [(["failure", *_KEY(f.job), f.reason, f.final, f.attempts], "") for f in failures]
        if self._is_read is None:
            self._read()
        if self._log.append(rows):
            self._is_read = False

    def failed_jobs(self) -> set[Job]:
        """Return the jobs with a failure but no answer in the journal."""
        self._read()
        return set(self._failures) - set(self._answers)

    def answers(self, n: int = 5000) -> Iterator[list[Answer]]:
        """Yield lists of up to ``n`` answers, one answer per job.

        The order is fixed: answers with facts of a gene come first. Within each group, jobs about a known
        gene come before jobs about a name; ties are sorted by job.
        """
        self._read()
        places = dict(self._answers)
        jobs = sorted(places, key=lambda j: (not places[j].has_gene, j.gene_id.startswith("ask:"), _KEY(j)))
        bodies = self._log.bodies([places[job].at for job in jobs])
        for start in range(0, len(jobs), n):
            part = jobs[start : start + n]
            yield [_answer(job, next(bodies)) for job in part]

    def failures(self, n: int = 5000) -> Iterator[list[Failure]]:
        """Yield lists of up to ``n`` failures of jobs without an answer, one failure per job, sorted by job.

        If a job failed several times, a final failure counts first, then the one with most attempts.
        """
        self._read()
        failed = [self._failures[job] for job in sorted(self.failed_jobs(), key=_KEY)]
        for start in range(0, len(failed), n):
            yield failed[start : start + n]

    def absorbed(self, left: Iterable[Job]) -> None:
        """Mark all present records as absorbed, except the answers of the jobs in ``left``."""
        self._absorbed = (self._log.end, frozenset(left))

    def clear(self) -> None:
        """Delete the absorbed records, and the file if no record is left.

        Call this when the generation with the absorbed records is current.
        """
        if self._absorbed is None or not self.path.exists():
            return
        end, left = self._absorbed
        entries = self._log.entries()
        self._absorbed, self._is_read = None, False
        if self._log.n_damaged:
            return  # positions have changed; absorbing all records again changes nothing
        self._log.keep(
            [e.at for e in entries if e.at >= end or (e.head[0] == "answer" and Job(*e.head[1:6]) in left)]
        )

    def _read(self) -> None:
        if self._is_read:
            return
        self._answers, self._failures = {}, {}
        for at, sha256, head in self._log.entries():
            job, rest = Job(*head[1:6]), head[6:]
            if head[0] == "answer":
                place = _Place(rest[0], sha256, at, rest[1])
                self._answers[job] = max(place, self._answers.get(job, place))
            else:
                failure = Failure(job, *rest)
                self._failures[job] = max(failure, self._failures.get(job, failure), key=_weight)
        self._is_read = True
        if self._log.n_damaged:
            aside = self._log.aside
            kept = f"; the file is kept as {aside.name}" if aside is not None else ""
            n = len(self._answers)
            self.notes.append(f"the journal of answers was damaged: {n:,} answers could be read{kept}")


def _weight(failure: Failure) -> tuple[bool, int, str]:
    return failure.final, failure.attempts, failure.reason


def _body(answer: Answer) -> str:
    gene, note = answer.gene, answer.note
    whole: dict[str, Any] = {
        "gene": None if gene is None else _fields(gene),
        "descriptions": [_fields(d) for d in answer.descriptions],
        "note": None if note is None else _fields(note) | {"facts": dict(note.facts)},
    }
    if answer.markers:
        whole["markers"] = [_fields(m) for m in answer.markers]
    return json.dumps(whole, ensure_ascii=False)


def _fields(noun: Gene | Description | Note | Marker) -> dict[str, Any]:
    return {field.name: getattr(noun, field.name) for field in fields(noun)}


def _answer(job: Job, body: str) -> Answer:
    found: dict[str, Any] = json.loads(body)
    gene: dict[str, Any] | None
    gene, note = found["gene"], found["note"]
    if gene is not None:
        gene = {k: tuple(v) if isinstance(v, list) else v for k, v in gene.items()}
    return Answer(
        job,
        None if gene is None else Gene(**gene),
        tuple(Description(**d) for d in found["descriptions"]),
        None if note is None else Note(**note),
        tuple(Marker(**m) for m in found.get("markers", ())),
    )

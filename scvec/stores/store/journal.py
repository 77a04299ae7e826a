"""Answers of live sources, on the disk from the moment they arrive until a generation holds them."""

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
from scvec.base.records import Answer, Failure, Job, Marker, Note
from scvec.base.types import Description, Gene
from scvec.stores.store.files import open_regular, os_errors, sync_file, sync_folder

__all__ = ["AppendLog", "Entry", "Journal"]

# A line: in 8 hex digits how many bytes follow the checksum, their SHA-256 in hex, then the head as JSON, a
# tab, the body and the end of the line. JSON escapes tabs and line ends, so that neither stands in a record.
_SHA = slice(9, 73)
_START = 74


class Entry(NamedTuple):
    """Where a record stands and what its head says.

    Attributes
    ----------
    at
        Its first byte, for :meth:`AppendLog.bodies`.
    sha256
        Of head and body, in hex.
    """

    at: int
    sha256: str
    head: list[Any]


class AppendLog:
    """Records on lines of their own, each with its length and checksum.

    :meth:`append` returns when its records are on the disk. A kill in the middle leaves whole records and
    the beginning of one more, which nobody was told of and which does not count. A record whose bytes have
    changed does not count either: the file is then copied aside, and goes on with the other records.

    Only the holder of the store's writer lock may write. Others may read at any time: they see the records
    that were whole when they looked.

    Parameters
    ----------
    path
        The file. There is none until the first record.
    writable
        False to only read: then the file is never changed, however damaged it is.

    Attributes
    ----------
    n_damaged
        Lines that could not be read, when the file was last read whole.
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
        """Where the last record ends that was read or written so far."""
        return self._end or 0

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def entries(self) -> list[Entry]:
        """Read the file whole; return its records in order.

        Records whose bytes have changed are left out. Where this log is writable, the damaged file is copied
        to :attr:`aside` and replaced by one that holds the others.
        """
        with os_errors(self.path.parent):
            found, self.n_damaged, self._end = self._scan()
            if self.n_damaged and self._writable:
                self.aside = self._copy_aside()
                self.keep([entry.at for entry in found])
                found, _, self._end = self._scan()
        return found

    def append(self, records: Iterable[tuple[Sequence[Any], str]]) -> list[int]:
        """Write records, each a head (a list as JSON holds it) and a body (JSON); return their places.

        They are on the disk when this returns. Where it raises, the file holds none of them.

        Raises
        ------
        ResourceError
            The disk is full.
        """
        lines = [_line(head, body) for head, body in records]
        if not lines:
            return []
        if not self._writable:
            raise InputError("this file is open for reading only", str(self.path))
        with os_errors(self.path.parent):
            if self._end is None or self._opened().seek(0, os.SEEK_END) != self._end:
                self.entries()
            file, end = self._opened(), self.end
            try:
                # What an interrupted write left behind the last whole record goes.
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
        """Yield the bodies of the records at some places, of the file as it is when the first is asked for.

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
                    raise StoreError(what, str(self.path), "run the command again: it goes on from here")
                yield line[_START:-1].partition(b"\t")[2].decode("utf-8")

    def keep(self, places: Sequence[int]) -> None:
        """Keep the records at some places and nothing else; delete the file where there are none."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        with os_errors(self.path.parent):
            self.close()
            if places:
                fresh.unlink(missing_ok=True)  # "x" writes through no link
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
        """Return the records, how many lines are damaged, and where the last whole record ends."""
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
    # Half a surrogate pair in one record must not cost the others.
    text = json.dumps(list(head), ensure_ascii=False).encode("utf-8", "replace")
    text += b"\t" + body.encode("utf-8", "replace") + b"\n"
    return b"%08x %s %s" % (len(text), hashlib.sha256(text).hexdigest().encode(), text)


def _head(line: bytes) -> list[Any] | None:
    """Return the head of a line that is whole and unchanged, else None."""
    text = line[_START:]
    start = b"%08x %s " % (len(text), hashlib.sha256(text).hexdigest().encode())
    if line[:_START] != start or not text.endswith(b"\n"):
        return None
    head = json.loads(text.partition(b"\t")[0])
    return head if isinstance(head, list) else None


def _is_begun(line: bytes) -> bool:
    """Whether a line is the beginning of a record: what a kill in the middle of a write leaves."""
    if line.endswith(b"\n"):
        return False
    digits, rest = line[:8], line[9:_START]
    if any(c not in b"0123456789abcdef" for c in digits) or any(c not in b"0123456789abcdef " for c in rest):
        return False
    return len(line) <= _START or len(line) < _START + int(digits, 16)


_KEY = attrgetter(*(field.name for field in fields(Job)))


class _Place(NamedTuple):
    """Where the answer to a job stands. Of several the largest counts."""

    retrieved_at: str
    sha256: str
    at: int
    has_gene: bool


class Journal:
    """What live sources answered and no generation holds yet.

    It lies beside the generations and belongs to none: whatever is committed or thrown away meanwhile, what
    was paid for stays. What was written is on the disk when :meth:`write` returns; each record has a
    checksum, and a damaged file is kept aside while what can be read of it goes on
    (:class:`~scvec.stores.store.journal.AppendLog`).

    An equal job counts once: an answer is preferred to any failure, then the answer retrieved last. So what
    is read does not depend on the order of writing, or on repeats.

    Parameters
    ----------
    path
        The file, such as ``STORE/work/answers.log``. There is none until the first record.
    writable
        False to look at what another process may be writing. Only the holder of the store's writer lock may
        write.
    """

    def __init__(self, path: Path | str, *, writable: bool = True) -> None:
        self.path = Path(path)
        self._log = AppendLog(self.path, writable=writable)
        self._answers: dict[Job, _Place] = {}
        self._failures: dict[Job, Failure] = {}
        # Whether what was read is all that there is; None before the first look.
        self._is_read: bool | None = None
        self._absorbed: tuple[int, frozenset[Job]] | None = None
        #: What went wrong on the way, and what became of it.
        self.notes: list[str] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        self._log.close()

    def write(self, answers: Sequence[Answer], failures: Sequence[Failure] = ()) -> None:
        """Keep answers and failures: all of them are on the disk when this returns, none if it raises.

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

    def done_jobs(self) -> set[Job]:
        """Return jobs that have an answer here."""
        self._read()
        return set(self._answers)

    def failed_jobs(self) -> set[Job]:
        """Return jobs that have failed, and no answer here."""
        self._read()
        return set(self._failures) - set(self._answers)

    def answers(self, n: int = 5000) -> Iterator[list[Answer]]:
        """Yield answers, each job's once, ``n`` at a time.

        The order is always the same: those that tell a gene's facts first, of those the ones that were asked
        about a gene and not about a name; then by job.
        """
        self._read()
        places = dict(self._answers)
        jobs = sorted(places, key=lambda j: (not places[j].has_gene, j.gene_id.startswith("ask:"), _KEY(j)))
        bodies = self._log.bodies([places[job].at for job in jobs])
        for start in range(0, len(jobs), n):
            part = jobs[start : start + n]
            yield [_answer(job, next(bodies)) for job in part]

    def failures(self, n: int = 5000) -> Iterator[list[Failure]]:
        """Yield failures of jobs that have no answer here, each job's once, ``n`` at a time, by job.

        Of several the final one counts, then that of most attempts.
        """
        self._read()
        lost = [self._failures[job] for job in sorted(self.failed_jobs(), key=_KEY)]
        for start in range(0, len(lost), n):
            yield lost[start : start + n]

    def absorbed(self, left: Iterable[Job]) -> None:
        """Note that all that is here now has been taken in, but for the answers of the jobs in ``left``."""
        self._absorbed = (self._log.end, frozenset(left))

    def clear(self) -> None:
        """Forget what was absorbed, and nothing else; delete the file where nothing is left.

        For when the generation that took it in is in place.
        """
        if self._absorbed is None or not self.path.exists():
            return
        end, left = self._absorbed
        entries = self._log.entries()
        self._absorbed, self._is_read = None, False
        if self._log.n_damaged:
            return  # records have moved; taken in once more, they change nothing
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

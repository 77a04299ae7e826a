"""Answers of live sources, on the disk from the moment they arrive until a generation holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from scvec.errors import LockedError
from scvec.records import Answer, Failure, Job
from scvec.stores.duckdb_errors import translate
from scvec.stores.files import os_errors
from scvec.stores.jobs import JOB_KEYS, job_table
from scvec.stores.journal_rows import answer_of, answer_table, failure_table
from scvec.stores.salvage import new_journal, put_tally, remove_journal, salvage, tally
from scvec.stores.tables import LOCKED

__all__ = ["JOURNAL_TABLES", "Journal"]

# Rows are only added, and which of several counts is decided when they are read: so a write that is
# interrupted or repeated can do no harm, and no index has to be kept, or can be damaged.
JOURNAL_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    gene_id VARCHAR NOT NULL, source VARCHAR NOT NULL, model VARCHAR NOT NULL, prompt VARCHAR NOT NULL,
    input_sha256 VARCHAR NOT NULL, retrieved_at VARCHAR NOT NULL, has_gene BOOLEAN NOT NULL,
    body VARCHAR NOT NULL, written BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS failures (
    gene_id VARCHAR NOT NULL, source VARCHAR NOT NULL, model VARCHAR NOT NULL, prompt VARCHAR NOT NULL,
    input_sha256 VARCHAR NOT NULL, reason VARCHAR NOT NULL, final BOOLEAN NOT NULL, attempts BIGINT NOT NULL,
    written BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS writes (written BIGINT NOT NULL);
"""
_KEY = ", ".join(JOB_KEYS)
_WHAT = "the journal of answers"
# A flipped bit in the log of recent writes costs all after it: so the log is kept short.
_CONFIG = {**LOCKED, "wal_autocheckpoint": "4MB"}
#: What DuckDB says where the file may be sound. Whatever else keeps it from opening is damage.
_NOT_DAMAGE = ("No space left", "quota exceeded", "Permission denied", "Read-only file", "Too many open")


class Journal:
    """What live sources answered and no generation holds yet.

    It lies beside the generations and belongs to none: whatever is committed or thrown away meanwhile, what
    was paid for stays. Each :meth:`write` is one transaction, and on the disk when it returns. There is no
    file until the first.

    An equal job counts once: an answer is preferred to any failure, then the answer retrieved last, then
    whichever text sorts last. So what is read does not depend on the order of writing, or on repeats.

    One process at a time. A file that is damaged is moved aside, never deleted; what can be read of it goes
    on.

    Parameters
    ----------
    path
        The file, such as ``STORE/work/answers.duckdb``.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._con: Any = None
        self._written = 0
        self._absorbed: tuple[int, list[Job]] | None = None
        #: What went wrong on the way, and what became of it.
        self.notes: list[str] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        con, self._con = self._con, None
        if con is not None:
            with self._translated():
                con.close()

    def write(self, answers: Sequence[Answer], failures: Sequence[Failure] = ()) -> None:
        """Keep answers and failures: all of them are on the disk when this returns, or none.

        Raises
        ------
        LockedError
            Another process has the journal.
        ResourceError
            The disk is full.
        """
        if not answers and not failures:
            return
        import duckdb

        con = self._open()
        number = self._written + 1
        with self._translated():
            con.execute("BEGIN")
            try:
                for table, rows in (
                    ("answers", answer_table(answers)),
                    ("failures", failure_table(failures)),
                ):
                    if rows.num_rows:
                        con.register("incoming", rows)
                        con.execute(
                            f"INSERT INTO {table} BY NAME SELECT *, {number} AS written FROM incoming"
                        )
                        con.unregister("incoming")
                con.execute(f"INSERT INTO writes VALUES ({number})")
                con.execute("COMMIT")
            except BaseException:
                with suppress(duckdb.Error):
                    con.execute("ROLLBACK")
                raise
            put_tally(self.path, number)
        self._written = number

    def done_jobs(self) -> set[Job]:
        """Return jobs that have an answer here."""
        return {Job(*row) for row in self._rows(f"SELECT DISTINCT {_KEY} FROM answers")}

    def failed_jobs(self) -> set[Job]:
        """Return jobs that have failed, and no answer here."""
        return {f.job for batch in self.failures() for f in batch}

    def answers(self, n: int = 5000) -> Iterator[list[Answer]]:
        """Yield answers, each job's once, ``n`` at a time.

        The order is always the same: those that tell a gene's facts first, of those the ones that were asked
        about a gene and not about a name; then by job.
        """
        sql = (
            f"SELECT {_KEY}, body FROM answers QUALIFY row_number() OVER"
            f" (PARTITION BY {_KEY} ORDER BY retrieved_at DESC, body DESC) = 1"
            f" ORDER BY has_gene DESC, starts_with(gene_id, 'ask:'), {_KEY}"
        )
        for rows in self._batches(sql, n):
            yield [answer_of(Job(*row[:5]), row[5]) for row in rows]

    def failures(self, n: int = 5000) -> Iterator[list[Failure]]:
        """Yield failures of jobs that have no answer here, each job's once, ``n`` at a time, by job.

        Of several the final one counts, then that of most attempts.
        """
        sql = (
            f"SELECT {_KEY}, reason, final, attempts FROM failures ANTI JOIN answers USING ({_KEY})"
            f" QUALIFY row_number() OVER (PARTITION BY {_KEY}"
            f" ORDER BY final DESC, attempts DESC, reason DESC) = 1 ORDER BY {_KEY}"
        )
        for rows in self._batches(sql, n):
            yield [Failure(Job(*row[:5]), *row[5:]) for row in rows]

    def absorbed(self, left: Iterable[Job]) -> None:
        """Note that all that is here now has been taken in, but for the answers of the jobs in ``left``."""
        self._absorbed = (self._written, list(left))

    def clear(self) -> None:
        """Forget what was absorbed, and nothing else; delete the file where nothing is left.

        For when the generation that took it in is in place.
        """
        if self._absorbed is None or not self._there():
            return
        written, left = self._absorbed
        con = self._open()
        with self._translated():
            con.execute("BEGIN")
            con.register("left_over", job_table(left))
            con.execute(
                f"DELETE FROM answers WHERE written <= {written}"
                f" AND ({_KEY}) NOT IN (SELECT ({_KEY}) FROM left_over)"
            )
            con.execute(f"DELETE FROM failures WHERE written <= {written}")
            con.unregister("left_over")
            con.execute("COMMIT")
            (rows,) = con.execute(
                "SELECT (SELECT count(*) FROM answers) + (SELECT count(*) FROM failures)"
            ).fetchone()
        self._absorbed = None
        if rows == 0:
            self.close()
            remove_journal(self.path)

    def _there(self) -> bool:
        return self._con is not None or self.path.exists()

    def _translated(self) -> Any:
        return translate(self.path, _WHAT, "run the command again: what can be read of it goes on")

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        if not self._there():
            return []
        con = self._open()
        with self._translated():
            rows: list[tuple[Any, ...]] = con.execute(sql).fetchall()
        return rows

    def _batches(self, sql: str, n: int) -> Iterator[list[tuple[Any, ...]]]:
        if not self._there():
            return
        cursor = self._open().cursor()  # so that others may be asked between two batches
        try:
            with self._translated():
                cursor.execute(sql)
                rows = cursor.fetchmany(n)
            while rows:
                yield rows
                with self._translated():
                    rows = cursor.fetchmany(n)
        finally:
            cursor.close()

    def _open(self) -> Any:
        if self._con is None:
            import duckdb

            with os_errors(self.path.parent), self._translated():
                try:
                    if self.path.exists():
                        check(self.path)
                except duckdb.ConnectionException:
                    raise _locked(self.path, "") from None  # open elsewhere in this process
                except duckdb.Error as error:
                    if "set lock" in str(error):
                        raise _locked(self.path, str(error)) from None
                    if isinstance(error, duckdb.OutOfMemoryException) or any(
                        text in str(error) for text in _NOT_DAMAGE
                    ):
                        raise
                    self.notes.append(salvage(self.path, connect))
                if not self.path.exists():
                    new_journal(self.path, connect)
                self._con = connect(self.path)
                (self._written,) = self._con.execute(
                    "SELECT coalesce(max(written), 0) FROM writes"
                ).fetchone()
        return self._con


def connect(path: Path) -> Any:
    """Open a journal for writing; its tables are made where there are none."""
    import duckdb

    con = duckdb.connect(str(path), config=dict(_CONFIG))
    try:
        con.execute(f"BEGIN; {JOURNAL_TABLES} COMMIT;")
    except BaseException:
        con.close()
        raise
    return con


def check(path: Path) -> None:
    """Read a journal whole, without changing it; raise duckdb.Error if it is damaged.

    Damage is to show now, and not in the middle of a night's work. What DuckDB takes for the end of an
    interrupted write, and drops without a word, may be damage too: then writes that were made are missing.
    """
    import duckdb

    with duckdb.connect(str(path), read_only=True, config=dict(_CONFIG)) as con:
        for name in ("answers", "failures"):
            con.execute(f"SELECT max(hash(COLUMNS(*))) FROM {name}").fetchall()
        written = int(con.execute("SELECT coalesce(max(written), 0) FROM writes").fetchall()[0][0])
    if written < tally(path):
        raise duckdb.Error(f"{tally(path) - written} writes are missing")


def _locked(path: Path, said: str) -> LockedError:
    import re

    holder = re.search(r"PID (\d+)", said)
    who = f"process {holder[1]}" if holder else "another process"
    return LockedError(f"{_WHAT} is in use by {who}", str(path), "wait for it to end, or stop that process")

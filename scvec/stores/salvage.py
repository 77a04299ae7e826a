"""What can be read of a damaged journal."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.stores.files import publish, sync_file, sync_folder
from scvec.stores.tables import LOCKED

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["new_journal", "put_tally", "remove_journal", "salvage", "tally"]

#: Rows that DuckDB decodes together: fewer are not read without these.
VECTOR = 2048
#: Bytes of a DuckDB file's three headers: who it is, and two that take turns.
HEADER = 4096


def salvage(path: Path, connect: Callable[[Path], Any]) -> str:
    """Move a damaged journal aside and put what can be read of it in its place; return a note on it.

    Whenever this is killed, the damaged file is still in its place, or there is a copy of it.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="salvage-") as folder:
        tables = _read(path, Path(folder))
        fresh = Path(folder) / "fresh.duckdb"
        con = connect(fresh)
        con.execute("BEGIN")
        for name, parts in tables.items():
            for part in parts:
                con.register("part", part)
                con.execute(f"INSERT INTO {name} BY NAME SELECT * FROM part")
                con.unregister("part")
        con.execute("COMMIT")
        con.close()
        sync_file(fresh)
        aside = path.with_name(f"{path.stem}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}{path.suffix}")
        for end in ("", ".wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{end}", f"{aside}{end}")
                sync_file(Path(f"{aside}{end}"))
        sync_folder(path.parent)
        # The log first: replayed on the new file, it would be taken for damage again.
        _unlink(Path(f"{path}.wal"))
        publish(fresh, path)
        sync_folder(path.parent)
        _unlink(_tally_path(path))
    n = sum(part.num_rows for part in tables["answers"])
    return (
        f"the journal of answers was damaged: {n:,} answers could be read; the file is kept as {aside.name}"
    )


def new_journal(path: Path, connect: Callable[[Path], Any]) -> None:
    """Put an empty journal in its place, tables and all.

    Not made there: DuckDB writes a new file and its tables piece by piece, and what a kill leaves of them
    would be taken for a journal that has lost something.
    """
    fresh = _fresh_path(path)
    _unlink(Path(f"{fresh}.wal"), fresh)
    connect(fresh).close()
    sync_file(fresh)
    # What an earlier journal left that was not deleted to the end says nothing about this one.
    _unlink(Path(f"{path}.wal"), _tally_path(path))
    publish(fresh, path)
    sync_folder(path.parent)


def remove_journal(path: Path) -> None:
    """Delete a closed journal; the log, if there is one, first: what is left must open."""
    _unlink(Path(f"{path}.wal"), path, _tally_path(path), Path(f"{_fresh_path(path)}.wal"), _fresh_path(path))


def put_tally(path: Path, written: int) -> None:
    """Note beside a journal how many writes are in it."""
    # In place, and so small that it is whole or not there: a rename and two flushes would cost more than the
    # write that is noted.
    fd = os.open(_tally_path(path), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, b"%020d\n" % written)
        os.fsync(fd)
    finally:
        os.close(fd)


def tally(path: Path) -> int:
    """Return how many writes are in a journal, at least."""
    try:
        return int(_tally_path(path).read_bytes())
    except (OSError, ValueError):
        return 0


def _tally_path(path: Path) -> Path:
    return path.with_suffix(".tally")


def _fresh_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _read(path: Path, folder: Path) -> dict[str, list[pa.Table]]:
    """Read the tables of a damaged file, vector by vector, by the first way in that leads to any rows."""
    tables: dict[str, list[pa.Table]] = {"answers": [], "failures": [], "writes": []}
    for attempt in _ways_in(path, folder):
        for name in tables:
            tables[name] = list(_readable(attempt, name))
        if tables["answers"]:
            break
    return tables


def _ways_in(path: Path, folder: Path) -> Iterator[Path]:
    """Yield copies of a file that may open: with its log, the part of the log before the damage, without.

    Of the file, DuckDB reads the first header, then whichever of the two others is newer, and refuses it if
    any of the three is damaged. A damaged one gives way to its twin, or to a new file's.
    """
    copy, log = folder / "damaged.duckdb", folder / "damaged.duckdb.wal"
    content = path.read_bytes() if path.exists() else b""
    whole = Path(f"{path}.wal").read_bytes() if Path(f"{path}.wal").exists() else b""

    def put(head: bytes, length: int) -> Path:
        copy.write_bytes(head + content[len(head) :])
        log.unlink(missing_ok=True)
        if length:
            log.write_bytes(whole[:length])
        return copy

    first, second, third = (content[i * HEADER : (i + 1) * HEADER] for i in range(3))
    for head in (b"", first + third + third, first + second + second, _new_header(folder)):
        # A log that ends anywhere is read up to there: the most that can be replayed is found by halving.
        good, bad = 0, len(whole) + 1
        if whole and _opens(put(head, len(whole))):
            good = len(whole)
        while bad - good > 1 and good < len(whole):
            middle = (good + bad) // 2
            if _opens(put(head, middle)):
                good = middle
            else:
                bad = middle
        yield put(head, good)


def _new_header(folder: Path) -> bytes:
    import duckdb

    fresh = folder / "empty.duckdb"
    with suppress(duckdb.Error):
        duckdb.connect(str(fresh), config=dict(LOCKED)).close()
        return fresh.read_bytes()[:HEADER]
    return b""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import duckdb

    con = duckdb.connect(str(path), read_only=True, config=dict(LOCKED))
    try:
        yield con
    finally:
        con.close()


def _opens(path: Path) -> bool:
    import duckdb

    try:
        with _opened(path):
            return True
    except duckdb.Error:
        return False


def _readable(path: Path, table: str) -> Iterator[pa.Table]:
    import duckdb

    try:
        with _opened(path) as con:
            (last,) = con.execute(f"SELECT max(rowid) FROM {table}").fetchone()
    except duckdb.Error:
        return
    for start in range(0, (last if last is not None else -1) + 1, VECTOR):
        # A connection each: one that has met damage may answer nothing more.
        with suppress(duckdb.Error), _opened(path) as con:
            sql = f"SELECT * FROM {table} WHERE rowid BETWEEN {start} AND {start + VECTOR - 1}"
            yield con.sql(sql).to_arrow_table()

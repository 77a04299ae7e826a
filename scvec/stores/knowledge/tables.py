"""A DuckDB file that is open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.stores.knowledge.duckdb_errors import translate

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["LOCKED", "Tables"]

#: How every file is opened. Files are never trusted: DuckDB reads nothing but its own file and loads no
#: extension.
LOCKED: Mapping[str, str] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    # Here and not by SET afterwards: a second connection of this process to the file would be refused.
    "lock_configuration": "true",
}


class Tables:
    """The base of the parts of the knowledge base: SQL over one file, errors translated."""

    def __init__(self, connection: Any, path: Path) -> None:
        self._con = connection
        self.path = path

    def frame(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of a table, in no order."""
        return self._frame(f"SELECT {', '.join(columns)} FROM {table}")

    def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with translate(self.path):
            rows: list[tuple[Any, ...]] = self._con.execute(sql, list(parameters)).fetchall()
        return rows

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        return self._all(sql, parameters)[0]

    def _frame(self, sql: str, parameters: Sequence[Any] = ()) -> pd.DataFrame:
        with translate(self.path):
            frame: pd.DataFrame = self._con.execute(sql, list(parameters)).df()
        return frame

    @contextmanager
    def _registered(self, **tables: pa.Table) -> Iterator[None]:
        """Let SQL see Arrow tables by name."""
        for name, table in tables.items():
            self._con.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                self._con.unregister(name)

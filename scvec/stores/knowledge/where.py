"""Rows of a table that a SQL condition holds for."""

from __future__ import annotations

import difflib
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rows_where"]

#: Put first, so that a column of the user's with a like name gives way and not this one.
ROW = "_scvec_row"
#: Seconds that a condition may take. Over columns it takes none; a query within it could take for ever.
SECONDS = 30.0


def rows_where(table: pd.DataFrame, condition: str, *, what: str = "reference cell") -> npt.NDArray[np.int64]:
    """Return the row numbers, ascending, for which a SQL condition over the columns is true.

    The condition runs in an empty database in memory that can open no file and no network. It is parsed as
    one expression, never pasted into a statement: it cannot add rows by UNION, or begin another statement.

    Parameters
    ----------
    what
        What a row is, for messages.

    Raises
    ------
    InputError
        If the condition is not SQL over these columns, or no row fulfils it.
    """
    import duckdb

    columns = [c for c in table.columns if not str(c).startswith("_scvec")]
    rows = table[columns].reset_index(drop=True)
    rows.insert(0, ROW, np.arange(len(rows)))
    closed: dict[str, Any] = {"enable_external_access": False, "autoload_known_extensions": False}
    con = duckdb.connect(":memory:", config=closed)
    clock = threading.Timer(SECONDS, con.interrupt)
    clock.daemon = True
    clock.start()
    try:
        con.register("cells", rows)
        con.execute("SET lock_configuration = true")
        found = con.table("cells").filter(condition).project(ROW).fetchnumpy()[ROW]
    except duckdb.InterruptException as error:
        slow = f"--where takes longer than {SECONDS:g} seconds"
        raise InputError(slow, condition, "make it simpler", code="bad-where") from error
    except duckdb.Error as error:
        raise _no_condition(str(error), [str(c) for c in columns], condition, what) from error
    finally:
        clock.cancel()
        con.close()
    if len(found) == 0:
        raise InputError(
            f"no {what} fulfils --where", condition, _values(table, columns, condition), code="where-no-match"
        )
    return np.sort(np.asarray(found, dtype=np.int64))


def _no_condition(said: str, columns: list[str], condition: str, row: str) -> InputError:
    """Say what DuckDB says, without its words for the statement that people did not write."""
    unknown = re.search(r'Referenced column "([^"]+)" not found', said)
    example = "gene_type = 'lncRNA'" if row == "gene" else "donor = 'human1'"
    fix = f'columns: {", ".join(columns[:12])}; as in --where "{example}"'
    owner = "genes have" if row == "gene" else "the reference has"
    if unknown is None:
        reason = re.sub(r"^\w+ Error: ", "", said.splitlines()[0])
        of = "the columns of genes" if row == "gene" else "the reference's columns"
        what = f"--where is not a condition over {of}: {reason}"
        return InputError(what, condition, fix, code="bad-where")
    near = difflib.get_close_matches(unknown[1], columns, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(
        f"{owner} no column {unknown[1]!r} for --where", condition, hint + fix, code="bad-where"
    )


def _values(table: pd.DataFrame, columns: list[Any], condition: str) -> str:
    """Name the values of the columns that a condition speaks of."""
    told = []
    for column in columns:
        if str(column) in condition:
            values = sorted(str(v) for v in table[column].dropna().unique())
            told.append(f"{column} has: {', '.join(values[:8])}" + (", ..." if len(values) > 8 else ""))
    return "; ".join(told[:3]) or "loosen the condition"

"""Rows of a table that a SQL condition holds for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rows_where"]

#: Put first, so that a column of the user's with a like name gives way and not this one.
ROW = "_scvec_row"


def rows_where(table: pd.DataFrame, condition: str) -> npt.NDArray[np.int64]:
    """Return the row numbers, ascending, for which a SQL condition over the columns is true.

    The condition runs in an empty database in memory that can open no file and no network. It is parsed as
    one expression, never pasted into a statement: it cannot add rows by UNION, or begin another statement.

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
    try:
        con.register("cells", rows)
        con.execute("SET lock_configuration = true")
        found = con.table("cells").filter(condition).project(ROW).fetchnumpy()[ROW]
    except duckdb.Error as error:
        listed = ", ".join(str(c) for c in columns[:12])
        raise InputError(
            f"--where is not a condition over the reference's columns: {str(error).splitlines()[0]}",
            condition,
            f"columns: {listed}; as in --where \"donor = 'human1'\"",
        ) from error
    finally:
        con.close()
    if len(found) == 0:
        raise InputError("no reference cell fulfils --where", condition, "loosen the condition")
    return np.sort(np.asarray(found, dtype=np.int64))

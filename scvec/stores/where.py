"""Rows of a table that a SQL condition holds for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scvec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rows_where"]


def rows_where(table: pd.DataFrame, condition: str) -> npt.NDArray[np.int64]:
    """Return the row numbers, ascending, for which a SQL condition over the columns is true.

    The condition runs in an empty database in memory that can open no file and no network.

    Raises
    ------
    InputError
        If the condition is not SQL over these columns, or no row fulfils it.
    """
    import duckdb

    columns = [c for c in table.columns if not str(c).startswith("_scvec")]
    rows = table[columns].reset_index(drop=True)
    rows["_row"] = np.arange(len(rows))
    con = duckdb.connect(":memory:", config={"enable_external_access": False, "autoload_known_extensions": False})
    try:
        con.register("cells", rows)
        con.execute("SET lock_configuration = true")
        query = f"SELECT _row FROM cells WHERE ({condition}\n)"
        if len(con.extract_statements(query)) != 1:
            raise InputError("--where takes one condition", condition)
        found = con.execute(query).fetchnumpy()["_row"]
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

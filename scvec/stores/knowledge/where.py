"""Rows of a table that a SQL condition holds for."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, did_you_mean
from scvec.stores.knowledge.tables import connect

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rows_where"]

#: Kinds of expression that a condition may be made of, and functions that it may call: none makes more of
#: a value than it was given, reads anything but the row, or looks at other rows.
_ALLOWED = frozenset(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT OPERATOR TYPE".split()
)
_FUNCTIONS = frozenset(
    "~~ !~~ ~~* !~~* ~~~ + - * / // % || abs ceil ceiling concat contains ends_with exp floor greatest"
    " ilike_escape isfinite isinf isnan least left len length like_escape ln log log10 log2 lower ltrim"
    " not_ilike_escape not_like_escape nullif pow prefix regexp_full_match regexp_matches right round rtrim"
    " sign sqrt starts_with strlen strpos substr substring suffix trim trunc upper".split()
)
#: Characters that a condition may have, and memory for it.
LONGEST, MEMORY = 10_000, "512MB"
#: Put first, so that a column of the user's with a like name gives way and not this one.
ROW = "_scvec_row"
#: Seconds that a condition may take. Over columns it takes none; a query within it could take for ever.
SECONDS = 30.0


def rows_where(table: pd.DataFrame, condition: str, *, what: str = "reference cell") -> npt.NDArray[np.int64]:
    """Return the row numbers, ascending, for which a SQL condition over the columns is true.

    The condition runs in an empty database in memory that can open no file and no network, on one thread,
    within bounds of memory and time. Its parse tree may hold columns, constants, comparisons and functions of
    an allow-list; no subquery, list, aggregate or second statement.

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
    bounds: dict[str, Any] = {"threads": 1, "memory_limit": MEMORY, "temp_directory": ""}
    con = connect(":memory:", **bounds)
    done = threading.Event()

    def stop() -> None:
        # Again and again: an interrupt between two queries stops neither.
        late = not done.wait(SECONDS)
        while late and not done.wait(0.05):
            con.interrupt()

    clock = threading.Thread(target=stop, daemon=True)
    clock.start()
    try:
        con.register("cells", rows)
        con.execute("SET lock_configuration = true")
        if (odd := _not_allowed(con, condition)) is not None:
            raise _no_condition(odd, [str(c) for c in columns], condition, what)
        found = con.table("cells").filter(condition).project(ROW).fetchnumpy()[ROW]
    except duckdb.InterruptException as error:
        slow = f"--where takes longer than {SECONDS:g} seconds"
        raise InputError(slow, condition, "make it simpler", code="bad-where") from error
    except duckdb.Error as error:
        raise _no_condition(str(error), [str(c) for c in columns], condition, what) from error
    finally:
        done.set()
        clock.join()
        con.close()
    if len(found) == 0:
        raise InputError(
            f"no {what} fulfils --where", condition, _values(table, columns, condition), code="where-no-match"
        )
    return np.sort(np.asarray(found, dtype=np.int64))


def _not_allowed(con: Any, condition: str) -> str | None:
    """Say what a condition must not hold; None where all of it is allowed."""
    if len(condition) > LONGEST:
        return f"it is longer than {LONGEST:,} characters"
    # Parsed, never run.
    text = f"SELECT 1 FROM cells WHERE ({condition}\n)"
    tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0])
    if tree["error"]:
        return str(tree["error_message"])
    node = tree["statements"][0]["node"]
    plain = {"type", "select_list", "from_table", "where_clause", "aggregate_handling", "cte_map"}
    others = any(v and v != {"map": []} for k, v in node.items() if k not in plain)
    if len(tree["statements"]) > 1 or node["type"] != "SELECT_NODE" or others:
        return "it is more than one expression"
    if node["from_table"]["type"] != "BASE_TABLE" or node["cte_map"] != {"map": []}:
        return "it names another table"
    todo = [node["where_clause"]]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            kind, name = part.get("class"), str(part.get("function_name", "")).lower()
            if kind == "FUNCTION":
                if name not in _FUNCTIONS:
                    return f"{name} cannot be used here"
            elif kind is not None and kind not in _ALLOWED:
                return f"a {str(kind).lower()} cannot be used here"
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return None


def _no_condition(said: str, columns: list[str], condition: str, row: str) -> InputError:
    """Say what DuckDB says, without its words for the statement that people did not write."""
    unknown = re.search(r'Referenced column "([^"]+)" not found', said)
    example = "gene_type = 'lncRNA'" if row == "gene" else "donor = 'human1'"
    fix = f'columns: {", ".join(columns[:12])}; as in --where "{example}"'
    owner = "genes have" if row == "gene" else "the reference has"
    if unknown is None:
        reason = re.sub(r"^\w+ Error: ", "", (said.splitlines() or [""])[0])
        of = "the columns of genes" if row == "gene" else "the reference's columns"
        what = f"--where is not a condition over {of}: {reason}"
        return InputError(what, condition, fix, code="bad-where")
    hint = did_you_mean(unknown[1], columns)
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

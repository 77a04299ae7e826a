"""Rows of a table that match a SQL condition of the user."""

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

#: Allowed kinds of expressions and functions. None of them reads other rows or anything outside the table,
#: and none makes a value much larger than its input.
_ALLOWED = frozenset(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT OPERATOR TYPE".split()
)
_FUNCTIONS = frozenset(
    "~~ !~~ ~~* !~~* ~~~ + - * / // % || abs ceil ceiling concat contains ends_with exp floor greatest"
    " ilike_escape isfinite isinf isnan least left len length like_escape ln log log10 log2 lower ltrim"
    " not_ilike_escape not_like_escape nullif pow prefix regexp_full_match regexp_matches right round rtrim"
    " sign sqrt starts_with strlen strpos substr substring suffix trim trunc upper".split()
)
_NESTED = frozenset("ARRAY LIST MAP STRUCT UNION".split())
#: Largest number of characters of a condition, and memory for running it.
LONGEST, MEMORY = 10_000, "512MB"
#: Name of the column with the row number. It is the first column, so if a user's column has the same name,
#: DuckDB renames the user's column.
ROW = "_scvec_row"
#: Time limit for a condition, in seconds. A normal condition takes less than a second.
SECONDS = 30.0


def rows_where(table: pd.DataFrame, condition: str, *, what: str = "reference cell") -> npt.NDArray[np.int64]:
    """Return the numbers (int64, ascending) of the rows that match a SQL condition over the columns.

    The condition is untrusted input. It runs in an empty in-memory database without access to files and
    network, on one thread, with limits on memory and time. Its parse tree may contain columns, constants,
    comparisons and allowed functions. Subqueries, lists, aggregates and further statements are refused.

    Parameters
    ----------
    table
        The table. Columns whose names begin with ``_scvec`` are hidden from the condition.
    condition
        SQL expression, as after ``WHERE``.
    what
        Name of a row in messages.

    Raises
    ------
    InputError
        The condition is not SQL over these columns, takes too long, or matches no row.
    """
    import duckdb

    columns = [c for c in table.columns if not str(c).startswith("_scvec")]
    rows = table[columns].reset_index(drop=True)
    rows.insert(0, ROW, np.arange(len(rows)))
    bounds: dict[str, Any] = {"threads": 1, "memory_limit": MEMORY, "temp_directory": ""}
    con = connect(":memory:", **bounds)
    done = threading.Event()

    def stop() -> None:
        # Repeat the interrupt, because an interrupt between two queries has no effect.
        late = not done.wait(SECONDS)
        while late and not done.wait(0.05):
            con.interrupt()

    clock = threading.Thread(target=stop, daemon=True)
    clock.start()
    try:
        con.register("cells", rows)
        con.execute("SET lock_configuration = true")
        if (reason := _not_allowed(con, condition)) is not None:
            raise _bad_where(reason, [str(c) for c in columns], condition, what)
        found = con.table("cells").filter(condition).project(ROW).fetchnumpy()[ROW]
    except duckdb.InterruptException as error:
        slow = f"--where takes longer than {SECONDS:g} seconds"
        raise InputError(slow, condition, "give a simpler condition", code="bad-where") from error
    except duckdb.Error as error:
        raise _bad_where(str(error), [str(c) for c in columns], condition, what) from error
    finally:
        done.set()
        clock.join()
        con.close()
    if len(found) == 0:
        raise InputError(
            f"no {what} matches --where", condition, _values(table, columns, condition), code="where-no-match"
        )
    return np.sort(np.asarray(found, dtype=np.int64))


def _not_allowed(con: Any, condition: str) -> str | None:
    """Return why a condition is not allowed, or None if it is allowed."""
    if len(condition) > LONGEST:
        return f"it is longer than {LONGEST:,} characters"
    # DuckDB only parses this text; it does not run it.
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
            # An array of a fixed length takes its whole length for each row. DuckDB before 2.0 has an id.
            parts = part.get("children") if kind == "TYPE" else None
            if part.get("id") in _NESTED or any(one.get("class") == "TYPE" for one in parts or ()):
                return "a type with parts cannot be used here"
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return None


def _bad_where(message: str, columns: list[str], condition: str, row: str) -> InputError:
    """Return an error with DuckDB's reason, but without its text about the statement around the condition."""
    unknown = re.search(r'Referenced column "([^"]+)" not found', message)
    example = "gene_type = 'lncRNA'" if row == "gene" else "donor = 'human1'"
    fix = f'columns: {", ".join(columns[:12])}; example: --where "{example}"'
    owner = "genes have" if row == "gene" else "the reference has"
    if unknown is None:
        reason = re.sub(r"^\w+ Error: ", "", (message.splitlines() or [""])[0])
        of = "the columns of genes" if row == "gene" else "the reference's columns"
        what = f"--where is not a valid condition over {of}: {reason}"
        return InputError(what, condition, fix, code="bad-where")
    hint = did_you_mean(unknown[1], columns)
    return InputError(
        f"{owner} no column {unknown[1]!r} for --where", condition, hint + fix, code="bad-where"
    )


def _values(table: pd.DataFrame, columns: list[Any], condition: str) -> str:
    """List the values of the columns in a condition, as advice for the user."""
    listed = []
    for column in columns:
        if str(column) in condition:
            values = sorted(str(v) for v in table[column].dropna().unique())
            listed.append(f"{column} has: {', '.join(values[:8])}" + (", ..." if len(values) > 8 else ""))
    return "; ".join(listed[:3]) or "give a less strict condition"

"""``--where`` selects rows and gives no access to anything else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.stores.knowledge.where import rows_where


@pytest.fixture
def cells() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "donor": pd.Categorical(["h1", "h2", "h1", None, "o'x"]),
            "age": [30.0, 41.0, np.nan, 5.0, 77.0],
            "cell type": ["alpha", "beta", "beta", "alpha", "alpha"],
            "male": [True, False, True, False, True],
            "Größe": [1, 2, 3, 4, 5],
            "_scvec_class": [0, 1, 1, 0, 0],
        },
        index=["e", "d", "c", "b", "b"],
    )


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("donor = 'h1'", [0, 2]),
        ("DONOR = 'h1'", [0, 2]),
        ("donor <> 'h1'", [1, 4]),  # NULL does not match
        ("donor IS NULL", [3]),
        ("donor = 'o''x'", [4]),
        ("age > 30", [1, 4]),
        ("age BETWEEN 5 AND 41 AND NOT male", [1, 3]),
        ("\"cell type\" = 'alpha'", [0, 3, 4]),
        ('"Größe" % 2 = 1 -- odd', [0, 2, 4]),
        ("male", [0, 2, 4]),
        ("donor IN ('h1', 'h2')\n OR age < 6", [0, 1, 2, 3]),
        ("donor LIKE 'h%'", [0, 1, 2]),
        ("lower(upper(\"cell type\")) LIKE '%eta' AND age > -1 * 2", [1]),
        ("CASE WHEN male THEN coalesce(age, 0) ELSE NULL END::INT < 31", [0, 2]),
        ("regexp_matches(donor, '^h[0-9]$') AND donor NOT ILIKE '%2'", [0, 2]),
        ("age::DECIMAL(10, 2) > 30 OR donor::VARCHAR(9) = 'h2'", [1, 4]),
        ("/* ; */ true", [0, 1, 2, 3, 4]),
    ],
)
def test_conditions(cells: pd.DataFrame, condition: str, rows: list[int]) -> None:
    found = rows_where(cells, condition)
    assert found.dtype == np.int64 and found.tolist() == rows


@settings(max_examples=40)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.integers(-6, 6))
def test_rows_are_those_of_pandas(values: list[int], bound: int) -> None:
    table = pd.DataFrame({"x": values})
    expected = np.flatnonzero((table["x"] >= bound).to_numpy())
    if len(expected) == 0:
        with pytest.raises(InputError, check=lambda e: e.code == "where-no-match"):
            rows_where(table, f"x >= {bound}")
    else:
        np.testing.assert_array_equal(rows_where(table, f"x >= {bound}"), expected)


def test_the_table_is_not_changed(cells: pd.DataFrame) -> None:
    before = cells.copy()
    rows_where(cells, "male")
    pd.testing.assert_frame_equal(cells, before)


@pytest.mark.parametrize("name", ["_row", "_ROW", "_scvec_row", "_SCVEC_ROW", "row", "cells"])
def test_a_column_of_any_name_does_not_change_rows(name: str) -> None:
    table = pd.DataFrame({name: [7, 8, 9], "x": [1, 2, 3]})
    assert rows_where(table, "x > 1").tolist() == [1, 2]


def test_a_table_of_mixed_values() -> None:
    table = pd.DataFrame({"x": ["a", None, "b"], "n": pd.array([1, None, 3], dtype="Int64")})
    assert rows_where(table, "n = 3").tolist() == [2]
    assert rows_where(table, "x IS NULL").tolist() == [1]


BAD = {
    "unknown column": "disease = 'T2D'",
    "hidden column": "_scvec_class = 1",
    "no condition": "",
    "blank": "   ",
    "only a comment": "-- donor",
    "a list": "male, age > 3",
    "a statement": "SELECT 1",
    "several statements": "true; DROP TABLE cells",
    "closing the bracket": "true); DROP TABLE cells; SELECT (1",
    "adding rows": "false) UNION ALL SELECT 99 WHERE (true",
    "adding rows plainly": "false UNION ALL SELECT 99",
    "no more rows": "true) LIMIT (1",
    "order": "true ORDER BY age",
    "another source": "true FROM cells",
    "unfinished text": "donor = 'h1",
    "unfinished comment": "true /* ",
    "a parameter": "donor = $1",
    "a pragma": "PRAGMA database_list",
    "a pragma after": "true; PRAGMA database_list",
    "an aggregate": "sum(age) > 1",
    "text that is no truth": "donor",
    "a function that is none": "getenv('HOME') = ''",
    "a subquery": "age = (SELECT max(age) FROM cells)",
    "a subquery in IN": "age IN (SELECT age FROM cells)",
    "a subquery in EXISTS": "EXISTS (SELECT 1 FROM range(200000000))",
    "a generated list": "len(range(200000000)) > 0",
    "a generated series": "len(generate_series(1, 200000000)) > 0",
    "a list of a subquery": "len((SELECT list(r) FROM range(200000000) t(r))) > 0",
    "a long text": "length(repeat('x', 2000000000)) > 0",
    "a padded text": "length(rpad('x', 2000000000, 'y')) > 0",
    "a text that grows": "length(replace(replace('aaaa', 'a', 'aaaa'), 'a', 'aaaa')) > 0",
    "an array of fixed length": "TRY_CAST(donor AS INT[100000]) IS NULL",
    "a list of arrays": "TRY_CAST(donor AS INT[1000][]) IS NULL",
    "a map": "TRY_CAST(donor AS MAP(INT, STRUCT(a INT[9]))) IS NULL",
    "a lambda": "len(list_transform([1], x -> x)) > 0",
    "a window": "sum(age) OVER () > 0",
    "too long": "age > 0 AND " * 1000 + "true",
    "too deep": "(" * 3000 + "true" + ")" * 3000,
    "all columns": "COLUMNS('a.*') > 0",
    "a setting": "current_setting('memory_limit') = ''",
    "python's variables": "(SELECT count(*) FROM secret) > 0",
    "python's tables": "(SELECT count(*) FROM table_of_the_caller) > 0",
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_conditions_are_refused(cells: pd.DataFrame, kind: str) -> None:
    table_of_the_caller = secret = pd.DataFrame({"x": [1]})
    with pytest.raises(InputError) as caught:
        rows_where(cells, BAD[kind])
    assert len(caught.value.lines()) <= 3
    assert caught.value.code == "bad-where"
    assert "columns: donor, age, cell type, male, Größe;" in caught.value.fix
    assert "_scvec" not in caught.value.fix
    assert len(table_of_the_caller) == len(secret) == 1


def test_an_unknown_column_is_named(cells: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="disease"):
        rows_where(cells, BAD["unknown column"])


def test_no_file_is_read_or_written(cells: pd.DataFrame, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("key\nhunter2\n")
    pd.DataFrame({"key": ["hunter2"]}).to_parquet(tmp_path / "secret.parquet")
    before = sorted(tmp_path.iterdir())
    attempts = [
        f"(SELECT count(*) FROM read_csv('{secret}')) > 0",
        f"(SELECT content FROM read_text('{secret}')) LIKE '%hunter2%'",
        f"(SELECT count(*) FROM '{secret}') > 0",
        f"(SELECT count(*) FROM '{tmp_path}/secret.parquet') > 0",
        f"(SELECT count(*) FROM read_parquet('{tmp_path}/secret.parquet')) > 0",
        f"(SELECT count(*) FROM glob('{tmp_path}/*')) > 0",
        f"true; ATTACH '{tmp_path}/new.duckdb'",
        f"true); ATTACH '{tmp_path}/new.duckdb'; SELECT (1",
        f"true; COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"true; EXPORT DATABASE '{tmp_path}/out'",
        "true; INSTALL httpfs",
        "true; SET enable_external_access = true",
        "(SELECT count(*) FROM read_csv('https://example.com/x.csv')) > 0",
    ]
    for attempt in attempts:
        with pytest.raises(InputError) as caught:
            rows_where(cells, attempt)
        assert "hunter2" not in caught.value.what
    assert sorted(tmp_path.iterdir()) == before


def test_no_row_is_an_error_with_a_fix(cells: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no reference cell", check=lambda e: e.code == "where-no-match"):
        rows_where(cells, "donor = 'h9'")
    with pytest.raises(InputError):
        rows_where(cells.iloc[:0], "true")


def test_rows_are_in_order_of_large_tables() -> None:
    # DuckDB works on several blocks of rows, but the result is in table order.
    table = pd.DataFrame({"x": np.random.default_rng(0).integers(0, 10, 300_000)})
    found: Any = rows_where(table, "x = 3")
    np.testing.assert_array_equal(found, np.flatnonzero(table["x"] == 3))


def test_a_condition_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvec.stores.knowledge.where.SECONDS", 0.05)
    table = pd.DataFrame({"x": np.arange(2_000_000)})
    slow = " OR ".join(f"regexp_matches(x::VARCHAR, '(a|{i})*[b-z]{i}$')" for i in range(60))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"0\.05 seconds", check=lambda e: e.code == "bad-where"):
        rows_where(table, slow)
    assert time.monotonic() - started < 10  # 30 s on a fast machine without the limit


def test_little_memory_is_taken(cells: pd.DataFrame) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for condition in (
        "len(range(50000000)) > 0",
        "length(repeat('x', 400000000)) > 0",
        "TRY_CAST(donor AS INT[100000]) IS NULL",
    ):
        with pytest.raises(InputError):
            rows_where(cells, condition)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes

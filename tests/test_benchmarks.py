"""The numbers on the page equal the numbers that the scripts wrote."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
RECORDS = sorted((PROJECT / "docs" / "benchmarks").glob("*.json"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", PROJECT / "benchmarks" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_the_table_is_that_of_the_record(path: Path, tables: ModuleType):
    record = json.loads(path.read_text(encoding="utf-8"))
    found = re.search(rf"<!-- begin {path.stem} -->\n(.*?)<!-- end {path.stem} -->", PAGE, re.DOTALL)
    assert found, f"docs/benchmarks.md has no place for {path.name}"
    assert tables.markdown(record["columns"], record["rows"]) in found[1]
    assert record["command"] in found[1]


def test_every_place_on_the_page_is_filled():
    assert {p.stem for p in RECORDS} == set(re.findall(r"<!-- begin (\w+) -->", PAGE))


def test_the_figures_of_the_readme_are_those_of_the_record():
    record = json.loads((PROJECT / "docs" / "benchmarks" / "annotate_pairs.json").read_text(encoding="utf-8"))
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    header = re.search(r"^\| macro-F1 \|(.*)\|$", readme, re.MULTILINE)
    assert header
    pairs = [name.strip() for name in header[1].split("|")]
    shown = 0
    for row in record["rows"]:
        line = re.search(rf"^\| {re.escape(row['method'])} \|(.*)\|$", readme, re.MULTILINE)
        if line:
            shown += 1
            assert [float(v) for v in line[1].split("|")] == [round(row[p], 2) for p in pairs]
    assert shown >= 5 and "scvec default" in readme

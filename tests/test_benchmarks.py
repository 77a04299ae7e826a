"""The numbers on the page are those that the scripts wrote."""

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
    record = json.loads((PROJECT / "docs" / "benchmarks" / "baron.json").read_text(encoding="utf-8"))
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for row in record["rows"]:
        names = rf"^\| {re.escape(row['pair'])} \| {re.escape(row['method'])} \|(.*)$"
        line = re.search(names, readme, re.MULTILINE)
        if line:
            assert [float(v) for v in line[1].split("|")[:2]] == [
                round(row["accuracy"], 2), round(row["macro_f1"], 2)
            ]  # fmt: skip
    assert "scvec default" in readme

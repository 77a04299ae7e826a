"""``scvec import-legacy`` from the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scvec.base.types import Gene
from scvec.cli.ingest_genes import import_legacy
from scvec.stores.store.store import Store


@pytest.fixture
def files(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "store", create=True).begin("fill") as txn:
        txn.open_knowledge().upsert_genes([Gene("HGNC:6081", "human", "INS")])
        txn.commit()
    (tmp_path / "gpt.pkl").write_bytes(pickle.dumps({"INS": [1.0, 2.0], "WHAT": [1.0, 2.0]}))
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return tmp_path


def run(files: Path, *words: str) -> Any:
    return CliRunner().invoke(import_legacy, ["--store", str(files / "store"), *words])


def test_what_it_says(files: Path) -> None:
    result = run(files, str(files / "gpt.pkl"), "--name", "gpt")
    assert result.exit_code == 0, result.stderr
    assert "gpt.pkl: vectors of 2 dimensions, 1 of 2 imported" in result.stdout
    assert "unknown: WHAT" in result.stdout and "stored:gpt" in result.stdout


def test_json_and_dry_run(files: Path) -> None:
    result = run(files, str(files / "gpt.pkl"), "--dry-run", "--json", "-q")
    said = json.loads(result.stdout)
    assert said["dry_run"] is True and said["files"][0]["matched"] == 1
    assert Store(files / "store").generation.number == 1


def test_a_pickle_that_would_run_something_is_an_error_of_input(files: Path) -> None:
    result = run(files, str(files / "evil.pkl"))
    assert type(result.exception).__name__ == "InputError"
    assert "os.system" in str(result.exception)


def test_wrong_usage(files: Path) -> None:
    assert run(files).exit_code == 2
    assert "without running code" in run(files, "--help").stdout

"""Stores with links, pipes or folders in place of their files and folders."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Space
from scvec.stores.store.store import Store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
TEXT = "outside"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "store", create=True)
    for seed in (0, 1):
        put(opened, seed)
    return opened


def put(store: Store, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(9, 3)).astype(np.float32)
    with store.begin("put") as txn:
        obs = pd.DataFrame({"x": range(9)})
        txn.put_reference("r", meta={}, tensors={"w": np.ones(1, np.float32)}, obs=obs, vectors=vectors)
        txn.commit()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside of the store; its file must not change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept").write_text(TEXT)
    return folder


def untouched(outside: Path) -> bool:
    return os.listdir(outside) == ["kept"] and (outside / "kept").read_text() == TEXT


def folder(path: Path, outside: Path) -> None:
    path.mkdir()


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "kept")


Odd = Callable[[Path, Path], None]
ODD = pytest.mark.parametrize("odd", [folder, pipe, link], ids=lambda f: f.__name__)


@ODD
def test_a_manifest_that_is_not_a_file(store: Store, outside: Path, odd: Odd) -> None:
    for number in (2, 1):
        path = store.path / "generations" / f"{number:06d}.json"
        path.unlink()
        odd(path, outside)
        with pytest.raises(StoreError):
            Store(store.path).at(number)
    assert untouched(outside)


@ODD
def test_an_older_manifest_that_is_not_a_file_stops_compact(store: Store, outside: Path, odd: Odd) -> None:
    path = store.path / "generations" / "000001.json"
    path.unlink()
    odd(path, outside)
    with pytest.raises(StoreError):
        store.compact()
    assert untouched(outside) and store.verify().ok


@ODD
@pytest.mark.parametrize("name", ["lock", "CURRENT"])
def test_a_lock_or_current_that_is_not_a_file(store: Store, outside: Path, odd: Odd, name: str) -> None:
    (store.path / name).unlink(missing_ok=True)
    odd(store.path / name, outside)
    with pytest.raises(StoreError):
        put(Store(store.path), 2)
    assert untouched(outside)


@pytest.mark.parametrize("name", ["lock.json.tmp", "lock.json"])
def test_lock_json_is_not_written_through_a_link(store: Store, outside: Path, name: str) -> None:
    link(store.path / name, outside)
    put(store, 2)
    assert untouched(outside) and store.generation.number == 3


@pytest.mark.parametrize("name", ["lock.json.tmp", "lock.json"])
def test_a_folder_in_place_of_lock_json_is_an_error(store: Store, name: str) -> None:
    (store.path / name).mkdir()
    with pytest.raises(StoreError):
        put(store, 2)


@pytest.mark.parametrize("name", ["files", "generations", "work", "work/stage"])
def test_linked_folders_are_refused_and_left_alone(store: Store, outside: Path, name: str) -> None:
    shutil.rmtree(store.path / name, ignore_errors=True)
    (store.path / name).symlink_to(outside)
    with pytest.raises(StoreError):
        put(Store(store.path), 2)
    assert untouched(outside)


@pytest.mark.parametrize("name", ["fits", "work/stage", "work/prompt"])
def test_compact_deletes_nothing_through_a_link(store: Store, outside: Path, name: str) -> None:
    shutil.rmtree(store.path / name, ignore_errors=True)
    (store.path / name).symlink_to(outside)
    store.compact()
    assert untouched(outside)


@pytest.fixture
def space() -> Space:
    return Space("toy", "r1", "ab" * 32, "{text}", "mean", 3, True)


def write_vector(txn: Any, space: Space) -> None:
    txn.vectors().put_many(space, ["a" * 64], np.ones((1, space.dim), dtype=np.float32))


@ODD
def test_a_cache_that_is_not_a_file(store: Store, outside: Path, odd: Odd, space: Space) -> None:
    odd(store.path / "work" / "vectors.log", outside)
    with store.begin("embed") as txn, pytest.raises(StoreError):
        write_vector(txn, space)
    assert untouched(outside)


def test_a_new_cache_is_not_written_through_a_link(store: Store, outside: Path, space: Space) -> None:
    with store.begin("embed") as txn:
        write_vector(txn, space)
    link(store.path / "work" / "vectors.log.new", outside)
    with store.begin("embed") as txn:
        log = txn.vectors()._log
        assert log is not None
        log.keep([entry.at for entry in log.entries()])
    assert untouched(outside)


@pytest.mark.parametrize("name", ["kb.duckdb", "kb.duckdb.wal"])
def test_a_copy_of_the_knowledge_base_is_not_written_through_a_link(
    store: Store, outside: Path, name: str
) -> None:
    link(store.path / "work" / name, outside)
    with store.begin("genes") as txn:
        txn.open_knowledge()
        txn.commit()
    assert untouched(outside) and store.verify().ok


@pytest.mark.parametrize("name", ["work/kb.duckdb", "work/kb.duckdb.wal", "generations/.000009.json.a.tmp"])
def test_compact_deletes_what_killed_writers_left(store: Store, name: str) -> None:
    (store.path / name).write_text("half")
    store.compact()
    assert not (store.path / name).exists()


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "r.obs-0000000000000000.parquet", "a folder"])
def test_folders_among_the_files_stay(store: Store, name: str) -> None:
    (store.path / "files" / name).mkdir()
    assert store.verify().ok
    store.compact()
    assert (store.path / "files" / name).is_dir() and store.verify().ok


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_compact_frees_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("scvec.stores.store.transaction.json.dumps", full)
    report = store.compact()
    assert report.dropped == [0, 1] and report.n_files > 0 and store.verify().ok


@pytest.mark.parametrize("given", ["~/s", "$SCVEC_HERE/s", "${SCVEC_HERE}/s"])
def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCVEC_HERE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in (given, Path(given)):
        assert Store.open(path, create=True).path == tmp_path / "s"
        assert Store(path).generation.number == 0
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_command_line_expands_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    from click.testing import CliRunner

    from scvec.cli.main import cli

    Store.open(tmp_path / "s", create=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCVEC_STORE", "~/s" if by == "environment" else str(tmp_path / "other"))
    options = ["--store=~/s"] if by == "option" else []
    done = CliRunner().invoke(cli, ["verify", *options])
    assert done.exit_code == 0, done.output


def test_a_name_that_is_not_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCVEC_NOT_SET", raising=False)
    with pytest.raises(InputError):
        Store(tmp_path / "$SCVEC_NOT_SET")

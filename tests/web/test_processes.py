"""Tests of the child processes of a server: environment, limits, and their end with the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from web_parts import Shelf, form

from scvec.base.errors import InputError, ResourceError, ScvecError, without_paths
from scvec.web import process as process_module
from scvec.web.jobs import Busy, Searches
from scvec.web.process import Limits, reduced_environment
from scvec.web.server import _work_folder

PROJECT = Path(__file__).resolve().parents[2]
ECHO = (
    "import json, os, sys\n"
    "for line in sys.stdin:\n"
    "    print(json.dumps({'result': {'pid': os.getpid(), 'asked': json.loads(line)}}), flush=True)\n"
)
FAIL = (
    "import json; input(); print(json.dumps({'exit_code': 2, 'error':"
    " {'code': 'unknown-cell', 'what': 'w', 'where': 'x', 'fix': 'f'}}), flush=True)"
)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs that replace the next child processes; the last program replaces all later ones."""
    left: list[str] = []
    real = subprocess.Popen

    def popen(words: list[str], **options: Any) -> Any:
        return real([words[0], "-c", left.pop(0) if len(left) > 1 else left[0]], **options)

    monkeypatch.setattr(process_module.subprocess, "Popen", popen)
    return left


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    ends = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def test_a_process_that_reads_files_of_others_has_no_keys(monkeypatch: pytest.MonkeyPatch):
    for name in (
        "OPENAI_API_KEY",
        "NCBI_API_KEY",
        "HF_TOKEN",
        "AWS_PROFILE",
        "SCVEC_API_TOKEN",
        "SSH_AUTH_SOCK",
    ):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("SCVEC_MIRROR", "https://me:canary@example.org/")
    monkeypatch.setenv("SCVEC_CACHE", "/cache")
    found = reduced_environment()
    assert "canary" not in str(found)
    assert found["SCVEC_CACHE"] == "/cache" and found["PATH"] == os.environ["PATH"]
    assert found["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]


def test_searches_share_a_process_that_is_started_again(programs: list[str], tmp_path: Path):
    programs += ["import time; time.sleep(60)", "raise SystemExit", FAIL, ECHO]
    searches = Searches(tmp_path / "store", tmp_path, Limits(seconds=0.5, searches=1))
    try:
        with pytest.raises(ResourceError) as slow:
            searches.find("genes", "x")
        assert slow.value.code == "job-limit"
        with pytest.raises(ScvecError) as silent:
            searches.find("genes", "x")
        assert silent.value.code == "error"
        with pytest.raises(InputError) as told:
            searches.find("genes", "x")
        assert told.value.body() == {"code": "unknown-cell", "what": "w", "where": "x", "fix": "f"}
        until(lambda: not searches._process.alive)  # type: ignore[union-attr]
        first, second = searches.find("cells", "x", k=3), searches.find("cells", "y")
        assert first["pid"] == second["pid"] and first["asked"]["options"] == {"k": 3}
        searches._slots.acquire()
        with pytest.raises(Busy):
            searches.find("genes", "x")
    finally:
        searches.close()


def test_a_search_that_takes_too_much_memory_is_ended(programs: list[str], tmp_path: Path):
    if not process_module.memory_of(os.getpid()):
        pytest.skip("this system does not report the memory of a process")
    programs += ["import time; x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096]); time.sleep(60)"]
    searches = Searches(tmp_path / "store", tmp_path, Limits(memory=2**27))
    with pytest.raises(ResourceError) as large:
        searches.find("genes", "x")
    assert large.value.code == "job-limit" and "memory" in large.value.what
    searches.close()


def test_errors_name_no_folders():
    error = {
        "what": "cannot read /data/some store/x.json and '/home/me/b/c.h5ad'",
        "where": "/data/some store (/var/tmp/q)",
        "fix": "see https://example.org/a/b or a/b, 1 / 2; C:\\Users\\me\\c.h5ad",
    }
    assert without_paths(error, {"/data/some store": "the store"}) == {
        "what": "cannot read the store/x.json and 'c.h5ad'",
        "where": "the store (q)",
        "fix": "see https://example.org/a/b or a/b, 1 / 2; c.h5ad",
    }


@pytest.mark.parametrize("work", ["time.sleep(120)", "any(iter(int, 1))"], ids=["waits", "computes"])
def test_a_process_ends_with_its_parent_whatever_it_does(work: str, tmp_path: Path):
    program = (
        "import time; from scvec.web import child\n"
        "def annotate(request, tell):\n"
        f"    tell({{'stage': 'begun', 'done': 0, 'total': None}}); {work}\n"
        "child.annotate = annotate; child.main()"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], env=env, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        request = {"what": "job", "memory": 2**33, "n_bytes": 2**30, "seconds": 600}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["stage"] == "begun"
        time.sleep(0.3)  # let it start its work
        process.stdin.close()
        try:
            assert process.wait(30) in (1, -getattr(signal, "SIGIO", 0))
        finally:
            process.kill()


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("fcntl", reason="this system has no flock")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, elsewhere = tmp_path / "scvec-serve-old", tmp_path / "mine"
    (stale / "job").mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "scvec-serve-link").symlink_to(elsewhere)
    with _work_folder() as first:
        assert not stale.exists() and elsewhere.exists()
        with _work_folder() as second:
            assert first.exists() and second.exists() and first != second
        assert first.exists() and not second.exists()
    assert not first.exists()


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after[1]) == pid and after[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.kill
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
def test_a_killed_server_leaves_nothing(shelf: Shelf, tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-m", "scvec", "--store", str(shelf.store), "--json", "serve", "--port", "0"]

    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())["url"]

    first, url = start()
    base, token = url.split("/?token=")
    body, kind = form(shelf.cells.read_bytes(), "new.h5ad")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    urllib.request.urlopen(
        urllib.request.Request(f"{base}/api/jobs", data=body, headers=headers), timeout=300
    )
    assert until(lambda: len(children(first.pid)) == 1)
    child = children(first.pid)[0]
    (left,) = tmp_path.glob("scvec-serve-*")
    assert list(left.glob("*/upload"))
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    assert until(lambda: not Path(f"/proc/{child}").exists())
    second, _ = start()
    assert not left.exists()
    second.terminate()
    assert second.wait(120) == 143
    assert not list(tmp_path.glob("scvec-serve-*"))

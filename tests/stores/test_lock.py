from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from scvec.base.errors import LockedError
from scvec.stores.store.transaction import WriterLock

HOLD = """
import sys, time
from pathlib import Path
from scvec.stores.store.transaction import WriterLock
with WriterLock(Path(sys.argv[1]), "scvec ingest cells"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named(tmp_path, holder):
    with pytest.raises(LockedError) as error, WriterLock(tmp_path, "b"):
        pass
    assert f"process {holder.pid} on {socket.gethostname()}" in error.value.what
    assert "(scvec ingest cells" in error.value.what
    assert error.value.exit_code == 7


def test_a_killed_holder_blocks_nobody(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == holder.pid
    with WriterLock(tmp_path, "b"):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock.json").exists()


def test_waiting_for_the_holder(tmp_path, holder):
    import threading

    threading.Timer(0.3, holder.kill).start()
    with WriterLock(tmp_path, "b", wait=30):
        pass


def test_two_writers_in_one_process(tmp_path):
    refused = pytest.raises(LockedError, match=f"process {os.getpid()} .*first")
    with WriterLock(tmp_path, "first"), refused, WriterLock(tmp_path, "second"):
        pass
    with WriterLock(tmp_path, "second") as lock:
        assert lock.held


@pytest.mark.parametrize("content", ["", "[", "[1]", '{"pid": 1}', "\x00\xff", '{"pid": "x"}'])
def test_an_unreadable_lock_json_does_not_matter(tmp_path, content):
    with WriterLock(tmp_path, "first"):
        (tmp_path / "lock.json").write_text(content)
        with pytest.raises(LockedError, match="another process"), WriterLock(tmp_path, "second"):
            pass


def test_a_lock_json_of_a_dead_process_is_not_waited_for(tmp_path, monkeypatch):
    # The lock is held, but lock.json names a process that has ended. The error must come soon.
    with WriterLock(tmp_path, "first"):
        gone = {"pid": 2**22 - 1, "host": socket.gethostname(), "command": "old", "started": "then"}
        (tmp_path / "lock.json").write_text(json.dumps(gone))
        waits = []
        monkeypatch.setattr("scvec.stores.store.transaction.time.sleep", waits.append)
        with pytest.raises(LockedError), WriterLock(tmp_path, "second"):
            pass
        assert 0 < sum(waits) < 2


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), WriterLock(tmp_path, "first"):
        raise ZeroDivisionError
    with WriterLock(tmp_path, "second"):
        pass

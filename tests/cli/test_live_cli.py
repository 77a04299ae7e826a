"""Live sources from the command line: kills and keys in processes of their own, exit codes in this one."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_faults import Faults
from fake_genes import fake_genes
from fake_openai import add_openai
from fake_server import FakeServer
from live_store import digest, live_store, texts

from scvec.stores.store.store import Store

CANARY = {"NCBI_API_KEY": "canaryncbi0123456789abcdef", "OPENAI_API_KEY": "sk-canaryopenai0123456789abcdef"}
#: Kills of the test of kills; the whole claim is tested with 50.
KILLS = int(os.environ.get("SCVEC_TEST_KILLS", "4"))

#: The program, with short waits between its calls.
PROGRAM = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run
from scvec.ingest.sources import retry
retry.LAST_WAITS = (0.01, 0.01, 0.05)
retry.Caller.__init__.__kwdefaults__["pace"] = 0.02
from scvec.cli.main import main
sys.argv[0] = "scvec"
main()
"""


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--store", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, *words, **env)
    out, err = process.communicate(timeout=500)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture
def inside(monkeypatch):
    """Runs the command line in this process, with the same short waits, for tests of its output."""
    from scvec.cli.main import cli
    from scvec.ingest.sources import retry

    monkeypatch.setattr(retry, "LAST_WAITS", (0.01, 0.01, 0.05))
    monkeypatch.setitem(retry.Caller.__init__.__kwdefaults__, "pace", 0.02)
    return lambda folder, *words, **env: CliRunner().invoke(cli, ["--store", str(folder), *words], env=env)


def ncbi(server: FakeServer, *more: str) -> tuple[str, ...]:
    address = f"{server.url}/entrez/eutils"
    return ("ingest", "genes", "--source", "ncbi", "--base-url", address, "--requests-per-second", "0", *more)


def complement(server: FakeServer, *more: str) -> tuple[str, ...]:
    return ("ingest", "complement", "--model", "gpt-4o-mini", "--base-url", f"{server.url}/v1", *more)


@pytest.mark.kill
def test_killed_again_and_again_it_ends_as_if_never_killed(tmp_path):
    genes = fake_genes(60 * max(KILLS, 5))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    live_store(whole, genes)
    live_store(killed, genes)
    rng = random.Random(KILLS)
    with FakeServer(genes, extra=[add_openai]) as server:
        assert run(whole, *complement(server)).returncode == 0
        n_needed = len(server.requests)
        server.requests.clear()
        hit = 0
        for _ in range(KILLS):
            n_before = len(server.requests)
            process = start(killed, *complement(server))
            # Starting takes longer than asking: the moment is drawn from the requests that are left, later
            # up to well after the last, when answers are absorbed and committed.
            n_awaited = n_before + 1 + rng.randrange(max(1, (n_needed - n_before) // 2))
            while len(server.requests) < n_awaited and process.poll() is None:
                time.sleep(0.002)
            try:
                process.wait(rng.uniform(0, 0.5) * (hit > 0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                hit += 1
            process.communicate()
        assert hit, "no kill came in time"
        last = run(killed, *complement(server))
        assert last.returncode == 0, last.stderr
    assert digest(killed) == digest(whole)
    assert texts(killed, "llm") == texts(whole, "llm") and len(texts(killed, "llm")) == len(genes)
    with Store.open(killed).knowledge() as kb:
        assert kb.counts()["descriptions"] == 2 * len(genes)
    # What was under way, or had arrived and was not yet written, is asked again: little at each kill.
    assert len(server.requests) <= n_needed + 40 * hit


FAULTS = {"401": 5, "403": 5, "reset": 4, "500": 4, "malformed": 4, "redirect": None, "echo": None}

#: The program once for each list of words that it is given, in one process; tells where each ends, and how.
SEVERAL = (
    PROGRAM.rsplit("\n", 2)[0]
    + """
import json
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    for stream in (sys.stdout, sys.stderr):
        print("=== ended:", code, file=stream, flush=True)
"""
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """What was said and kept, and how it ended, by fault and command; with both keys set, and all logs on."""
    folder = tmp_path_factory.mktemp("faulty")
    genes, asked, runs = fake_genes(20), [], []
    with ExitStack() as stack:
        for fault in FAULTS:
            live_store(folder / fault, genes)
            for command in (complement, ncbi):
                faults = Faults.script([None] * 2, then=fault)
                server = FakeServer(genes, faults=faults, extra=[add_openai], keys=None)
                words = command(stack.enter_context(server))
                asked.append((fault, command.__name__))
                runs.append(["--store", str(folder / fault), "-vv", *words])
        done = subprocess.run(
            [sys.executable, "-c", SEVERAL, json.dumps(runs)],
            capture_output=True,
            text=True,
            env=os.environ | CANARY | {"OPENAI_LOG": "debug"},
            timeout=500,
        )
    assert done.returncode == 0, done.stderr
    ends = [re.split(r"=== ended: (\w+)\n", text) for text in (done.stdout, done.stderr)]
    assert [len(parts) for parts in ends] == [2 * len(runs) + 1] * 2, done.stderr
    (out, err), codes = (parts[::2] for parts in ends), ends[0][1::2]
    said = {key: (out[i] + err[i], int(codes[i])) for i, key in enumerate(asked)}
    return folder, said


@pytest.mark.parametrize(("fault", "code"), FAULTS.items())
@pytest.mark.slow
def test_keys_are_shown_nowhere(faulty, fault, code):
    folder, said = faulty
    for command in ("complement", "ncbi"):
        text, ended = said[fault, command]
        assert text and "canary" not in text
        if code is not None and command == "complement":
            assert ended == code, text
    kept = b"".join(p.read_bytes() for p in (folder / fault).rglob("*") if p.is_file())
    assert kept and b"canary" not in kept


@pytest.mark.kill
def test_ctrl_c_says_what_is_kept(tmp_path):
    genes = fake_genes(600)
    live_store(tmp_path / "store", genes)
    # The service falls silent after 300 answers, so that the interruption is never too late.
    with FakeServer(genes, faults=Faults.after(300, "timeout"), extra=[add_openai]) as server:
        process = start(tmp_path / "store", *complement(server))
        while len(server.requests) < 50 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted; " in said and "of 600 answers are saved" in said
    # Committed, not only in the journal.
    assert 0 < len(texts(tmp_path / "store", "llm")) < 600


def test_out_of_quota_is_exit_5_and_json_says_so(inside, tmp_path):
    genes = fake_genes(30)
    live_store(tmp_path / "store", genes)
    with FakeServer(genes, faults=Faults.after(10, "quota"), extra=[add_openai]) as server:
        done = inside(
            tmp_path / "store", "--json", *complement(server), OPENAI_API_KEY="sk-test-0123456789abcdef"
        )
    assert done.exit_code == 5
    said = json.loads(done.stdout)
    assert said["exit_code"] == 5 and "are saved" in said["what"]
    assert len(texts(tmp_path / "store", "llm")) == 10
    assert len(server.requests) <= 15


def test_an_unreachable_service_is_exit_4(inside, tmp_path):
    live_store(tmp_path / "store", fake_genes(5))
    words = ("ingest", "complement", "--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    done = inside(tmp_path / "store", *words)
    assert done.exit_code == 4, done.stderr
    assert len(done.stderr.splitlines()) <= 6


def test_a_limit_of_cost_stops_before_it(inside, tmp_path):
    genes = fake_genes(40)
    live_store(tmp_path / "store", genes)
    (tmp_path / "config.toml").write_text('[prices."gpt-4o-mini"]\ninput = 1000\noutput = 1000\n')
    with FakeServer(genes, extra=[add_openai]) as server:
        words = complement(server, "--max-cost", "6")
        done = inside(tmp_path / "store", "--json", *words, SCVEC_CONFIG=str(tmp_path / "config.toml"))
    assert done.exit_code == 0, done.stderr
    live = json.loads(done.stdout)["live"]
    assert 0 < live["n_answered"] < 40 and live["stopped"] and live["cost"]["dollars"] <= 6
    assert len(texts(tmp_path / "store", "llm")) == live["n_answered"]


def test_a_limit_without_a_price_is_refused(inside, tmp_path):
    live_store(tmp_path / "store", fake_genes(2))
    words = (
        "ingest",
        "complement",
        "--model",
        "mine",
        "--base-url",
        "https://example.org/v1",
        "--max-cost",
        "1",
    )
    done = inside(tmp_path / "store", *words)
    assert done.exit_code == 2 and "price" in done.stderr

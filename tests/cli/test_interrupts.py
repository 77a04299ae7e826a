"""An interrupt is heard wherever Python was when it came."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import weakref
from typing import Any

import click
import pytest

from scvec.base.types import no_progress
from scvec.cli.console import Interrupts
from scvec.cli.main import translate

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGINT there")


class Thing:
    """What can be referred to weakly."""


def interrupt_where_python_drops_it() -> None:
    thing = Thing()
    held = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert held() is None


def test_an_interrupt_in_a_callback_ends_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    interrupts = Interrupts()
    steps: list[str] = []
    report = interrupts.heeding(lambda stage, done, total, detail="": steps.append(stage))
    with pytest.raises(KeyboardInterrupt), interrupts.listening():
        report("reading", 0, 1)
        interrupt_where_python_drops_it()
        report("training", 0, 1)
    assert steps == ["reading"] and capsys.readouterr().err == ""


def test_another_thread_is_left_to_write_what_has_arrived() -> None:
    interrupts = Interrupts()
    with interrupts.listening():
        interrupt_where_python_drops_it()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            interrupts.heeding(no_progress)("asking", 0, 1)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []


def test_other_errors_of_callbacks_are_reported_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: told.append(unraisable.exc_value))
    interrupts = Interrupts()
    thing = Thing()
    with interrupts.listening():
        held = weakref.ref(thing, lambda _: [][1])
        del thing
    assert held() is None and isinstance(told[0], IndexError) and not interrupts.dropped


def test_a_command_ends_by_an_interrupt_that_python_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvec.cli.main import cli
    from scvec.cli.options import Session, pass_session

    @click.command("slow")
    @pass_session
    def slow(session: Session) -> None:
        with session.progress() as progress:
            interrupt_where_python_drops_it()
            progress("training", 0, 1)

    monkeypatch.setitem(cli.commands, "slow", slow)
    with pytest.raises(SystemExit) as ended:
        cli.main(["slow"])
    assert ended.value.code == 130


@pytest.mark.parametrize("on_interrupt", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_ends_a_command_as_ctrl_c_does(
    on_interrupt: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scvec.cli.main import cli

    cleaned = []

    @click.command("slow")
    def slow() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # timeout sends it to the process and to its group
            cleaned.append(True)

    monkeypatch.setitem(cli.commands, "slow", slow)
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(["slow"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 143 and cleaned == [True]
    assert capsys.readouterr().err.startswith("error: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_lets_asyncio_end_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvec.cli.main import cli

    ended_by: list[type[BaseException]] = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(60)
        except BaseException as error:
            ended_by.append(type(error))
            raise

    monkeypatch.setitem(cli.commands, "slow", click.Command("slow", callback=lambda: asyncio.run(work())))
    with pytest.raises(SystemExit) as ended:
        cli.main(["slow"])
    assert ended.value.code == 143 and ended_by == [asyncio.CancelledError]


def test_an_existing_handler_of_sigterm_is_kept() -> None:
    interrupts = Interrupts()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts.listening():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupted_query_of_duckdb_is_an_interrupt() -> None:
    # The words are those of DuckDB 2.0. It looks for signals between its tasks only, so that no query
    # is sure to be interrupted: the real thing would hang now and then.
    error = translate(RuntimeError("Query interrupted"), "scvec ingest cells")
    assert error.exit_code == 130 and error.lines()[0] == "interrupted"

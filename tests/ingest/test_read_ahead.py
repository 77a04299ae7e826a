"""A thread reads ahead: same items, errors in their place, and it ends with its user."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from scvec.base.resources import READY, read_ahead


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "scvec-read-ahead"]


def test_items_come_in_order_and_the_thread_ends() -> None:
    assert list(read_ahead(lambda: iter(range(50)))) == list(range(50))
    assert list(read_ahead(lambda: iter([None, 0, None]))) == [None, 0, None]
    assert list(read_ahead(lambda: iter(()))) == []
    assert threads() == []


def test_it_is_ahead_but_not_far() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    ahead = read_ahead(items)
    assert next(ahead) == 0
    until = time.monotonic() + 20
    while len(made) < READY + 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    # The one in use, those that wait, and the one that finds no room.
    assert made == list(range(READY + 2))
    ahead.close()
    assert threads() == []


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in read_ahead(items):
            got.append(item)
    assert got == [1, 2]
    assert threads() == []


def test_a_user_that_stops_or_fails_stops_the_thread() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    for _ in read_ahead(items):
        break
    with pytest.raises(ZeroDivisionError):
        for i in read_ahead(items):
            1 / i
    import gc

    gc.collect()
    assert threads() == []
    assert closed == [True, True]

"""Work on one chunk while the next ones are read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")

#: Chunks that may lie ready: one that is worked on next, and one against an uneven pace.
READY = 2


def read_ahead(items: Callable[[], Iterator[T]], ready: int = READY) -> Iterator[T]:
    """Yield what ``items()`` yields, made by a thread that is up to ``ready`` items ahead.

    Order and items are the same as without. An error comes at the place where it arose. When the caller
    stops, by an error of its own or by leaving the loop, the thread has ended by the time that the iterator
    is closed, so that a file may then be closed safely.

    Parameters
    ----------
    items
        Makes the iterator; it is called and gone through in the thread.
    ready
        Items that may wait. With the one being made and the one in use, ``ready + 2`` are in memory.
    """
    found: queue.Queue[tuple[str, T | None, BaseException | None]] = queue.Queue(maxsize=ready)
    stopped = threading.Event()

    def put(kind: str, item: T | None = None, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                found.put((kind, item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items():
                if not put("item", item):
                    return
        except BaseException as error:  # whatever it is, it belongs to the caller
            put("error", error=error)
        else:
            put("end")

    thread = threading.Thread(target=work, name="scvec-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item, error = found.get()
            if error is not None:
                raise error
            if kind == "end":
                return
            yield item  # type: ignore[misc]  # None only where the items are
            item = None  # the caller may be done with it: do not hold a chunk more than needed
    finally:
        stopped.set()
        thread.join()

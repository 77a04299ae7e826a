"""Parallel jobs: their order, their ends, and their resources."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest

from scvec.base.resources import JointProgress, n_cores, side_by_side


def square(x: int) -> int:
    return x * x


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_results_come_in_order(n: int, n_workers: int) -> None:
    assert list(side_by_side([partial(square, i) for i in range(n)], n_workers)) == [i * i for i in range(n)]


def test_jobs_run_at_once() -> None:
    # Each job waits for the other, so they end only if they run at once.
    both = threading.Barrier(2, timeout=60)
    assert sorted(side_by_side([both.wait, both.wait], 2)) == [0, 1]


def test_one_worker_runs_in_the_callers_thread() -> None:
    assert list(side_by_side([threading.get_ident], 1)) == [threading.get_ident()]
    assert list(side_by_side([threading.get_ident], 2)) != [threading.get_ident()]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_jobs_are_taken_when_a_worker_is_free(n_workers: int) -> None:
    made = []

    def jobs() -> Iterator[Callable[[], int]]:
        for i in range(100):
            made.append(i)
            yield partial(square, i)

    with closing(side_by_side(jobs(), n_workers)) as found:
        for i in range(5):
            assert next(found) == i * i
            # Only the running jobs and one waiting job are in memory, because chunks are large.
            assert len(made) <= i + 1 + n_workers


def test_the_first_failure_is_raised_in_its_place_and_ends_the_rest() -> None:
    def fail() -> int:
        raise ValueError("no")

    begun = threading.Event()
    with closing(side_by_side([partial(square, 2), fail, begun.wait], 2, begun.set)) as found:
        assert next(found) == 4
        with pytest.raises(ValueError, match="no"):
            next(found)
    # The waiting job was stopped; otherwise the iterator would not have ended.
    assert begun.is_set()


def test_a_job_that_nobody_waits_for_ends_at_its_next_report() -> None:
    told: list[tuple[str, int, int | None]] = []
    together = JointProgress(lambda stage, done, total, detail="": told.append((stage, done, total)), 2)
    reached, go, ended = threading.Event(), threading.Event(), threading.Event()

    def endless(number: int) -> int:
        report = together.of(number)
        try:
            for i in range(10**9):
                report("training", i, 10**9)
                reached.set()
                go.wait(60)
        finally:
            ended.set()
        return number

    found = side_by_side([partial(square, 1), partial(endless, 1)], 2, lambda: (together.stop(), go.set())[0])
    assert next(found) == 1
    assert reached.wait(60)
    found.close()
    assert ended.is_set() and told


def test_progress_of_jobs_is_reported_as_one() -> None:
    told: list[tuple[str, int, int | None]] = []
    together = JointProgress(lambda stage, done, total, detail="": told.append((stage, done, total)), 3)
    first, second, third = (together.of(i) for i in range(3))
    first("training", 10, 100)
    second("training", 30, 50)
    first("training", 100, 100)
    third("counting", 1, None)
    assert told == [
        ("training", 10, 300),
        ("training", 40, 200),
        ("training", 130, 250),
        ("counting", 1, None),
    ]


def test_thread_limits_of_libraries_are_set_and_restored() -> None:
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        return [i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"]

    before = blas()
    with closing(side_by_side([blas, blas], 2)) as found:
        assert all(n <= max(1, n_cores() // 2) for n in next(found))
    assert blas() == before


@pytest.mark.parametrize(
    ("asked", "most"), [("1", 1), ("1,2", 1), (" 1 ", 1), ("many", None), ("0", None), ("", None)]
)
def test_number_of_cores(asked: str, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    there = n_cores()
    assert 1 <= there <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert n_cores() == (there if most is None else most)

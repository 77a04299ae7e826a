"""Asking a live service: plan, harvest into the journal, absorb, commit."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from scvec.api.live_reports import Cost, LiveReport, failed_genes
from scvec.errors import ScvecError
from scvec.protocols import Progress
from scvec.records import Answer, Failure, Job

if TYPE_CHECKING:
    from scvec.ingest.sources.run import Harvest, Source, Tally
    from scvec.stores.knowledge import KnowledgeBase
    from scvec.stores.transaction import Transaction

__all__ = ["Asked", "ask_live", "opened_source"]


class Asked(NamedTuple):
    """What asking came to.

    Attributes
    ----------
    error
        To be raised when the transaction is over, or None.
    counts
        Of the knowledge base, as committed.
    """

    report: LiveReport
    generation: str
    error: BaseException | None
    counts: dict[str, int]


@asynccontextmanager
async def opened_source(source: Source) -> AsyncIterator[Source]:
    """Enter a source that is a context manager of its own; others as they are."""
    if isinstance(source, AbstractAsyncContextManager):
        async with source as entered:
            yield entered
    else:
        yield source


def ask_live(
    txn: Transaction,
    kb: KnowledgeBase,
    *,
    name: str,
    wanted: Sequence[Job],
    todo: Sequence[Job],
    final: Sequence[Failure],
    make_source: Callable[[], Source],
    concurrency: int,
    progress: Progress,
    spent: Callable[[], Cost | None] = lambda: None,
) -> Asked:
    """Ask a source for jobs, keep what arrives, commit it.

    An answer is in the journal, on the disk, before anything is done with it. Whatever ends the asking
    (the last job, Ctrl-C, a service that is gone, a limit of cost), what has arrived is committed. Only
    when that is impossible, as on a full disk, does it stay in the journal for the next run.

    Parameters
    ----------
    wanted, todo
        All jobs, and those to ask.
    final
        Failures of earlier runs that asking again would not mend.
    make_source
        Called once, inside the event loop's run.
    spent
        Returns tokens and dollars so far.
    """
    from scvec.ingest.sources.retry import ServiceError
    from scvec.ingest.sources.run import harvest, run_async

    started = time.monotonic()
    journal = txn.journal()
    answered: set[Job] = set()
    lost: dict[Job, Failure] = {}
    source: Source | None = None
    result: Harvest | None = None
    error: BaseException | None = None

    def write(answers: Sequence[Answer], failures: Sequence[Failure]) -> None:
        journal.write(answers, failures)
        answered.update(a.job for a in answers)
        lost.update((f.job, f) for f in failures)

    def show(tally: Tally) -> None:
        progress(f"asking {name}", tally.done + tally.failed, tally.total, tally.line())

    def dollars() -> float | None:
        cost = spent()
        return None if cost is None else cost.dollars

    async def run() -> Harvest:
        nonlocal source
        async with opened_source(make_source()) as source:
            return await harvest(source, todo, write, concurrency=concurrency, progress=show, cost=dollars)

    progress(f"asking {name}", 0, len(todo))
    try:
        if todo:
            result = run_async(run())
    except (KeyboardInterrupt, ScvecError) as caught:
        error = caught
    kb.absorb(journal)
    counts = kb.counts()
    generation = str(txn.commit().number)
    if result is not None and isinstance(result.stopped, ServiceError):
        error = result.stopped.translated(name)
    kept = f"{len(answered):,} of {len(todo):,} answers are kept"
    if isinstance(error, KeyboardInterrupt):
        error = KeyboardInterrupt(kept)
    elif isinstance(error, ScvecError):
        error = type(error)(f"{error.what}; {kept}", error.where, error.fix)
    report = LiveReport(
        source=name,
        n_wanted=len(wanted),
        n_known=len(wanted) - len(todo) - len(final),
        n_asked=len(todo),
        n_answered=len(answered),
        failed=failed_genes([*final, *(f for job, f in lost.items() if job not in answered)]),
        stopped="" if result is None or result.stopped is None else str(result.stopped),
        cost=_measured(spent(), source, time.monotonic() - started),
    )
    return Asked(report, generation, error, counts)


def _measured(spent: Cost | None, source: Any, seconds: float) -> Cost:
    requests = source.caller.n_calls if source is not None else 0
    if spent is None:
        return Cost(requests=requests, seconds=seconds)
    return Cost(
        requests=requests,
        tokens_in=spent.tokens_in,
        tokens_out=spent.tokens_out,
        dollars=spent.dollars,
        seconds=seconds,
    )

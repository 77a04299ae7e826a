"""``scvec ingest genes --source ncbi|mygene``: facts and descriptions from live services."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.api.knowledge import ensure_knowledge
from scvec.api.live import ask_live
from scvec.api.live_reports import Cost, LiveReport, failed_genes
from scvec.api.planning import unasked, wanted_genes
from scvec.api.text_reports import GenesReport
from scvec.protocols import Progress, no_progress
from scvec.records import Job, Wanted
from scvec.settings import Settings
from scvec.types import Species

if TYPE_CHECKING:
    from scvec.ingest.sources.run import Source

__all__ = ["LIVE_SOURCES", "ingest_live_genes"]

LIVE_SOURCES = ("ncbi", "mygene")
CONCURRENCY = 4


def ingest_live_genes(
    store: Path | str,
    source: str,
    *,
    species: Sequence[Species],
    names: Sequence[str] | None = None,
    dry_run: bool = False,
    refresh: bool = False,
    details: bool = False,
    base_url: str | None = None,
    requests_per_second: float | None = None,
    concurrency: int = CONCURRENCY,
    progress: Progress = no_progress,
) -> GenesReport:
    """Ask NCBI or MyGene about genes; see :func:`scvec.api.genes.ingest_genes`."""
    from scvec.stores.store import Store

    started = time.monotonic()
    settings = Settings.load()
    opened = Store.open(store, create=True)
    with opened.begin("ingest genes", {"source": source}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if not dry_run:
            kb.absorb(txn.journal())  # of a run that was killed
        plan = wanted_genes(kb, names, species, source=source)
        prompt = "details" if details else ""
        wanted = {Job.of(w.gene_id, source, _question(w, source), prompt=prompt): w for w in plan.wanted}
        todo, final = unasked(kb, wanted, refresh=refresh)
        asked = {job: wanted[job] for job in todo}
        make, requests, per_second = _service(
            source, asked, settings, details=details, base_url=base_url, per_second=requests_per_second
        )
        generation, error = "", None
        if dry_run:
            live = LiveReport(
                source=source,
                n_wanted=len(wanted),
                n_known=len(wanted) - len(todo) - len(final),
                n_asked=len(todo),
                n_answered=0,
                failed=failed_genes(final),
                cost=Cost(requests=requests, seconds=requests / per_second if per_second else None),
                dry_run=True,
            )
            counts = kb.counts()
        else:
            outcome = ask_live(
                txn,
                kb,
                name=source,
                wanted=list(wanted),
                todo=todo,
                final=final,
                make_source=make,
                concurrency=concurrency,
                progress=progress,
            )
            live, generation, error, counts = outcome
        notes = [*plan.notes, *txn.notes]
    if error is not None:
        raise error
    return GenesReport.of(
        counts,
        source=source,
        seconds=time.monotonic() - started,
        generation=generation,
        dry_run=dry_run,
        notes=notes,
        live=live,
    )


def _question(wanted: Wanted, source: str) -> str:
    """Return what the answer depends on: by which id the gene is asked."""
    if wanted.entrez_id is not None:
        by = f"entrez:{wanted.entrez_id}"
    elif source == "mygene":
        by = " ".join(wanted.ensembl_ids) or f"symbol:{wanted.symbol}"
    else:
        by = f"symbol:{wanted.symbol}"
    return f"{wanted.species} {by}"


def _service(
    source: str,
    wanted: Mapping[Job, Wanted],
    settings: Settings,
    *,
    details: bool,
    base_url: str | None,
    per_second: float | None,
) -> tuple[Callable[[], Source], int, float]:
    """Return what makes the source, the fewest requests that will do, and how many a second are allowed."""
    if source == "ncbi":
        from scvec.ingest.sources.ncbi import NcbiSource, ncbi_requests

        found = NcbiSource(wanted, settings.ncbi, base_url=base_url, per_second=per_second, details=details)
        return lambda: found, ncbi_requests(list(wanted.values()), details=details), found.per_second
    from scvec.ingest.sources.mygene import MyGeneSource, mygene_requests

    other = MyGeneSource(wanted, settings.mygene, base_url=base_url, per_second=per_second)
    return lambda: other, mygene_requests(list(wanted.values())), other.per_second

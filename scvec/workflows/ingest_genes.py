"""``scvec ingest genes``: gene facts and descriptions, from files or live services."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.base.records import Job, Wanted
from scvec.base.settings import Settings
from scvec.base.types import SPECIES, Progress, Species, no_progress
from scvec.model.resolvers import ensure_knowledge
from scvec.workflows.live import Cost, LiveReport, ask_live, failed_genes, unasked, wanted_genes
from scvec.workflows.text_reports import GenesReport

if TYPE_CHECKING:
    from scvec.ingest.sources.run import Source
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["ingest_genes", "read_gene_list"]

LIVE_SOURCES = ("ncbi", "mygene")
CONCURRENCY = 4


def read_gene_list(path: Path) -> list[str]:
    """Return gene names of a text file, one a line; empty lines and lines that begin with # do not count.

    Raises
    ------
    InputError
        If the file cannot be read as text or names no gene.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(
            "no such file", str(path), "give a file with one gene a line", code="file-not-found"
        ) from error
    except IsADirectoryError as error:
        fix = "give a file with one gene a line"
        raise InputError("this is a folder, not a file", str(path), fix, code="not-a-file") from error
    except UnicodeDecodeError as error:
        fix = "give a plain text file (UTF-8) with one gene a line"
        raise InputError("the list of genes is no text", str(path), fix, code="wrong-format") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise InputError("the list names no gene", str(path), "give a file with one gene a line")
    return names


def ingest_genes(
    store: Path | str,
    *,
    species: Sequence[Species] = SPECIES,
    source: str | Path = "snapshot",
    genes: Path | None = None,
    dry_run: bool = False,
    refresh: bool = False,
    details: bool = False,
    base_url: str | None = None,
    requests_per_second: float | None = None,
    concurrency: int = CONCURRENCY,
    progress: Progress = no_progress,
) -> GenesReport:
    """Fill the knowledge base: from the shipped snapshot, a file, NCBI or MyGene.

    Live sources are asked about genes that they have not answered yet. What arrives is kept whatever ends
    the run, and the next run goes on from there.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    source
        ``snapshot``, ``ncbi``, ``mygene``, or a file: jsonl, csv or parquet with one gene a row, or a table
        as NCBI, HGNC or MGI offer it (see docs/genes.md).
    genes
        File with one gene name a line: only these are taken, or asked about.
    dry_run
        Read and count, say what asking would take; change nothing.
    refresh
        Ask a live source again about genes it has answered.
    details
        Ask NCBI for what its summaries lack too: type, RefSeq status, lineage, expression. Ten times the
        requests.
    base_url
        Address of the live source, for a mirror; the service's own where not given.
    requests_per_second
        The most to send; 0 for no limit, which only a mirror allows.
    concurrency
        Requests under way at once.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    NetworkError, AuthError
        If the service is gone or refuses; what it answered before is in the store.
    """
    from scvec.stores.store.store import Store

    started = time.monotonic()
    names = read_gene_list(genes) if genes else None
    if str(source) in LIVE_SOURCES:
        return _ingest_live(
            store,
            str(source),
            species=species,
            names=names,
            dry_run=dry_run,
            refresh=refresh,
            details=details,
            base_url=base_url,
            requests_per_second=requests_per_second,
            concurrency=concurrency,
            progress=progress,
        )
    path = _source_file(source, names)
    opened = Store.open(store, create=True)
    notes: list[str] = []
    with opened.begin("ingest genes", {"source": path.name if path else "snapshot"}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if path is not None:
            loaded = _load_file(kb, path, species, names, notes, progress)
            notes.append(f"{path.name}: {loaded:,} genes read")
        counts = kb.counts()
        generation = ""
        if not dry_run:
            generation = str(txn.commit().number)
        notes += txn.notes
    return GenesReport.of(
        counts,
        source=path.name if path else "snapshot",
        seconds=time.monotonic() - started,
        generation=generation,
        dry_run=dry_run,
        notes=notes,
    )


def _source_file(source: str | Path, names: Sequence[str] | None) -> Path | None:
    """Return the file that ``--source`` names, or None for the snapshot."""
    if str(source) == "snapshot":
        if names is not None:
            raise InputError(
                "--genes chooses genes of a file or a live source, and the snapshot is loaded whole",
                "--genes",
                "leave it out, or give --source ncbi, mygene or a file",
            )
        return None
    path = Path(source)
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(
            what,
            str(source),
            "give --source snapshot, ncbi, mygene, or a file of genes",
            code="not-a-file" if path.is_dir() else "file-not-found",
        )
    return path


def _load_file(
    kb: KnowledgeBase,
    path: Path,
    species: Sequence[str],
    names: list[str] | None,
    notes: list[str],
    progress: Progress,
) -> int:
    from scvec.ingest.genes.gene_files import read_gene_file

    only = species[0] if len(species) == 1 else None
    wanted = set(names) if names is not None else None
    total = 0

    def batches() -> Iterator[Any]:
        nonlocal total
        for batch in read_gene_file(path, species=only, notes=notes):
            kept = [
                (gene, texts)
                for gene, texts in batch
                if gene.species in species
                and (
                    wanted is None
                    or not wanted.isdisjoint({gene.symbol, str(gene.entrez_id), *gene.ensembl_ids})
                )
            ]
            total += len(kept)
            progress(f"reading {path.name}", total, None)
            yield kept

    kb.upsert_records(batches(), source=path.name)
    return total


def _ingest_live(
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
    """Ask NCBI or MyGene about genes; see :func:`ingest_genes`."""
    from scvec.stores.store.store import Store

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
) -> tuple[Callable[[], AbstractAsyncContextManager[Source]], int, float]:
    """Return what makes the source, the fewest requests that will do, and how many a second are allowed."""
    if source == "ncbi":
        from scvec.ingest.sources.ncbi import NcbiSource, ncbi_requests

        found = NcbiSource(wanted, settings.ncbi, base_url=base_url, per_second=per_second, details=details)
        return lambda: found, ncbi_requests(list(wanted.values()), details=details), found.per_second
    from scvec.ingest.sources.mygene import MyGeneSource, mygene_requests

    other = MyGeneSource(wanted, settings.mygene, base_url=base_url, per_second=per_second)
    return lambda: other, mygene_requests(list(wanted.values())), other.per_second

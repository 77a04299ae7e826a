"""``scvec ingest genes``: gene facts and descriptions, from files or live services."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.records import Job
from scvec.base.results import Report, counts_line
from scvec.base.settings import ServiceSettings, Settings
from scvec.base.types import Progress, no_progress
from scvec.ingest.genes import read_gene_file
from scvec.ingest.sources import SOURCES, load_source
from scvec.model.resolvers import ensure_knowledge
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.workflows.live import Cost, LiveOptions, LiveReport, Questions, ask_live, wanted_genes

__all__ = ["GenesOptions", "GenesReport", "ingest_genes"]


@dataclass(frozen=True, kw_only=True)
class GenesOptions(LiveOptions):
    """Options of ``ingest genes``.

    Attributes
    ----------
    source
        ``snapshot`` (shipped), a name in :data:`scvec.ingest.sources.SOURCES`, or a file: jsonl, csv or
        parquet with one gene a row, or a table of NCBI, HGNC or MGI (see docs/genes.md).
    refresh
        Ask a live source again about genes it has answered.
    details
        Also ask for what summaries lack: type, RefSeq status, lineage, expression. Ten times the requests.
    requests_per_second
        The most to send; 0 for no limit, which only a mirror allows.
    """

    source: str | Path = "snapshot"
    refresh: bool = False
    details: bool = False
    requests_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class GenesReport(Report):
    """What ``ingest genes`` put into the knowledge base.

    Attributes
    ----------
    genes, descriptions
        Numbers of genes per species, of descriptions per kind (human, composed, borrowed, llm).
    orthologs
        Number of ortholog pairs.
    live
        The outcome of asking, where the source is a live one.
    """

    genes: dict[str, int]
    descriptions: dict[str, int]
    orthologs: int
    source: str
    seconds: float
    source_version: str = ""
    generation: str = ""
    dry_run: bool = False
    live: LiveReport | None = None

    @classmethod
    def of(cls, counts: Mapping[str, int], started: float, **fields: Any) -> GenesReport:
        """Return the report on a knowledge base with these :meth:`KnowledgeBase.counts`."""
        genes, descriptions = (
            {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
            for prefix in ("genes ", "descriptions ")
        )
        return cls(
            genes=genes,
            descriptions=descriptions,
            orthologs=counts.get("orthologs", 0),
            seconds=time.monotonic() - started,
            **fields,
        )

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        verb = "would hold" if self.dry_run and self.live is None else "holds"
        version = f" {self.source_version}" if self.source_version else ""
        return [
            *(self.live.lines() if self.live is not None else []),
            f"knowledge base {verb} {counts_line(self.genes)} genes (source: {self.source}{version})",
            f"descriptions: {counts_line(self.descriptions)}",
            f"orthologs: {self.orthologs:,} human-mouse pairs",
            f"took {self.seconds:.1f} s",
        ]


@takes_options(GenesOptions)
def ingest_genes(
    store: Path | str,
    options: GenesOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> GenesReport:
    """Fill the knowledge base: from the shipped snapshot, a file, or a live source.

    A live source is asked about genes that it has not answered yet. Answers are kept whatever ends the run,
    and the next run continues from there.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    keywords
        Fields of :class:`GenesOptions`, instead of ``options`` or before them.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    NetworkError, AuthError
        If the service is unreachable or refuses; its answers before that are in the store.
    """
    asked = options_of(GenesOptions, options, keywords)
    names = asked.names()
    if str(asked.source) in SOURCES:
        return _ask(store, asked, names, progress)
    started = time.monotonic()
    path = _source_file(asked.source, names)
    source = path.name if path else "snapshot"
    notes: list[str] = []
    with Store.open(store, create=True).begin("ingest genes", {"source": source}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if path is not None:
            loaded = _load_file(kb, path, asked.species, names, notes, progress)
            notes.append(f"{path.name}: {loaded:,} genes read")
        counts = kb.counts()
        generation = "" if asked.dry_run else str(txn.commit().number)
        notes += txn.notes
    return GenesReport.of(
        counts, started, source=source, generation=generation, dry_run=asked.dry_run, notes=notes
    )


def _source_file(source: str | Path, names: Sequence[str] | None) -> Path | None:
    """Return the file that ``--source`` names, or None for the snapshot."""
    live = ", ".join(SOURCES)
    if str(source) == "snapshot":
        if names is not None:
            what = "--genes chooses genes of a file or a live source; the snapshot is loaded whole"
            raise InputError(what, "--genes", f"leave it out, or give --source {live} or a file")
        return None
    path = Path(source)
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(
            what,
            str(source),
            f"give --source snapshot, {live}, or a file of genes",
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
    """Put the genes of a file into the knowledge base, those of a list where given; return their number."""
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


def _ask(
    store: Path | str, options: GenesOptions, names: Sequence[str] | None, progress: Progress
) -> GenesReport:
    """Ask a live source about genes."""
    started = time.monotonic()
    name = str(options.source)
    service = load_source(name)
    settings = getattr(Settings.load(), name, ServiceSettings())
    with Store.open(store, create=True).begin("ingest genes", {"source": name}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if not options.dry_run:
            kb.absorb(txn.journal())  # of a run that was killed
        wanted, notes = wanted_genes(kb, names, options.species)
        if names is None:
            wanted = [w for w in wanted if service.can_ask(w)]
        prompt = "details" if options.details else ""
        jobs = {
            Job.of(w.gene_id, name, f"{w.species} {service.question(w)}", prompt=prompt): w for w in wanted
        }
        questions = Questions.of(kb, name, jobs, again=options.refresh)
        asked = {job: jobs[job] for job in questions.todo}
        source = service(
            asked,
            settings,
            base_url=options.base_url,
            per_second=options.requests_per_second,
            details=options.details,
        )
        if options.dry_run:
            requests, rate = service.n_requests(list(asked.values()), options.details), source.per_second
            live = questions.report(Cost(requests=requests, seconds=requests / rate if rate else None))
            generation, error, counts = "", None, kb.counts()
        else:
            live, generation, error, counts = ask_live(
                txn, kb, questions, source, concurrency=options.concurrency, progress=progress
            )
        notes += txn.notes
    if error is not None:
        raise error
    return GenesReport.of(
        counts, started, source=name, generation=generation, dry_run=options.dry_run, notes=notes, live=live
    )

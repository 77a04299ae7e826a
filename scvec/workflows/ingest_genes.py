"""``scvec ingest genes``: gene facts and descriptions, from files or live services."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Report, counts_line
from scvec.base.settings import ServiceSettings, Settings
from scvec.base.species import SPECIES, known_species, species_key
from scvec.base.types import Job, Progress, no_progress
from scvec.ingest.genes import read_gene_file
from scvec.ingest.orthologs.ortholog_tables import Names, Pair, is_ortholog_table, read_ortholog_table
from scvec.ingest.sources import SOURCES, load_source
from scvec.model.resolvers import GeneResolver, ensure_knowledge, resolver_of
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.stores.knowledge.tables import arrow
from scvec.stores.store.store import Store
from scvec.workflows.live import Cost, LiveOptions, LiveReport, Questions, ask_live, wanted_genes

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["GenesOptions", "GenesReport", "ingest_genes"]


@dataclass(frozen=True, kw_only=True)
class GenesOptions(LiveOptions):
    """Options of ``ingest genes``.

    Attributes
    ----------
    source
        ``snapshot`` (shipped), a name in :data:`scvec.ingest.sources.SOURCES`, or a file: jsonl, csv or
        parquet with one gene per row, a table of NCBI, HGNC or MGI (see docs/genes.md), or a table of
        orthologs (see docs/species.md).
    refresh
        Request known genes again from a live source.
    requests_per_second
        Most requests per second; 0 for no limit, which only a mirror allows.
    columns
        Species -> column of an ortholog table with its genes, to correct a wrong detection.
    """

    source: str | Path = "snapshot"
    refresh: bool = False
    requests_per_second: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        species = (self.species,) if isinstance(self.species, str) else self.species
        object.__setattr__(self, "species", tuple(dict.fromkeys(species_key(s) for s in species)))


@dataclass(frozen=True, kw_only=True)
class GenesReport(Report):
    """Result of ``ingest genes``: the content of the knowledge base.

    Attributes
    ----------
    genes, descriptions
        Numbers of genes per species, and of descriptions per kind (human, composed, borrowed, llm).
    orthologs
        Number of ortholog pairs.
    pairs
        Number of ortholog pairs by species, such as ``human-mouse``.
    live
        Result of the requests to a live source.
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
    pairs: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[str, int], started: float, **fields: Any) -> GenesReport:
        """Return the report for the :meth:`KnowledgeBase.counts` of a knowledge base."""
        genes, descriptions, pairs = (
            {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
            for prefix in ("genes ", "descriptions ", "orthologs ")
        )
        return cls(
            genes=genes,
            descriptions=descriptions,
            pairs=pairs,
            orthologs=counts.get("orthologs", 0),
            seconds=time.monotonic() - started,
            **fields,
        )

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        verb = "would hold" if self.dry_run and self.live is None else "holds"
        version = f" {self.source_version}" if self.source_version else ""
        return [
            *(self.live.lines() if self.live is not None else []),
            f"knowledge base {verb} {counts_line(self.genes)} genes (source: {self.source}{version})",
            f"descriptions: {counts_line(self.descriptions)}",
            f"orthologs: {counts_line(self.pairs)} pairs",
            f"took {self.seconds:.1f} s",
        ]

    @property
    def next_step(self) -> NextStep:
        """The run after a dry run; else the vectors of the descriptions."""
        return WITHOUT_DRY_RUN if self.dry_run else NextStep(("ingest", "embeddings"))


@takes_options(GenesOptions)
def ingest_genes(
    store: Path | str,
    options: GenesOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> GenesReport:
    """Add genes to the knowledge base from the shipped snapshot, a file, or a live source.

    A live source is asked only about genes without an answer. Answers are saved even if the run ends early,
    and the next run continues.

    Parameters
    ----------
    store
        Folder of the store; created if missing.
    keywords
        Fields of :class:`GenesOptions`. Keywords override ``options``.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    NetworkError, AuthError
        If the service is unreachable or refuses. Answers received before are in the store.
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
        notes += _load_shipped(kb, asked.species, needed=path is None)
        if path is not None and (asked.columns or is_ortholog_table(path)):
            notes += _load_orthologs(kb, path, asked)
        elif path is not None:
            loaded = _load_file(kb, path, asked.species, names, notes, progress)
            notes.append(f"{path.name}: {loaded:,} genes read")
        counts = kb.counts()
        generation = "" if asked.dry_run else str(txn.commit().number)
        notes += txn.notes
    return GenesReport.of(
        counts, started, source=source, generation=generation, dry_run=asked.dry_run, notes=notes
    )


def _source_file(source: str | Path, names: Sequence[str] | None) -> Path | None:
    """Return the file in ``--source``, or None for the snapshot."""
    live = ", ".join(SOURCES)
    if str(source) == "snapshot":
        if names is not None:
            what = "--genes needs a file or a live source; the snapshot is always loaded completely"
            raise InputError(what, "--genes", f"omit it, or give --source {live} or a file")
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


def _load_shipped(kb: KnowledgeBase, species: Sequence[str], *, needed: bool) -> list[str]:
    """Load the shipped genes of some species, and return notes; refuse ``needed`` genes that do not ship."""
    shipped = Snapshot.open().species
    missing = [one for one in species if one not in shipped]
    if missing and needed:
        what = f"scvec does not ship genes of {missing[0]}"
        live = ", ncbi or mygene" if missing[0] in known_species() else ""
        listed = ", ".join(shipped)
        fix = f"give --source FILE{live} (shipped species: {listed}); else its names are used unchanged"
        raise InputError(what, "--species", fix, code="unknown-choice")
    more = [one for one in species if one in shipped and one not in SPECIES]
    if not more:
        return []
    added = kb.load_snapshot(more)
    return [f"loaded the shipped genes of {', '.join(more)}"] if added["genes"] else []


#: Kinds of names for finding a gene of a table in the knowledge base, the most reliable first.
_LOOKED_UP = ("authority", "ensembl", "entrez", "symbol")


def _load_orthologs(kb: KnowledgeBase, path: Path, asked: GenesOptions) -> list[str]:
    """Add the genes and pairs of an ortholog table to the knowledge base; return notes."""
    resolver = resolver_of(kb)

    def known(names: Sequence[str]) -> str:
        match = resolver.resolve(names)
        # Half of all small numbers are ids of some gene.
        least = 0.9 if all(name.isdigit() for name in names) else 0.5
        return "" if match.looks_like or match.n_matched < least * len(names) else match.species

    table = read_ortholog_table(path, asked.species, columns=asked.columns, known=known)
    fresh = [gene for gene in table.genes if gene.species not in SPECIES]
    kb.upsert_genes(fresh, source=path.name)
    resolver = resolver_of(kb)
    found = _gene_ids(resolver, table.pairs)
    rows: dict[tuple[str, str, str, str], tuple[str, float | None]] = {}
    left: Counter[str] = Counter()
    best = max((pair.score or 0.0 for pair in table.pairs), default=0.0)
    for pair, (gene, other) in zip(table.pairs, found, strict=True):
        if gene is None or other is None:
            left[pair.other_species if gene else pair.species] += 1
            continue
        confidence = None if pair.score is None or not best else pair.score / max(best, 1.0)
        rows[gene, pair.species, other, pair.other_species] = (pair.kind, confidence)
    n = kb.put_orthologs(_pair_table(rows), path.name)
    shown = ", ".join(f"{column!r}: {what}" for column, what in table.columns.items())
    notes = [f"{path.name}: columns are {shown} (change them with --column SPECIES=NAME)", *table.notes]
    joined = Counter((a, b) for _, a, _, b in rows)
    of = "; ".join(f"{count:,} of {a} and {b}" for (a, b), count in joined.items())
    notes.append(f"{path.name}: {len(fresh):,} genes, {len(rows):,} ortholog pairs{f': {of}' if of else ''}")
    if len(rows) != n:
        notes.append(f"{path.name}: {len(rows) - n:,} pairs were already known")
    for species, count in left.items():
        hint = "" if species in resolver.species else ", whose genes are not loaded"
        notes.append(f"{path.name}: skipped {count:,} pairs with unknown genes of {species}{hint}")
    return notes


def _gene_ids(resolver: GeneResolver, pairs: Sequence[Pair]) -> list[tuple[str | None, str | None]]:
    """Return the ids of the genes of pairs in the store; None for an unknown gene."""
    ends = [((p.species, p.names), (p.other_species, p.other)) for p in pairs]
    asked: dict[tuple[str, str], dict[str, str | None]] = {}
    for species, names in chain.from_iterable(ends):
        if species in resolver.species:
            for kind in _LOOKED_UP:
                if kind in names:
                    asked.setdefault((species, kind), {})[names[kind]] = None
    for (species, kind), wanted in asked.items():
        prefix = known_species()[species].prefix if species in known_species() and kind == "authority" else ""
        spelled = [prefix + name.rpartition(":")[2] if prefix else name for name in wanted]
        match = resolver.resolve(spelled, species)
        asked[species, kind] = dict(zip(wanted, match.gene_ids, strict=True))

    def gene(species: str, names: Names) -> str | None:
        hits = (asked.get((species, kind), {}).get(names[kind]) for kind in _LOOKED_UP if kind in names)
        return next((hit for hit in hits if hit is not None), None)

    return [(gene(*own), gene(*other)) for own, other in ends]


def _pair_table(rows: Mapping[tuple[str, str, str, str], tuple[str, float | None]]) -> pa.Table:
    """Return pairs as a table; a missing kind follows from the number of partners of the genes."""
    partners: Counter[tuple[str, str]] = Counter()
    for gene, species, other, other_species in rows:
        partners[gene, other_species] += 1
        partners[other, species] += 1
    pairs = []
    for (gene, species, other, other_species), (kind, confidence) in rows.items():
        many = (partners[gene, other_species] > 1) + (partners[other, species] > 1)
        kind = kind or ("one2one", "one2many", "many2many")[many]
        pairs.append((gene, species, other, other_species, kind, confidence))
    names = ("gene_id", "species", "other_id", "other_species", "kind")
    return arrow(pairs, **dict.fromkeys(names, "string"), confidence="float32")


def _load_file(
    kb: KnowledgeBase,
    path: Path,
    species: Sequence[str],
    names: list[str] | None,
    notes: list[str],
    progress: Progress,
) -> int:
    """Add the genes of a file, or only those in ``names``, to the knowledge base; return their number."""
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
    """Request genes from a live source."""
    started = time.monotonic()
    name = str(options.source)
    for one in options.species:
        if one not in known_species():
            fix = "give a file instead, or a species with a taxon id"
            raise InputError(f"{name} has no genes of {one}", "--species", fix)
    service = load_source(name)
    settings = getattr(Settings.load(), name, ServiceSettings())
    with Store.open(store, create=True).begin("ingest genes", {"source": name}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        _load_shipped(kb, options.species, needed=False)
        if not options.dry_run:
            kb.absorb(txn.journal())  # answers of a killed run
        wanted, notes = wanted_genes(kb, names, options.species)
        if names is None:
            wanted = [w for w in wanted if service.can_ask(w)]
        jobs = {Job.of(w.gene_id, name, f"{w.species} {service.question(w)}"): w for w in wanted}
        questions = Questions.of(kb, name, jobs, again=options.refresh)
        asked = {job: jobs[job] for job in questions.todo}
        source = service(
            asked,
            settings,
            base_url=options.base_url,
            per_second=options.requests_per_second,
        )
        if options.dry_run:
            requests, rate = service.n_requests(list(asked.values())), source.per_second
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

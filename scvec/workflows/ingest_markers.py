"""``scvec ingest markers``: add marker genes of cell types from tables or a live service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, ScvecError
from scvec.base.options import options_of, takes_options
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Report
from scvec.base.settings import ServiceSettings, Settings
from scvec.base.species import SPECIES
from scvec.base.types import Job, Progress, no_progress
from scvec.celltypes.markers import MarkerFile, read_markers
from scvec.celltypes.terms import TermMatcher
from scvec.ingest.sources import MARKER_SOURCES, load_marker_source
from scvec.ingest.sources.retry import ServiceError
from scvec.ingest.sources.run import run_async
from scvec.model.resolvers import ensure_knowledge
from scvec.stores.knowledge.tables import marker_table
from scvec.stores.store.store import Store
from scvec.workflows.live import Cost, LiveReport, Questions, ask_live

if TYPE_CHECKING:
    import pyarrow as pa

    from scvec.ingest.sources.http import MarkerSource
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.transaction import Transaction

__all__ = ["MarkersOptions", "MarkersReport", "ingest_markers"]

#: Number of names without a term in the report.
N_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class MarkersReport(Report):
    """Result of ``ingest markers``.

    Attributes
    ----------
    columns
        Per file, the detected meaning of each column.
    unmapped
        Names of cell types without a Cell Ontology term, with their numbers of rows.
    live
        Result of the requests to a live source.
    """

    n_markers: int
    n_terms: int
    n_stored: int
    columns: dict[str, dict[str, str]]
    unmapped: dict[str, int]
    generation: str = ""
    live: LiveReport | None = None

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [] if self.live is None else self.live.lines()
        if self.columns or self.live is None:
            lines.append(f"{self.n_markers:,} markers of {self.n_terms:,} Cell Ontology terms")
        for file, columns in self.columns.items():
            roles = ", ".join(f"{what} from {name!r}" for what, name in columns.items())
            lines.append(f"  {file}: {roles}")
        if self.unmapped:
            most = sorted(self.unmapped.items(), key=lambda item: -item[1])
            named = ", ".join(f"{name!r} ({n})" for name, n in most[:N_SHOWN])
            more = f", and {len(most) - N_SHOWN} others" if len(most) > N_SHOWN else ""
            lines.append(f"  skipped, without a Cell Ontology term: {named}{more}")
        if self.generation:
            lines.append(f"the store has {self.n_stored:,} markers now")
        else:
            lines.append("nothing was changed")
        return lines

    @property
    def next_step(self) -> NextStep:
        """The run after a dry run; else names by these markers."""
        return NextStep(("name", "NEW.h5ad", "-o", "named.h5ad")) if self.generation else WITHOUT_DRY_RUN


@dataclass(frozen=True, kw_only=True)
class MarkersOptions:
    """Options of ``ingest markers``; ``tissues`` and the following ones are for a live source.

    Attributes
    ----------
    columns
        Meaning of columns with unusual names, such as ``{"gene": "Symbol"}``.
    species
        Species of rows without one (None: human), and the species requested from a live source.
    dry_run
        Read and count only, without requests or changes.
    tissues
        Only cell types in these tissues. All markers of such a type are kept.
    refresh
        Request types again even if they have an answer from this version of the source.
    base_url, requests_per_second, concurrency
        Address of the source, most requests per second (0 for no limit, at a mirror), and simultaneous
        requests.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    species: str | None = None
    dry_run: bool = False
    tissues: Sequence[str] = ()
    refresh: bool = False
    base_url: str | None = None
    requests_per_second: float | None = None
    concurrency: int = 4


@takes_options(MarkersOptions)
def ingest_markers(
    store: Path | str,
    sources: Sequence[Path | str],
    options: MarkersOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> MarkersReport:
    """Add marker genes to the knowledge base, for :func:`scvec.name`, from tables or a live service.

    Parameters
    ----------
    store
        Folder of the store.
    sources
        Tables of CellMarker 2.0, PanglaoDB, ScType, HuBMAP ASCT+B or CellMarkerAccordion, a GMT file, or any
        csv or tsv with columns of genes and cell types (also .gz); or one name in
        :data:`scvec.ingest.sources.MARKER_SOURCES`, such as ``cellguide``. A file read again replaces its
        earlier rows, and so does a cell type of a live source.
    keywords
        Fields of :class:`MarkersOptions`. Keywords override ``options``.

    Raises
    ------
    InputError
        A file cannot be read or lacks these columns, or an option cannot be used.
    NetworkError, AuthError
        The service is unreachable or refuses. Answers received before are in the store.
    """
    asked = options_of(MarkersOptions, options, keywords)
    services = [str(s) for s in sources if str(s) in MARKER_SOURCES]
    files = [Path(s) for s in sources if str(s) not in MARKER_SOURCES]
    if len(services) > 1:
        raise InputError("only one live source can be given", "--source", "run the command for each source")
    if (asked.tissues or asked.base_url or asked.refresh) and not services:
        what = "--tissue, --base-url and --refresh need a live source"
        raise InputError(what, "--source", "give one, such as cellguide")
    live: LiveReport | None = None
    error: BaseException | None = None
    with Store.open(store, create=True).begin(
        "ingest markers", {"sources": [Path(s).name for s in sources]}
    ) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        read = _read(kb, files, asked, progress)
        n_stored, generation = 0, ""
        notes: list[str] = []
        if not asked.dry_run:
            for name, found in read.items():
                kb.put_markers(_table(name, found), name)
            n_stored = kb.counts()["markers"]
        if services:
            live, generation, error, counts, notes = _asked(txn, kb, services[0], asked, progress)
            n_stored = counts.get("markers", n_stored)
        elif not asked.dry_run:
            generation = str(txn.commit().number)
        notes += txn.notes
    if error is not None:
        raise error
    unmapped: dict[str, int] = {}
    for found in read.values():
        for name, n in found.unmapped.items():
            unmapped[name] = unmapped.get(name, 0) + n
    return MarkersReport(
        n_markers=sum(len(found.markers) for found in read.values()),
        n_terms=len({m.cl_id for found in read.values() for m in found.markers}),
        n_stored=n_stored,
        columns={name: found.columns for name, found in read.items()},
        unmapped=unmapped,
        generation=generation,
        live=live,
        notes=notes,
    )


def _read(
    kb: KnowledgeBase, files: Sequence[Path], asked: MarkersOptions, progress: Progress
) -> dict[str, MarkerFile]:
    matcher = TermMatcher.of(tuple(kb.cl_names()))
    read: dict[str, MarkerFile] = {}
    species = asked.species or SPECIES[0]
    for file in files:
        progress("reading markers", len(read), len(files))
        read[file.name] = read_markers(file, matcher, columns=asked.columns, species=species)
    return read


def _asked(
    txn: Transaction, kb: KnowledgeBase, name: str, asked: MarkersOptions, progress: Progress
) -> tuple[LiveReport, str, BaseException | None, dict[str, int], list[str]]:
    """Query a live source; return the report, the version, the error to raise, counts and notes."""
    kind = load_marker_source(name)
    settings = getattr(Settings.load(), name, ServiceSettings())

    def service() -> MarkerSource:
        return kind(settings, base_url=asked.base_url, per_second=asked.requests_per_second)

    terms = {cl_id for cl_id, _, own in kb.cl_names() if own}
    if asked.dry_run:
        source = service()
        jobs = [Job(cl_id, name) for cl_id in sorted(terms)]
        n = len(jobs) * kind.requests
        cost = Cost(requests=n, seconds=n / source.per_second if source.per_second else None)
        note = f"this is the maximum: the run first reads the index of {name}, which may have fewer types"
        return Questions(name, jobs, jobs, [], "types").report(cost), "", None, {}, [note]
    kb.absorb(txn.journal())  # answers of a killed run
    progress(f"asking {name}", 0, None)
    species = SPECIES if asked.species is None else (asked.species,)
    version, types = _index(service(), name, species, asked.tissues)
    strange = [t for t in types if t not in terms]
    jobs = [Job.of(t, name, f"{version} {t}", prompt=version) for t in types if t in terms]
    questions = Questions.of(kb, name, jobs, again=asked.refresh, noun="types")
    live, generation, error, counts = ask_live(
        txn, kb, questions, service(), concurrency=asked.concurrency, progress=progress
    )
    notes = [f"{name} {version}"]
    if strange:
        notes.append(f"{len(strange):,} types are not in scvec's Cell Ontology: {', '.join(strange[:8])}")
    return live, generation, error, counts, notes


def _index(
    source: MarkerSource, name: str, species: Sequence[str], tissues: Sequence[str]
) -> tuple[str, list[str]]:
    async def ask() -> tuple[str, list[str]]:
        async with source:
            return await source.index(species, tissues)

    failed: ScvecError | None = None
    try:
        return run_async(ask())
    except ServiceError as caught:
        failed = caught.translated(name)
    raise failed


def _table(name: str, found: MarkerFile) -> pa.Table:
    """Return the markers of a file as rows of the knowledge base."""
    return marker_table(
        m if m.source == name else replace(m, source=f"{name}: {m.source}") for m in found.markers
    )

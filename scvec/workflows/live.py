"""Asking a live service: which genes, harvest into the journal, absorb, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from scvec.base.errors import InputError, ScvecError
from scvec.base.records import Answer, Failure, Job, Wanted
from scvec.base.results import Record, Report, counts_line, table
from scvec.base.types import Progress, Species

if TYPE_CHECKING:
    from scvec.base.records import Failure
    from scvec.ingest.sources.run import Harvest, Source, Tally
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.transaction import Transaction

__all__ = [
    "Asked",
    "ComplementReport",
    "Cost",
    "FailedGene",
    "LiveReport",
    "ask_live",
    "failed_genes",
    "named_genes",
    "reason_lines",
    "unasked",
    "wanted_genes",
]

#: Genes that a line about one reason names.
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """What a run takes: before it an estimate, after it what was measured.

    Attributes
    ----------
    requests
        Requests; before the run the fewest that will do.
    tokens_in, tokens_out
        Tokens sent and received; None where none are counted.
    dollars
        US dollars, None where the price of the model is not known.
    seconds
        Wall time.
    """

    requests: int
    tokens_in: int | None = None
    tokens_out: int | None = None
    dollars: float | None = None
    seconds: float | None = None

    def line(self) -> str:
        """Return it in words."""
        parts = [f"{self.requests:,} requests"]
        if self.tokens_in is not None:
            parts.append(f"{self.tokens_in:,} tokens sent")
        if self.tokens_out is not None:
            parts.append(f"{self.tokens_out:,} received")
        if self.dollars is not None:
            parts.append(f"${self.dollars:.4f}")
        elif self.tokens_in is not None:
            parts.append("price not known")
        if self.seconds is not None:
            parts.append(f"{self.seconds:,.1f} s")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class FailedGene(Record):
    """A gene without an answer, and why."""

    gene: str
    reason: str
    final: bool


@dataclass(frozen=True, kw_only=True)
class LiveReport(Report):
    """What asking a live service came to.

    Attributes
    ----------
    source
        ``ncbi``, ``mygene`` or the model.
    n_wanted, n_known, n_asked, n_answered
        Genes that were wanted; of these, known from earlier runs; asked now (in a dry run: would be);
        answered.
    failed
        Genes that were asked and not answered.
    stopped
        Why the run ended before all were asked; empty where it did not.
    cost
        Of this run; in a dry run the estimate.
    """

    source: str
    n_wanted: int
    n_known: int
    n_asked: int
    n_answered: int
    failed: list[FailedGene] = field(default_factory=list)
    stopped: str = ""
    cost: Cost
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        if self.dry_run:
            return [
                f"{self.source}: {self.n_wanted:,} genes, {self.n_known:,} known, {self.n_asked:,} to ask",
                f"it would take {self.cost.line()}",
            ]
        lines = [
            f"{self.source}: {self.n_wanted:,} genes, {self.n_known:,} known, {self.n_answered:,} answered, "
            f"{len(self.failed):,} failed",
            f"took {self.cost.line()}",
        ]
        if self.stopped:
            left = self.n_asked - self.n_answered - len(self.failed)
            lines.append(f"stopped: {self.stopped}; {left:,} genes were not asked")
        return lines + reason_lines(self.failed)


@dataclass(frozen=True, kw_only=True)
class ComplementReport(Report):
    """What ``ingest complement`` wrote.

    Attributes
    ----------
    model
        The model that was asked.
    descriptions
        Descriptions in the knowledge base per kind, afterwards.
    """

    model: str
    live: LiveReport
    descriptions: dict[str, int]
    generation: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        return [*self.live.lines(), f"descriptions: {counts_line(self.descriptions)}"]


def failed_genes(failures: Iterable[Failure]) -> list[FailedGene]:
    """Return failures in a stable order, as reports show them."""
    found = [
        FailedGene(gene=f.job.gene_id.removeprefix("ask:"), reason=f.reason, final=f.final) for f in failures
    ]
    return sorted(found, key=lambda f: (f.final, f.reason, f.gene))


def reason_lines(failed: Iterable[FailedGene]) -> list[str]:
    """Return a table of reasons, the most frequent first, with a few genes of each."""
    by_reason: dict[str, list[FailedGene]] = {}
    for gene in failed:
        by_reason.setdefault(gene.reason, []).append(gene)
    if not by_reason:
        return []
    named = {}
    for reason, genes in by_reason.items():
        more = ", ..." if len(genes) > EXAMPLES else ""
        again = "not asked again" if genes[0].final else "asked again by the next run"
        listed = ", ".join(g.gene for g in genes[:EXAMPLES])
        named[f"{reason} ({listed}{more}; {again})"] = len(genes)
    return ["failed:", *table(named)]


@dataclass(frozen=True)
class GenePlan:
    """Genes to ask about.

    Attributes
    ----------
    wanted
        The genes, in a stable order.
    notes
        Messages for the user.
    """

    wanted: list[Wanted]
    notes: list[str] = field(default_factory=list)


def named_genes(
    kb: KnowledgeBase, names: Sequence[str], species: Sequence[Species]
) -> tuple[dict[str, str], list[str]]:
    """Return the genes that names stand for (gene id -> name), and the names that stand for none.

    A name is looked up in each species; a name of several genes stands for none.
    """
    from scvec.model.resolvers import resolver_of

    resolver = resolver_of(kb)
    found: dict[str, str] = {}
    unknown = dict.fromkeys(names)
    for one in species:
        match = resolver.resolve(names, one)
        for name, gene_id in zip(names, match.gene_ids, strict=True):
            if gene_id is not None:
                found.setdefault(gene_id, name)
                unknown.pop(name, None)
    return found, list(unknown)


def wanted_genes(
    kb: KnowledgeBase, names: Sequence[str] | None, species: Sequence[Species], *, source: str
) -> GenePlan:
    """Return the genes to ask a source about: those of a list, else all of some species.

    A name that the knowledge base does not know is asked as it stands where there is one species only;
    for two nobody could say whose gene it is.

    Raises
    ------
    InputError
        If there is nothing to ask.
    """
    if names is None:
        wanted = _wanted(kb, None, species)
        if source == "mygene":
            # It is asked by number. The others can be asked by symbol, which is NCBI's to answer.
            wanted = [w for w in wanted if w.entrez_id is not None or w.ensembl_ids]
        return GenePlan(wanted)
    found, unknown = named_genes(kb, names, species)
    wanted = _wanted(kb, found, species)
    notes = []
    if unknown and len(species) == 1:
        wanted += [_unknown(name, species[0]) for name in unknown]
    elif unknown:
        listed = ", ".join(unknown[:8])
        notes.append(
            f"{len(unknown):,} of {len(names):,} genes are not known: {listed}; give one --species to ask "
            "about them all the same"
        )
    if not wanted:
        raise InputError(
            "no gene of the list is known", ", ".join(names[:5]), "give one --species", code="unknown-gene"
        )
    return GenePlan(wanted, notes)


def unasked(kb: KnowledgeBase, jobs: Iterable[Job], *, refresh: bool) -> tuple[list[Job], list[Failure]]:
    """Return the jobs to ask, in order, and those that failed earlier in a way that asking will not mend.

    With ``refresh`` all are asked.
    """
    every = list(dict.fromkeys(jobs))
    if refresh:
        return every, []
    done = kb.jobs_done(every)
    # A gene that was asked by its symbol has an id once it was answered: the same question, put otherwise.
    for source in {job.source for job in every} - {"llm"}:
        for prompt in {job.prompt for job in every}:
            answered = kb.answered(source, prompt=prompt)
            done |= {job for job in every if job.prompt == prompt and job.gene_id in answered}
    final = {f.job: f for f in kb.failures() if f.final}
    todo = [job for job in every if job not in done and job not in final]
    return todo, [final[job] for job in every if job in final and job not in done]


def _wanted(kb: KnowledgeBase, chosen: dict[str, str] | None, species: Sequence[Species]) -> list[Wanted]:
    genes = kb.genes()
    genes = genes[genes["species"].isin(species) if chosen is None else genes["gene_id"].isin(chosen)]
    ensembl: dict[str, list[str]] = {}
    names = kb.aliases()
    names = names[names["kind"] == "ensembl"]
    for gene_id, name in zip(names["gene_id"], names["name"], strict=True):
        ensembl.setdefault(gene_id, []).append(name)
    return [
        Wanted(
            gene_id,
            kind,
            symbol=symbol,
            entrez_id=None if entrez != entrez or entrez is None else int(entrez),
            ensembl_ids=tuple(sorted(ensembl.get(gene_id, ()))),
        )
        for gene_id, kind, symbol, entrez in zip(
            genes["gene_id"],
            genes["species"],
            genes["symbol"],
            genes["entrez_id"].astype(object).where(genes["entrez_id"].notna(), None),
            strict=True,
        )
    ]


def _unknown(name: str, species: Species) -> Wanted:
    gene_id = f"ask:{species}:{name}"
    if name.isascii() and name.isdigit():
        return Wanted(gene_id, species, entrez_id=int(name))
    if name.upper().startswith("ENS"):
        return Wanted(gene_id, species, ensembl_ids=(name.split(".")[0].upper(),))
    return Wanted(gene_id, species, symbol=name)


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


def ask_live(
    txn: Transaction,
    kb: KnowledgeBase,
    *,
    name: str,
    wanted: Sequence[Job],
    todo: Sequence[Job],
    final: Sequence[Failure],
    make_source: Callable[[], AbstractAsyncContextManager[Source]],
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
        async with make_source() as source:
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

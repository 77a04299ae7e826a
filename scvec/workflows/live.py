"""Common parts of the workflows that query live services: genes, journal, commit and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from scvec.base.errors import InputError, ScvecError, unreadable
from scvec.base.results import Record, Report, table
from scvec.base.settings import Price
from scvec.base.species import SPECIES
from scvec.base.types import Answer, Failure, Job, Progress, Species, Wanted, no_progress
from scvec.ingest.sources.answers import Question
from scvec.ingest.sources.openai import is_reasoning, prompt_tokens
from scvec.ingest.sources.prices import count_tokens
from scvec.ingest.sources.retry import ServiceError
from scvec.ingest.sources.run import Harvest, Source, Tally, harvest, run_async
from scvec.model.resolvers import resolver_of
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.transaction import Transaction

__all__ = [
    "Cost",
    "FailedGene",
    "LiveOptions",
    "LiveReport",
    "Questions",
    "ask_live",
    "expected_cost",
    "known_genes",
    "reason_lines",
]

#: Number of genes in a line about one reason.
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """Options of the workflows that query services about genes.

    Attributes
    ----------
    genes
        File with one gene name per line; None for the default genes of the workflow.
    base_url
        Address of the service, for a mirror or your own server; None for the official address.
    concurrency
        Number of simultaneous requests.
    dry_run
        Count genes and estimate the cost, without requests or changes.
    """

    species: Sequence[Species] = SPECIES
    genes: Path | None = None
    base_url: str | None = None
    concurrency: int = 4
    dry_run: bool = False

    def names(self) -> list[str] | None:
        """Return the names in the file; None if no file is given."""
        return read_gene_list(self.genes) if self.genes else None


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """Requests, tokens, US dollars and seconds of a run: estimated before it, measured after it.

    ``None`` means not counted, or an unknown price.
    """

    requests: int
    tokens_in: int | None = None
    tokens_out: int | None = None
    dollars: float | None = None
    seconds: float | None = None

    def line(self) -> str:
        """Return the cost as text."""
        parts = [f"{self.requests:,} requests"]
        if self.tokens_in is not None:
            parts.append(f"{self.tokens_in:,} tokens sent")
        if self.tokens_out is not None:
            parts.append(f"{self.tokens_out:,} received")
        if self.dollars is not None:
            parts.append(f"${self.dollars:.4f}")
        elif self.tokens_in is not None:
            parts.append("price unknown")
        if self.seconds is not None:
            parts.append(f"{self.seconds:,.1f} s")
        return ", ".join(parts)


def expected_cost(
    questions: Sequence[Question],
    model: str,
    price: Price | None,
    *,
    usual: tuple[int, int],
    seconds: tuple[float, float],
    concurrency: int = 4,
) -> Cost:
    """Return what asking a chat model costs without rejected answers; ``tokens_in`` is an upper estimate.

    Parameters
    ----------
    usual, seconds
        Tokens of an answer, and seconds for it: of a plain model, and of one that reasons.
    """
    reasoning, n = is_reasoning(model), len(questions)
    asked = [question.messages() for question in questions]
    tokens = sum(count_tokens([user["content"] for _, user in asked]))
    # The instructions are the same for all questions, so their tokens are counted once.
    tokens_in = tokens + sum(prompt_tokens(m[:1]) for m in asked[:1]) * n
    tokens_out = n * usual[reasoning]
    return Cost(
        requests=n,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        dollars=None if price is None else (tokens_in * price.input + tokens_out * price.output) / 1e6,
        seconds=n * seconds[reasoning] / max(concurrency, 1),
    )


@dataclass(frozen=True, kw_only=True)
class FailedGene(Record):
    """A gene without an answer. ``final`` means that another request would not help."""

    gene: str
    reason: str
    final: bool


@dataclass(frozen=True, kw_only=True)
class LiveReport(Report):
    """Result of queries to a live service.

    Attributes
    ----------
    source
        ``ncbi``, ``mygene`` or the model.
    n_wanted, n_known, n_asked, n_answered
        Number of genes wanted; known from earlier runs; requested now (or to request, in a dry run);
        answered.
    failed
        Genes that were requested but not answered.
    stopped
        Reason why the run stopped early; empty if it did not.
    cost
        Cost of this run, or the estimate in a dry run.
    noun
        Subject of the jobs in reports.
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
    noun: str = "genes"

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        known = f"{self.source}: {self.n_wanted:,} {self.noun}, {self.n_known:,} known"
        if self.dry_run:
            return [
                f"{known}, {self.n_asked:,} to ask",
                f"it would take {self.cost.line()}",
            ]
        lines = [
            f"{known}, {self.n_answered:,} answered, {len(self.failed):,} failed",
            f"took {self.cost.line()}",
        ]
        if self.stopped:
            left = self.n_asked - self.n_answered - len(self.failed)
            lines.append(f"stopped: {self.stopped}; {left:,} {self.noun} were not requested")
        return lines + reason_lines(self.failed)


def failed_genes(failures: Iterable[Failure]) -> list[FailedGene]:
    """Return the failures for a report, in a stable order."""
    found = [
        FailedGene(gene=f.job.gene_id.removeprefix("ask:"), reason=f.reason, final=f.final) for f in failures
    ]
    return sorted(found, key=lambda f: (f.final, f.reason, f.gene))


def reason_lines(failed: Iterable[FailedGene]) -> list[str]:
    """Return a table of the reasons, the most frequent first, with a few genes for each reason."""
    by_reason: dict[str, list[FailedGene]] = {}
    for gene in failed:
        by_reason.setdefault(gene.reason, []).append(gene)
    if not by_reason:
        return []
    named = {}
    for reason, genes in by_reason.items():
        more = ", ..." if len(genes) > EXAMPLES else ""
        again = "not requested again" if genes[0].final else "the next run requests it again"
        listed = ", ".join(g.gene for g in genes[:EXAMPLES])
        named[f"{reason} ({listed}{more}; {again})"] = len(genes)
    return ["failed:", *table(named)]


def read_gene_list(path: Path) -> list[str]:
    """Return the gene names in a text file with one name per line. Empty lines and # comments are skipped.

    Raises
    ------
    InputError
        If the file is not text or has no gene name.
    """
    fix = "give a plain text file (UTF-8) with one gene per line"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error, path, "the list of genes", fix) from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise InputError("the list has no gene", str(path), fix)
    return names


def named_genes(
    kb: KnowledgeBase, names: Sequence[str], species: Sequence[Species]
) -> tuple[dict[str, str], list[str]]:
    """Return gene id -> name for known names, and the list of unknown names.

    Each name is looked up in each species. Ambiguous names count as unknown.
    """
    resolver = resolver_of(kb)
    found: dict[str, str] = {}
    unknown = dict.fromkeys(names)
    for one in (s for s in species if s in resolver.species):
        match = resolver.resolve(names, one)
        for name, gene_id in zip(names, match.gene_ids, strict=True):
            if gene_id is not None:
                found.setdefault(gene_id, name)
                unknown.pop(name, None)
    return found, list(unknown)


def known_genes(
    kb: KnowledgeBase, names: Sequence[str], species: Sequence[Species]
) -> tuple[list[str], list[str]]:
    """Return the gene ids of a list of names, and a note about unknown names.

    Raises
    ------
    InputError
        If no name is known.
    """
    found, unknown = named_genes(kb, names, species)
    if not found:
        fix = "give gene symbols, Ensembl or Entrez ids, and check --species"
        raise InputError("no gene of the list is known", ", ".join(names[:5]), fix, code="unknown-gene")
    note = f"{len(unknown):,} of {len(names):,} genes are unknown: {', '.join(sorted(unknown)[:8])}"
    return list(found), [note] if unknown else []


def wanted_genes(
    kb: KnowledgeBase, names: Sequence[str] | None, species: Sequence[Species]
) -> tuple[list[Wanted], list[str]]:
    """Return the genes for a source, from a list or all genes of the species, and notes.

    With one species, unknown names are requested as given. With two species they are left out, because their
    species is unknown.

    Raises
    ------
    InputError
        If no gene is left.
    """
    if names is None:
        return _wanted(kb, None, species), []
    found, unknown = named_genes(kb, names, species)
    wanted = _wanted(kb, found, species)
    notes = []
    if unknown and len(species) == 1:
        wanted += [_unknown(name, species[0]) for name in unknown]
    elif unknown:
        few = f"{len(unknown):,} of {len(names):,} genes are unknown: {', '.join(unknown[:8])}"
        notes.append(f"{few}; give one --species to request them, too")
    if not wanted:
        raise InputError(
            "no gene of the list is known", ", ".join(names[:5]), "give one --species", code="unknown-gene"
        )
    return wanted, notes


@dataclass(frozen=True)
class Questions:
    """Requests of a run to one service.

    Attributes
    ----------
    every
        All jobs.
    todo
        Jobs without an answer, in order.
    final
        Failures of earlier runs that another request would not change.
    noun
        Subject of the jobs in reports.
    """

    name: str
    every: Sequence[Job]
    todo: Sequence[Job]
    final: Sequence[Failure]
    noun: str = "genes"

    @classmethod
    def of(
        cls, kb: KnowledgeBase, name: str, jobs: Iterable[Job], *, again: bool, noun: str = "genes"
    ) -> Questions:
        """Return the jobs that have no answer yet; all jobs with ``again``."""
        every = list(dict.fromkeys(jobs))
        if again:
            return cls(name, every, every, [], noun)
        done = kb.jobs_done(every)
        # A gene that was requested by its symbol has an id after the answer. Recognise it as the same
        # request.
        for source in {job.source for job in every} - {"llm"}:
            for prompt in {job.prompt for job in every}:
                answered = kb.answered(source, prompt=prompt)
                done |= {job for job in every if job.prompt == prompt and job.gene_id in answered}
        final = {f.job: f for f in kb.failures() if f.final}
        todo = [job for job in every if job not in done and job not in final]
        lost = [final[job] for job in every if job in final and job not in done]
        return cls(name, every, todo, lost, noun)

    def report(self, cost: Cost, **fields: Any) -> LiveReport:
        """Return the report of a run. ``fields`` are empty for a dry run."""
        return LiveReport(
            source=self.name,
            n_wanted=len(self.every),
            n_known=len(self.every) - len(self.todo) - len(self.final),
            n_asked=len(self.todo),
            cost=cost,
            noun=self.noun,
            **{"n_answered": 0, "failed": failed_genes(self.final), "dry_run": not fields, **fields},
        )


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
    """Result of :func:`ask_live`: report, new version, error to raise afterwards, and committed counts."""

    report: LiveReport
    generation: str
    error: BaseException | None
    counts: dict[str, int]


def ask_live(
    txn: Transaction,
    kb: KnowledgeBase,
    questions: Questions,
    service: AbstractAsyncContextManager[Source],
    *,
    concurrency: int,
    progress: Progress = no_progress,
    spent: Callable[[], Cost | None] = lambda: None,
) -> Asked:
    """Query a source, save every answer and commit.

    Each answer is written to the journal on disk before it is used. The answers are committed even if the run
    ends early (Ctrl-C, an unreachable service, the limit on cost). If a commit is impossible, as on a full
    disk, they stay in the journal for the next run.

    Parameters
    ----------
    service
        The source, which is entered inside the event loop.
    spent
        Returns the tokens and dollars so far.
    """
    started = time.monotonic()
    journal = txn.journal()
    answered: set[Job] = set()
    lost: dict[Job, Failure] = {}
    source: Source | None = None
    result: Harvest | None = None
    error: BaseException | None = None
    name, todo = questions.name, questions.todo

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
        async with service as source:
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
    kept = f"{len(answered):,} of {len(todo):,} answers are saved"
    if isinstance(error, KeyboardInterrupt):
        error = KeyboardInterrupt(kept)
    elif isinstance(error, ScvecError):
        error = type(error)(f"{error.what}; {kept}", error.where, error.fix)
    cost = spent() or Cost(requests=0)
    report = questions.report(
        replace(
            cost,
            requests=source.caller.n_calls if source is not None else 0,
            seconds=time.monotonic() - started,
        ),
        n_answered=len(answered),
        failed=failed_genes([*questions.final, *(f for job, f in lost.items() if job not in answered)]),
        stopped="" if result is None or result.stopped is None else str(result.stopped),
    )
    return Asked(report, generation, error, counts)

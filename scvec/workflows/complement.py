"""``scvec ingest complement``: a language model describes genes that lack a written description."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.results import Report, counts_line
from scvec.base.settings import Settings
from scvec.base.types import Progress, no_progress
from scvec.ingest.sources.llm import ComplementSource, Estimate, Subject, estimate
from scvec.ingest.sources.openai import LlmService
from scvec.ingest.sources.prices import Budget, price_of
from scvec.model.resolvers import ensure_knowledge
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.workflows.live import Cost, LiveOptions, LiveReport, Questions, ask_live, known_genes

__all__ = ["ComplementOptions", "ComplementReport", "ingest_complement"]


@dataclass(frozen=True, kw_only=True)
class ComplementOptions(LiveOptions):
    """Options of ``ingest complement``; without a list, all protein-coding genes are described.

    Attributes
    ----------
    model
        As the server calls it.
    limit
        At most so many genes.
    overwrite
        Also genes that a language model has described before.
    max_cost
        US dollars: stop before the next call could cost more.
    timeout
        Seconds to wait for an answer.
    """

    model: str
    limit: int | None = None
    overwrite: bool = False
    max_cost: float | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InputError(
                "the model has no name", "--model", "give it as the server calls it", code="bad-name"
            )


@dataclass(frozen=True, kw_only=True)
class ComplementReport(Report):
    """What ``ingest complement`` wrote. ``descriptions``: in the knowledge base per kind, afterwards."""

    model: str
    live: LiveReport
    descriptions: dict[str, int]
    generation: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        return [*self.live.lines(), f"descriptions: {counts_line(self.descriptions)}"]


@takes_options(ComplementOptions)
def ingest_complement(
    store: Path | str,
    options: ComplementOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> ComplementReport:
    """Let a language model describe genes that lack a written description.

    The model gets the species, the symbol, the full name and the facts of the knowledge base. An answer that
    does not name the gene, is too short or long, or holds an address or instructions is rejected and asked
    for again. Answers are kept whatever ends the run, and the next run continues from there.

    Parameters
    ----------
    keywords
        Fields of :class:`ComplementOptions`, instead of ``options`` or before them.

    Raises
    ------
    InputError
        If an option cannot be used.
    NetworkError, AuthError
        If the server is unreachable or refuses; its answers before that are in the store.
    """
    asked = options_of(ComplementOptions, options, keywords)
    model, settings = asked.model, Settings.load()
    names = asked.names()
    price = price_of(model, settings.prices, host=asked.base_url or settings.openai.base_url)
    budget = Budget(price, asked.max_cost, model=model)
    # A dry run sends nothing, and needs no key.
    service = (
        None if asked.dry_run else LlmService(settings.openai, base_url=asked.base_url, timeout=asked.timeout)
    )
    with Store.open(store, create=True).begin("ingest complement", {"model": model}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if service is not None:
            kb.absorb(txn.journal())  # of a run that was killed
        chosen, notes = _subjects(kb, asked, names)
        jobs = {s.job(model): s for s in chosen}
        questions = Questions.of(kb, model, jobs, again=asked.overwrite)
        questions = replace(questions, todo=questions.todo[: asked.limit])
        subjects = {job: jobs[job] for job in questions.todo}
        if service is None:
            expected = estimate(list(subjects.values()), model, price, concurrency=asked.concurrency)
            live = questions.report(_cost(expected))
            generation, error, counts = "", None, kb.counts()
            if not expected.exact_tokens:
                notes.append("tokens are an upper estimate: the model's own table of tokens is not here")
        else:
            source = ComplementSource(service, model, subjects, budget)
            live, generation, error, counts = ask_live(
                txn,
                kb,
                questions,
                source,
                concurrency=asked.concurrency,
                progress=progress,
                spent=lambda: Cost(
                    requests=0,
                    tokens_in=budget.tokens_in,
                    tokens_out=budget.tokens_out,
                    dollars=budget.spent,
                ),
            )
            notes += [*service.notes, *source.notes]
        notes += txn.notes
    if error is not None:
        raise error
    prefix = "descriptions "
    return ComplementReport(
        model=model,
        live=live,
        descriptions={k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)},
        generation=generation,
        dry_run=asked.dry_run,
        notes=notes,
    )


def _cost(expected: Estimate) -> Cost:
    return Cost(
        requests=expected.requests,
        tokens_in=expected.tokens_in,
        tokens_out=expected.tokens_out,
        dollars=expected.cost,
        seconds=expected.seconds,
    )


def _subjects(
    kb: KnowledgeBase, options: ComplementOptions, names: list[str] | None
) -> tuple[list[Subject], list[str]]:
    """Return the genes to describe with the facts about them, and notes."""
    genes = kb.genes()
    notes: list[str] = []
    if names is None:
        genes = genes[genes["species"].isin(options.species) & (genes["gene_type"] == "protein-coding")]
    else:
        found, notes = known_genes(kb, names, options.species)
        genes = genes[genes["gene_id"].isin(found)]
    ids = genes["gene_id"].tolist()
    written = set(kb.descriptions(ids, prefer=("human",)))
    if not options.overwrite:
        written |= set(kb.descriptions(ids, prefer=("llm",)))
    if names is not None and written:
        notes.append(f"{len(written):,} genes have a description already")
    facts = kb.descriptions(ids, prefer=("composed",))
    aliases: dict[str, list[str]] = {}
    names_of = kb.aliases()
    names_of = names_of[names_of["kind"].isin(("alias", "previous"))]
    for gene_id, alias in zip(names_of["gene_id"], names_of["name"], strict=True):
        aliases.setdefault(gene_id, []).append(alias)
    columns = ("gene_id", "species", "symbol", "name", "gene_type")
    subjects = [
        Subject(
            gene_id=gene_id,
            species=kind,
            symbol=symbol,
            name=name,
            gene_type=gene_type,
            facts=(facts[gene_id].text,) if gene_id in facts else (),
            aliases=tuple(aliases.get(gene_id, ())),
        )
        for gene_id, kind, symbol, name, gene_type in zip(*(genes[c] for c in columns), strict=True)
        if gene_id not in written
    ]
    return subjects, notes

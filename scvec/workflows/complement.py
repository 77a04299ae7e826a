"""``scvec ingest complement``: a language model describes genes that nobody has written about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.base.errors import InputError
from scvec.base.settings import Settings
from scvec.base.types import SPECIES, Progress, Species, no_progress
from scvec.model.resolvers import ensure_knowledge
from scvec.workflows.ingest_genes import read_gene_list
from scvec.workflows.live import (
    ComplementReport,
    Cost,
    LiveReport,
    ask_live,
    failed_genes,
    named_genes,
    unasked,
)

if TYPE_CHECKING:
    from scvec.ingest.sources.llm import Subject
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["ingest_complement"]


def ingest_complement(
    store: Path | str,
    *,
    model: str,
    species: Sequence[Species] = SPECIES,
    genes: Path | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    base_url: str | None = None,
    max_cost: float | None = None,
    concurrency: int = 4,
    timeout: float | None = None,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ComplementReport:
    """Let a language model write descriptions of genes that have none by people.

    The model gets the species, the symbol, the full name and the facts that the knowledge base holds. An
    answer that does not name the gene, is too short or long, or holds an address or instructions is
    rejected and asked for again. What arrives is kept whatever ends the run, and the next run goes on.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    model
        As the server calls it.
    genes
        File with one gene name a line; all protein-coding genes where not given.
    limit
        At most so many genes.
    overwrite
        Also genes that a language model has described before.
    base_url
        Address of an OpenAI-compatible server; OpenAI's own where not given.
    max_cost
        US dollars: stop before the next call could cost more.
    timeout
        Seconds to wait for an answer.
    dry_run
        Count genes, requests, tokens, price and time; ask nothing, change nothing.

    Raises
    ------
    InputError
        If an option cannot be used.
    NetworkError, AuthError
        If the server is gone or refuses; what it answered before is in the store.
    """
    from scvec.ingest.sources.llm import ComplementSource, estimate
    from scvec.ingest.sources.openai import LlmService
    from scvec.ingest.sources.prices import Budget, price_of
    from scvec.stores.store.store import Store

    if not model.strip():
        raise InputError(
            "the model has no name", "--model", "give it as the server calls it", code="bad-name"
        )
    settings = Settings.load()
    names = read_gene_list(genes) if genes else None
    price = price_of(model, settings.prices, host=base_url or settings.openai.base_url)
    budget = Budget(price, max_cost, model=model)
    # A dry run asks nobody, and needs no key.
    service = None if dry_run else LlmService(settings.openai, base_url=base_url, timeout=timeout)
    notes: list[str] = []
    opened = Store.open(store, create=True)
    with opened.begin("ingest complement", {"model": model}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if not dry_run:
            kb.absorb(txn.journal())  # of a run that was killed
        chosen = _subjects(kb, names, species, notes, overwrite=overwrite)
        jobs = {s.job(model): s for s in chosen}
        todo, final = unasked(kb, jobs, refresh=overwrite)
        todo = todo[:limit]
        asked = {job: jobs[job] for job in todo}
        generation, error = "", None
        if service is None:
            expected = estimate(list(asked.values()), model, price, concurrency=concurrency)
            live = LiveReport(
                source=model,
                n_wanted=len(jobs),
                n_known=len(jobs) - len(todo) - len(final),
                n_asked=len(todo),
                n_answered=0,
                failed=failed_genes(final),
                cost=Cost(
                    requests=expected.requests,
                    tokens_in=expected.tokens_in,
                    tokens_out=expected.tokens_out,
                    dollars=expected.cost,
                    seconds=expected.seconds,
                ),
                dry_run=True,
            )
            counts = kb.counts()
            if not expected.exact_tokens:
                notes.append("tokens are an upper estimate: the model's own table of tokens is not here")
        else:
            source = ComplementSource(service, model, asked, budget)
            live, generation, error, counts = ask_live(
                txn,
                kb,
                name=model,
                wanted=list(jobs),
                todo=todo,
                final=final,
                make_source=lambda: source,
                concurrency=concurrency,
                progress=progress,
                spent=lambda: Cost(
                    requests=service.caller.n_calls,
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
        dry_run=dry_run,
        notes=notes,
    )


def _subjects(
    kb: KnowledgeBase,
    names: Sequence[str] | None,
    species: Sequence[Species],
    notes: list[str],
    *,
    overwrite: bool,
) -> list[Subject]:
    """Return the genes to describe and what is known of them, protein-coding ones unless named."""
    from scvec.ingest.sources.llm import Subject

    genes = kb.genes()
    if names is None:
        genes = genes[genes["species"].isin(species) & (genes["gene_type"] == "protein-coding")]
    else:
        found, unknown = named_genes(kb, names, species)
        if unknown:
            notes.append(f"{len(unknown):,} of {len(names):,} genes are not known: {', '.join(unknown[:8])}")
        if not found:
            fix = "give gene symbols, Ensembl or Entrez ids, and check --species"
            raise InputError("no gene of the list is known", ", ".join(names[:5]), fix, code="unknown-gene")
        genes = genes[genes["gene_id"].isin(found)]
    ids = genes["gene_id"].tolist()
    written = set(kb.descriptions(ids, prefer=("human",)))
    if not overwrite:
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
    return [
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

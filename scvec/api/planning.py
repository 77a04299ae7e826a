"""Which genes a live source is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scvec.errors import InputError
from scvec.records import Failure, Job, Wanted
from scvec.types import Species

if TYPE_CHECKING:
    from scvec.stores.knowledge import KnowledgeBase

__all__ = ["GenePlan", "named_genes", "unasked", "wanted_genes"]


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
    from scvec.api.resolvers import resolver_of

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
        raise InputError("no gene of the list is known", ", ".join(names[:5]), "give one --species")
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

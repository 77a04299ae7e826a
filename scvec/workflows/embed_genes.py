"""``scvec ingest embeddings``: texts of genes into vectors, and an index of genes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.base.errors import InputError
from scvec.base.types import SPECIES, Progress, no_progress
from scvec.workflows.live import Cost, FailedGene
from scvec.workflows.text_reports import EmbeddingsReport

if TYPE_CHECKING:
    from scvec.model.gene_vectors import EncodingPlan
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["ingest_embeddings"]


def ingest_embeddings(
    store: Path | str,
    *,
    backbone: str = "minilm",
    text: str = "default",
    species: Sequence[str] = SPECIES,
    genes: Path | None = None,
    base_url: str | None = None,
    max_cost: float | None = None,
    dry_run: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> EmbeddingsReport:
    """Encode the texts of genes with a backbone and index the vectors.

    ``ingest cells`` encodes the genes that its data need. This encodes, for searching genes, all that
    code for proteins and others that somebody wrote about; or those of a list.

    Parameters
    ----------
    backbone
        ``minilm``, ``st:FOLDER_OR_ID``, ``hf:FOLDER_OR_ID``, ``openai:MODEL``, ``random:DIM``,
        ``permuted:SPEC``, ``name:SPEC`` (:func:`scvec.backbones.parse_spec`).
    text
        ``default`` (the best description), ``name``, or a text with fields: ``{symbol}: {description}``.
    genes
        File with one gene name a line.
    base_url
        Address of an OpenAI-compatible server, for ``openai:``; OpenAI's own where not given.
    max_cost
        US dollars that a server may cost: encoding stops before it costs more. What arrived is kept.
    dry_run
        Count what would be encoded, and what a server would cost; encode and ask nothing.

    Raises
    ------
    InputError
        If the backbone, the template or a gene of the list is unknown.
    NetworkError, AuthError
        If a server is gone or refuses. The vectors that it gave before are in the store.
    """
    from scvec.backbones import parse_spec
    from scvec.base.device import check_device
    from scvec.model.gene_vectors import check_template, encode_genes, plan_encoding
    from scvec.model.resolvers import ensure_knowledge
    from scvec.stores.store.store import Store
    from scvec.workflows.ingest_genes import read_gene_list

    started = time.monotonic()
    spec = parse_spec(backbone, text, base_url)
    check_template(spec.template)
    check_device(device)
    names = read_gene_list(genes) if genes else None
    notes: list[str] = []
    opened = Store.open(store, create=True)
    with opened.begin("ingest embeddings", {"backbone": backbone, "text": text}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        wanted = _worthwhile(kb, species) if names is None else _named(kb, names, species, notes)
        if dry_run:
            plan = plan_encoding(kb, txn.vectors(), wanted, spec, device=device)
            return _planned(plan, backbone, len(wanted), time.monotonic() - started, notes)
        encoded = encode_genes(
            kb,
            txn.vectors(),
            wanted,
            spec,
            device=device,
            max_cost=max_cost,
            partial=True,
            progress=progress,
        )
        if spec.permuted:
            notes.append("permuted: is a control, its vectors are not stored: give it to ingest cells")
        elif len(encoded.table):
            txn.put_space(encoded.space, encoded.table, encoded.vectors, merge=True)
        generation = str(txn.commit().number)
        notes += [*encoded.notes, *txn.notes]
    if encoded.error is not None:
        error = encoded.error
        kept = f"{encoded.n_encoded:,} vectors are kept"
        raise type(error)(f"{error.what}; {kept}", error.where, error.fix)
    seconds = time.monotonic() - started
    cost = Cost(requests=encoded.n_requests, dollars=encoded.cost, seconds=seconds)
    return EmbeddingsReport(
        space=encoded.space.fingerprint,
        backbone=backbone,
        dim=encoded.space.dim,
        n_genes=len(encoded.table),
        n_encoded=encoded.n_encoded,
        n_cached=encoded.n_cached,
        n_shipped=encoded.n_shipped,
        seconds=seconds,
        generation=generation,
        failed=[
            FailedGene(gene=gene_id, reason=reason, final=False)
            for gene_id, reason in encoded.failures.items()
        ],
        stopped=encoded.stopped,
        cost=cost if spec.is_remote else None,
        notes=notes,
    )


def _planned(
    plan: EncodingPlan, backbone: str, n_genes: int, seconds: float, notes: list[str]
) -> EmbeddingsReport:
    """Return the report of a dry run."""
    expected = plan.estimate
    return EmbeddingsReport(
        space=plan.space.fingerprint if plan.space is not None else "",
        backbone=backbone,
        dim=plan.space.dim if plan.space is not None else 0,
        n_genes=n_genes,
        n_encoded=plan.n_todo,
        n_cached=plan.n_cached,
        n_shipped=plan.n_shipped,
        seconds=seconds,
        dry_run=True,
        cost=None
        if expected is None
        else Cost(
            requests=expected.requests,
            tokens_in=expected.tokens,
            dollars=expected.cost,
            seconds=expected.seconds,
        ),
        notes=notes,
    )


def _worthwhile(kb: KnowledgeBase, species: Sequence[str]) -> list[str]:
    """Return protein-coding genes, and others that somebody wrote about; of the rest only names are known."""
    genes = kb.genes()
    genes = genes[genes["species"].isin(species)]
    described = kb.descriptions()
    written = [g in described and described[g].kind in ("human", "llm") for g in genes["gene_id"]]
    coding = [g in described for g in genes["gene_id"]] & (genes["gene_type"] == "protein-coding").to_numpy()
    return genes.loc[coding | written, "gene_id"].tolist()


def _named(kb: KnowledgeBase, names: list[str], species: Sequence[str], notes: list[str]) -> list[str]:
    from scvec.model.resolvers import resolver_of

    resolver = resolver_of(kb)
    found: dict[str, None] = {}
    missing = set(names)
    for one in species:
        match = resolver.resolve(names, one)
        for name, gene_id in zip(names, match.gene_ids, strict=True):
            if gene_id is not None:
                found[gene_id] = None
                missing.discard(name)
    if not found:
        raise InputError(
            "no gene of the list is known",
            ", ".join(names[:5]),
            "give gene symbols, Ensembl or Entrez ids, and check --species",
            code="unknown-gene",
        )
    if missing:
        notes.append(
            f"{len(missing):,} of {len(names):,} genes are not known: {', '.join(sorted(missing)[:8])}"
        )
    return list(found)

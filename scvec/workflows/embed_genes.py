"""``scvec ingest embeddings``: encode texts of genes as vectors, and index them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scvec.backbones import parse_spec
from scvec.base.options import options_of, takes_options
from scvec.base.resources import check_device
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Report, counts_line
from scvec.base.types import Progress, no_progress
from scvec.model.gene_vectors import EncodingPlan, check_template, encode_genes, plan_encoding
from scvec.model.resolvers import ensure_knowledge
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.workflows.live import Cost, FailedGene, LiveOptions, known_genes, reason_lines

__all__ = ["EmbeddingsOptions", "EmbeddingsReport", "ingest_embeddings"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingsOptions(LiveOptions):
    """Options of ``ingest embeddings``.

    Attributes
    ----------
    backbone
        ``minilm``, ``st:FOLDER_OR_ID``, ``hf:FOLDER_OR_ID``, ``openai:MODEL``, ``random:DIM``,
        ``permuted:SPEC``, ``name:SPEC`` (:func:`scvec.backbones.parse_spec`).
    text
        ``default`` (the best description), ``name``, or a text with fields: ``{symbol}: {description}``.
    max_cost
        Limit on the cost of a server, in US dollars. Encoding stops before it costs more, and received
        vectors are kept.
    """

    backbone: str = "minilm"
    text: str = "default"
    max_cost: float | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class EmbeddingsReport(Report):
    """Result of ``ingest embeddings``.

    Attributes
    ----------
    space
        Fingerprint of the embedding space.
    dim
        Dimension of a vector; 0 if only the server knows it and was not asked yet.
    n_genes
        Number of genes with a vector.
    n_encoded, n_cached, n_shipped
        Number of texts encoded now, with vectors in the store, and with vectors in the package.
    failed, stopped
        Genes without a vector and the reasons; reason why the run stopped early.
    cost
        Number of requests and cost in US dollars, with a server.
    """

    space: str
    backbone: str
    dim: int
    n_genes: int
    n_encoded: int
    n_cached: int
    n_shipped: int = 0
    seconds: float
    generation: str = ""
    dry_run: bool = False
    failed: list[FailedGene] = field(default_factory=list)
    stopped: str = ""
    cost: Cost | None = None

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        verb = "would have" if self.dry_run else "have"
        todo = "to encode" if self.dry_run else "encoded"
        size = f"a vector of {self.dim} dimensions" if self.dim else "a vector"
        space = f", space {self.space}" if self.space else ""
        counts = {"shipped": self.n_shipped, "from the store": self.n_cached, todo: self.n_encoded}
        lines = [
            f"{self.n_genes:,} genes {verb} {size} (backbone {self.backbone}{space})",
            f"texts: {counts_line(counts)}",
        ]
        if self.dry_run and self.cost is not None:
            lines.append(f"it would take {self.cost.line()}")
        elif self.cost is not None:
            lines.append(f"took {self.cost.line()}")
        else:
            lines.append(f"took {self.seconds:.1f} s")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        return lines + reason_lines(self.failed)

    @property
    def next_step(self) -> NextStep:
        """The run after a dry run; else a search by these vectors."""
        if self.dry_run:
            return WITHOUT_DRY_RUN
        backbone = () if self.backbone == EmbeddingsOptions.backbone else ("--backbone", self.backbone)
        return NextStep(("search", "genes", "insulin secretion", *backbone))


@takes_options(EmbeddingsOptions)
def ingest_embeddings(
    store: Path | str,
    options: EmbeddingsOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> EmbeddingsReport:
    """Encode the texts of genes with a backbone and index the vectors.

    ``ingest cells`` encodes only the genes of its data. This function encodes genes for searches: all
    protein-coding genes and others with a written description, or the genes of a list.

    Parameters
    ----------
    store
        Folder of the store.
    options, keywords
        :class:`EmbeddingsOptions`, or its fields as keywords. Keywords override ``options``.

    Raises
    ------
    InputError
        If the backbone, the template or a gene of the list is unknown.
    NetworkError, AuthError
        If a server is unreachable or refuses. Vectors received before are in the store.
    """
    asked = options_of(EmbeddingsOptions, options, keywords)
    backbone, text, device, species = asked.backbone, asked.text, asked.device, asked.species
    started = time.monotonic()
    spec = parse_spec(backbone, text, asked.base_url)
    check_template(spec.template)
    check_device(device)
    names = asked.names()
    notes: list[str] = []
    opened = Store.open(store, create=True)
    with opened.begin("ingest embeddings", {"backbone": backbone, "text": text}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if names is None:
            wanted = _worthwhile(kb, species)
        else:
            wanted, notes = known_genes(kb, names, species)
        if asked.dry_run:
            plan = plan_encoding(kb, txn.vectors(), wanted, spec, device=device)
            return _planned(plan, backbone, len(wanted), time.monotonic() - started, notes)
        encoded = encode_genes(
            kb,
            txn.vectors(),
            wanted,
            spec,
            device=device,
            max_cost=asked.max_cost,
            partial=True,
            progress=progress,
        )
        if spec.permuted:
            notes.append("permuted: is a control, so its vectors are not stored; use it with ingest cells")
        elif len(encoded.table):
            txn.put_space(encoded.space, encoded.table, encoded.vectors, merge=True)
        generation = str(txn.commit().number)
        notes += [*encoded.notes, *txn.notes]
    if encoded.error is not None:
        error = encoded.error
        kept = f"{encoded.n_encoded:,} vectors are saved"
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
    """Return protein-coding genes and others with a written description. Other genes have only names."""
    genes = kb.genes()
    genes = genes[genes["species"].isin(species)]
    described = kb.descriptions()
    written = [g in described and described[g].kind in ("human", "llm") for g in genes["gene_id"]]
    coding = [g in described for g in genes["gene_id"]] & (genes["gene_type"] == "protein-coding").to_numpy()
    return genes.loc[coding | written, "gene_id"].tolist()

"""``scvec ingest embeddings``: texts of genes into vectors, and an index of genes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.api.reports import EmbeddingsReport
from scvec.errors import InputError
from scvec.protocols import Progress, no_progress
from scvec.types import SPECIES

if TYPE_CHECKING:
    from scvec.stores.knowledge import KnowledgeBase

__all__ = ["ingest_embeddings"]


def ingest_embeddings(
    store: Path | str,
    *,
    backbone: str = "minilm",
    text: str = "default",
    species: Sequence[str] = SPECIES,
    genes: Path | None = None,
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
        ``minilm``, ``st:FOLDER_OR_ID``, ``random:DIM``, ``permuted:SPEC``, ``name:SPEC``.
    text
        ``default`` (the best description), ``name``, or a text with fields: ``{symbol}: {description}``.
    genes
        File with one gene name a line.
    dry_run
        Count what would be encoded; encode nothing.

    Raises
    ------
    InputError
        If the backbone, the template or a gene of the list is unknown.
    """
    from scvec.api.device import check_device
    from scvec.api.genes import read_gene_list
    from scvec.api.knowledge import ensure_knowledge
    from scvec.api.texts import check_template, encode_genes, gene_table
    from scvec.backbones.spec import load_backbone, parse_spec
    from scvec.stores.store import Store

    started = time.monotonic()
    spec = parse_spec(backbone, text)
    check_template(spec.template)
    check_device(device)
    names = read_gene_list(genes) if genes else None
    notes: list[str] = []
    opened = Store.open(store, create=True)
    with opened.begin("ingest embeddings", {"backbone": backbone, "text": text}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        wanted = _worthwhile(kb, species) if names is None else _named(kb, names, species, notes)
        generation = ""
        if dry_run:
            space = load_backbone(spec, device=device).space
            shas = gene_table(kb, wanted, spec.template)["text_sha256"].tolist()
            found, _ = txn.vectors().get_many(space, shas)
            todo = len({sha for sha, ok in zip(shas, found, strict=True) if not ok})
            n_encoded, n_cached = todo, len(set(shas)) - todo
        else:
            encoded = encode_genes(kb, txn.vectors(), wanted, spec, device=device, progress=progress)
            space, n_encoded, n_cached = encoded.space, encoded.n_encoded, encoded.n_cached
            if spec.permuted:
                notes.append("permuted: is a control, its vectors are not stored: give it to ingest cells")
            else:
                txn.put_space(space, encoded.table, encoded.vectors, merge=True)
            generation = str(txn.commit().number)
        notes += txn.notes
    return EmbeddingsReport(
        space=space.fingerprint,
        backbone=backbone,
        dim=space.dim,
        n_genes=len(wanted),
        n_encoded=n_encoded,
        n_cached=n_cached,
        seconds=time.monotonic() - started,
        generation=generation,
        dry_run=dry_run,
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
    from scvec.api.resolvers import resolver_of

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
        )
    if missing:
        notes.append(
            f"{len(missing):,} of {len(names):,} genes are not known: {', '.join(sorted(missing)[:8])}"
        )
    return list(found)

"""A store of nothing but the fake services' genes: quick to make, to copy and to commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fake_genes import FakeGene

from scvec.base.types import Description, Gene
from scvec.stores.store.store import Store


def gene_of(fake: FakeGene) -> Gene:
    """The gene as a knowledge base has it before anybody was asked: no summary."""
    return Gene(
        fake.authority,
        fake.species,  # type: ignore[arg-type]
        fake.symbol,
        entrez_id=fake.entrez_id,
        name=fake.name,
        gene_type=fake.gene_type,
        ensembl_ids=fake.ensembl_ids,
        aliases=fake.aliases,
    )


def live_store(folder: Path, genes: Sequence[FakeGene]) -> Store:
    """A store with genes that have a composed description each."""
    store = Store.open(folder, create=True)
    with store.begin("ingest genes", {"source": "fake"}) as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes([gene_of(g) for g in genes])
        kb.upsert_descriptions(
            [
                Description(
                    g.authority,
                    f"{g.symbol} ({g.name}), a protein-coding {g.species} gene.",
                    "composed",
                    "1",
                    "2026-01-01",
                    "composed",
                )
                for g in genes
            ]
        )
        txn.commit()
    return store


def texts(folder: Path, kind: str = "human") -> dict[str, str]:
    """Best description of a kind by gene id, of the current generation."""
    with Store.open(folder).knowledge() as kb:
        return {g: d.text for g, d in kb.descriptions(prefer=(kind,)).items()}


def digest(folder: Path) -> str:
    """Digest of the knowledge base of the current generation."""
    with Store.open(folder).knowledge() as kb:
        return kb.digest()

"""Genes as the fake services know them: every text of one carries its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ORGANISMS = {
    "human": {"scientificname": "Homo sapiens", "commonname": "human", "taxid": 9606},
    "mouse": {"scientificname": "Mus musculus", "commonname": "house mouse", "taxid": 10090},
    "rat": {"scientificname": "Rattus norvegicus", "commonname": "Norway rat", "taxid": 10116},
}


@dataclass(frozen=True)
class FakeGene:
    """What the services know about a gene."""

    entrez_id: int
    species: str = "human"
    symbol: str = ""
    name: str = ""
    summary: str = ""
    aliases: tuple[str, ...] = ()
    ensembl_ids: tuple[str, ...] = ()
    gene_type: str = "protein-coding"
    authority: str = ""
    #: The id that replaced this one, 0 if none.
    replaced_by: int = 0
    discontinued: bool = False

    @property
    def alive(self) -> bool:
        return not self.replaced_by and not self.discontinued

    @property
    def authority_number(self) -> int:
        return int(self.authority.rpartition(":")[2] or self.entrez_id)


def fake_gene(entrez_id: int, species: str = "human", **given: Any) -> FakeGene:
    """A gene whose every text names its id."""
    prefix, authority = ("G", "HGNC") if species == "human" else ("Gm", "MGI")
    letters = {"human": "ENSG", "mouse": "ENSMUSG"}.get(species, "ENSRNOG")
    fields: dict[str, Any] = {
        "symbol": f"{prefix}{entrez_id}",
        "name": f"gene number {entrez_id}",
        "summary": f"This gene encodes protein number {entrez_id}. [provided by RefSeq, Jul 2008]",
        "aliases": (f"ALT{entrez_id}", f"p{entrez_id}"),
        "ensembl_ids": (f"{letters}{entrez_id:011d}",),
        "authority": f"{authority}:{entrez_id}",
    }
    return FakeGene(entrez_id, species, **{**fields, **given})


def fake_genes(n: int, species: str = "human", first: int = 1001) -> list[FakeGene]:
    """Genes with ids ``first`` and up."""
    return [fake_gene(i, species) for i in range(first, first + n)]

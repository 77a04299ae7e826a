"""MyGene.info: facts and summaries of genes, looked up by Entrez or Ensembl id.

https://docs.mygene.info/en/latest/doc/annotation_service.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scvec.base.species import known_species
from scvec.base.types import Answer, Failure, Job, Wanted
from scvec.ingest.sources import gene_source
from scvec.ingest.sources.facts import (
    SPECIES_OF_TAXON,
    TAXON_OF_SPECIES,
    id_field,
    text_field,
    texts_field,
    with_prefix,
)
from scvec.ingest.sources.http import GeneFound, GeneSource, in_parts

__all__ = ["Hit", "MyGeneSource"]

#: Largest number of ids in one request.
IDS = 1000
#: Largest number of Ensembl ids for looking up a gene without an Entrez id.
ENSEMBL_IDS = 4

_FIELDS = (
    "entrezgene,retired,taxid,symbol,name,summary,alias,type_of_gene,ensembl.gene,"
    "HGNC,MGI,MIM,uniprot.Swiss-Prot"
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A gene in an answer of MyGene, checked. MyGene writes lists with one entry as scalars."""

    entrez_id: int | None
    retired: tuple[int, ...]
    ensembl_ids: tuple[str, ...]
    taxon: int | None
    symbol: str
    name: str
    gene_type: str
    aliases: tuple[str, ...]
    text: str
    primary_source: str
    related: tuple[str, ...]

    @classmethod
    def of(cls, hit: Mapping[str, Any]) -> Hit:
        """Read one entry of the answer."""
        ensembl = hit.get("ensembl")
        listed = ensembl if isinstance(ensembl, list) else [ensembl]
        ids = [
            e for one in listed[:50] if isinstance(one, dict) for e in texts_field(one.get("gene"), 40, 50)
        ]
        retired = hit.get("retired")
        uniprot = hit.get("uniprot")
        hgnc, mgi = text_field(hit.get("HGNC"), 20), text_field(hit.get("MGI"), 20)
        text = hit.get("summary")
        related = [
            *(f"Ensembl:{e}" for e in ids),
            *(f"MIM:{m}" for m in texts_field(hit.get("MIM"), 20, 20)),
            *(
                f"UniProtKB/Swiss-Prot:{u}"
                for u in texts_field(uniprot.get("Swiss-Prot") if isinstance(uniprot, dict) else None, 20, 20)
            ),
        ]
        return cls(
            entrez_id=id_field(hit.get("entrezgene")) or id_field(hit.get("_id")),
            retired=tuple(
                i for i in map(id_field, retired if isinstance(retired, list) else [retired]) if i is not None
            ),
            ensembl_ids=tuple(e for e in dict.fromkeys(ids) if re.fullmatch(r"ENS[A-Z]*G[0-9]{6,}", e)),
            taxon=id_field(hit.get("taxid")),
            symbol=text_field(hit.get("symbol"), 80),
            name=text_field(hit.get("name")),
            gene_type=text_field(hit.get("type_of_gene"), 40),
            aliases=texts_field(hit.get("alias"), 80),
            text=text if isinstance(text, str) else "",
            primary_source=with_prefix("HGNC", hgnc) if hgnc else with_prefix("MGI", mgi) if mgi else "",
            related=tuple(related),
        )

    def found(self, wanted: Wanted) -> GeneFound:
        """Return the gene with its facts."""
        facts = {
            "primary_source": self.primary_source,
            "see_related": list(self.related),
            "organism": _organism(wanted.species),
        }
        return GeneFound(
            symbol=self.symbol,
            entrez_id=self.entrez_id,
            name=self.name,
            gene_type=self.gene_type,
            ensembl_ids=self.ensembl_ids,
            aliases=self.aliases,
            text=self.text,
            facts=facts,
        )


@gene_source("mygene")
class MyGeneSource(GeneSource):
    """Looks up genes in MyGene.info, by Entrez or Ensembl id."""

    url = "https://mygene.info/v3"
    most = IDS

    @classmethod
    def can_ask(cls, wanted: Wanted) -> bool:
        return wanted.entrez_id is not None or bool(wanted.ensembl_ids)

    @classmethod
    def question(cls, wanted: Wanted) -> str:
        by_symbol = super().question(wanted)
        return by_symbol if wanted.entrez_id is not None else " ".join(wanted.ensembl_ids) or by_symbol

    @classmethod
    def n_requests(cls, wanted: Sequence[Wanted]) -> int:
        batches = (wanted[first : first + IDS] for first in range(0, len(wanted), IDS))
        return sum(-(-len({q for one in some for q in _queries(one)}) // IDS) for some in batches)

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        answers: list[Answer] = []
        failures: list[Failure] = []
        queries = {job: _queries(self.wanted[job]) for job in jobs}
        found: dict[str, list[Hit]] = {}
        for some in in_parts((q for asked in queries.values() for q in asked), IDS):
            found.update(await self._hits(some))
        for job, asked in queries.items():
            wanted = self.wanted[job]
            if not asked:
                reason = "MyGene needs an Entrez or Ensembl id; the gene has neither"
                failures.append(Failure(job, reason, final=True))
                continue
            if any(query not in found for query in asked):
                continue  # the answer left out a query, so the job is asked again
            outcome = _chosen(wanted, asked, [hit for query in asked for hit in found[query]])
            if isinstance(outcome, str):
                failures.append(Failure(job, outcome, final=True))
            elif job.gene_id.startswith("ask:") and outcome.entrez_id is None:
                failures.append(Failure(job, "MyGene has no Entrez id for the gene", final=True))
            else:
                answers.append(outcome.found(wanted).answer(job, wanted, "v3", wanted.entrez_id))
        return answers, failures

    async def _hits(self, queries: Sequence[str]) -> dict[str, list[Hit]]:
        """Return query -> hits, an empty list if MyGene found none; queries without an answer are missing."""
        taxa = ",".join(sorted({str(TAXON_OF_SPECIES[w.species]) for w in self.wanted.values()}))
        form = {"ids": ",".join(queries), "species": taxa, "fields": _FIELDS, "dotfield": "false"}
        if self.settings.email:
            form["email"] = self.settings.email
        body: list[Any] = await self.client.post_json("gene", form, list)
        asked = set(queries)
        found: dict[str, list[Hit]] = {}
        for entry in body:
            query = text_field(entry.get("query"), 80) if isinstance(entry, dict) else ""
            if query not in asked:
                continue  # not one of our queries
            if entry.get("notfound") is True:
                found.setdefault(query, [])
            elif "error" not in entry:
                found.setdefault(query, []).append(Hit.of(entry))
        return found


def _organism(species: str) -> str:
    known = known_species()[species]
    return f"{known.scientific} ({known.common or species})"


def _queries(wanted: Wanted) -> tuple[str, ...]:
    if wanted.entrez_id is not None:
        return (str(wanted.entrez_id),)
    ids = (e.split(".")[0] for e in wanted.ensembl_ids)
    return tuple(dict.fromkeys(e for e in ids if re.fullmatch(r"ENS[A-Z]*G[0-9]{6,}", e)))[:ENSEMBL_IDS]


def _chosen(wanted: Wanted, asked: Sequence[str], hits: Sequence[Hit]) -> Hit | str:
    """Return the gene that the hits of all its ids agree on, or the reason why there is none."""
    shown = ", ".join(asked)
    if not hits:
        return f"MyGene has no gene {shown}"
    of_id = [
        hit
        for hit in hits
        if (wanted.entrez_id is not None and wanted.entrez_id in (hit.entrez_id, *hit.retired))
        or (wanted.entrez_id is None and set(asked) & set(hit.ensembl_ids))
    ]
    if not of_id:
        return f"MyGene returned another gene for {shown}"
    same = [hit for hit in of_id if SPECIES_OF_TAXON.get(hit.taxon or 0) == wanted.species]
    if not same:
        return f"gene {shown} belongs to taxon {of_id[0].taxon}, not to {wanted.species}"
    genes = {hit.entrez_id or hit.ensembl_ids for hit in same}
    if len(genes) > 1:
        listed = ", ".join(str(hit.entrez_id or hit.ensembl_ids[0]) for hit in same[:5])
        return f"{len(genes)} genes have the id {shown}: {listed}"
    if not same[0].symbol:
        return f"MyGene has no symbol for {shown}"
    return same[0]

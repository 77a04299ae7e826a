"""MyGene.info: facts and summaries of genes by Entrez or Ensembl id.

https://docs.mygene.info/en/latest/doc/annotation_service.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from scvec.base.records import Answer, Failure, Job, Note, Wanted
from scvec.base.settings import ServiceSettings
from scvec.base.types import Description, Gene
from scvec.ingest.sources.facts import (
    SPECIES_OF_TAXON,
    clean_summary,
    facts_of,
    id_field,
    provenance_json,
    text_field,
    texts_field,
)
from scvec.ingest.sources.http import HttpClient, HttpSource

__all__ = ["MyGeneSource", "mygene_requests"]

URL = "https://mygene.info/v3"
#: Requests a second, unless something else is set.
PER_SECOND = 10.0
#: Most ids of one request.
IDS = 1000
#: Ensembl ids by which a gene without an Entrez id is asked.
ENSEMBL_IDS = 4

_FIELDS = (
    "entrezgene,retired,taxid,symbol,name,summary,alias,type_of_gene,ensembl.gene,"
    "HGNC,MGI,MIM,uniprot.Swiss-Prot"
)
_ORGANISMS = {"human": "Homo sapiens (human)", "mouse": "Mus musculus (house mouse)"}


@dataclass(frozen=True, slots=True)
class Hit:
    """What MyGene says about a gene, checked. Its lists of one come as scalars."""

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
            primary_source=_named("HGNC", hgnc) if hgnc else _named("MGI", mgi) if mgi else "",
            related=tuple(related),
        )


class MyGeneSource(HttpSource):
    """Answers jobs from MyGene.info. An async context manager, and a source as ``harvest`` takes it.

    Parameters
    ----------
    wanted
        The genes of all jobs that will be asked.
    settings
        Address, and ``email`` that the service asks for.
    base_url, per_second
        Come before those of the settings.
    batch_size
        Genes in one request, at most 1000.
    pace
        Factor on waits between attempts.

    Raises
    ------
    InputError
        If the address is none.
    """

    name = "mygene"

    def __init__(
        self,
        wanted: Mapping[Job, Wanted],
        settings: ServiceSettings | None = None,
        *,
        base_url: str | None = None,
        per_second: float | None = None,
        batch_size: int = IDS,
        pace: float = 1.0,
    ) -> None:
        settings = settings or ServiceSettings()
        self._wanted = wanted
        self._email = settings.email
        self.batch_size = max(1, min(batch_size, IDS))
        client = HttpClient.of(
            "mygene",
            URL,
            settings,
            limit=PER_SECOND,
            base_url=base_url,
            per_second=per_second,
            pace=pace,
        )
        super().__init__(client)

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        """Return answers and failures; jobs in neither were left out of what came back."""
        answers: list[Answer] = []
        failures: list[Failure] = []
        queries = {job: _queries(self._wanted[job]) for job in jobs}
        listed = list(dict.fromkeys(q for asked in queries.values() for q in asked))
        found: dict[str, list[Hit]] = {}
        for first in range(0, len(listed), IDS):
            found.update(await self._hits(listed[first : first + IDS]))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for job, asked in queries.items():
            wanted = self._wanted[job]
            if not asked:
                failures.append(
                    Failure(job, "MyGene is asked by Entrez or Ensembl id; this has neither", True)
                )
                continue
            if any(query not in found for query in asked):
                continue  # left out
            outcome = _chosen(wanted, asked, [hit for query in asked for hit in found[query]])
            if isinstance(outcome, str):
                failures.append(Failure(job, outcome, final=True))
            elif job.gene_id.startswith("ask:") and outcome.entrez_id is None:
                failures.append(Failure(job, "MyGene has no Entrez id for it", final=True))
            else:
                answers.append(_answer(job, wanted, outcome, now))
        return answers, failures

    async def _hits(self, queries: Sequence[str]) -> dict[str, list[Hit]]:
        """Return hits by query; an empty list for one that is not found. Left out ones are missing."""
        form = {"ids": ",".join(queries), "species": "human,mouse", "fields": _FIELDS, "dotfield": "false"}
        if self._email:
            form["email"] = self._email
        body: list[Any] = await self._client.post_json("gene", form, list)
        asked = set(queries)
        found: dict[str, list[Hit]] = {}
        for entry in body:
            query = text_field(entry.get("query"), 80) if isinstance(entry, dict) else ""
            if query not in asked:
                continue  # nobody asked for it
            if entry.get("notfound") is True:
                found.setdefault(query, [])
            elif "error" not in entry:
                found.setdefault(query, []).append(Hit.of(entry))
        return found


def mygene_requests(wanted: Sequence[Wanted]) -> int:
    """Return how many requests genes take where each is answered at once."""
    total = 0
    for first in range(0, len(wanted), IDS):
        queries = {q for one in wanted[first : first + IDS] for q in _queries(one)}
        total += -(-len(queries) // IDS)
    return total


def _queries(wanted: Wanted) -> tuple[str, ...]:
    if wanted.entrez_id is not None:
        return (str(wanted.entrez_id),)
    ids = (e.split(".")[0] for e in wanted.ensembl_ids)
    return tuple(dict.fromkeys(e for e in ids if re.fullmatch(r"ENS[A-Z]*G[0-9]{6,}", e)))[:ENSEMBL_IDS]


def _chosen(wanted: Wanted, asked: Sequence[str], hits: Sequence[Hit]) -> Hit | str:
    """Return the one gene that hits of a gene's ids stand for, or why there is none."""
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
        return f"MyGene answers with another gene for {shown}"
    same = [hit for hit in of_id if SPECIES_OF_TAXON.get(hit.taxon or 0) == wanted.species]
    if not same:
        return f"gene {shown} is of taxon {of_id[0].taxon}, not of {wanted.species}"
    genes = {hit.entrez_id or hit.ensembl_ids for hit in same}
    if len(genes) > 1:
        listed = ", ".join(str(hit.entrez_id or hit.ensembl_ids[0]) for hit in same[:5])
        return f"{len(genes)} genes have the id {shown}: {listed}"
    if not same[0].symbol:
        return f"MyGene has no symbol for {shown}"
    return same[0]


def _named(db: str, value: str) -> str:
    return value if value.startswith(f"{db}:") else f"{db}:{value}"


def _answer(job: Job, wanted: Wanted, hit: Hit, now: str) -> Answer:
    gene_id = f"entrez:{hit.entrez_id}" if job.gene_id.startswith("ask:") else wanted.gene_id
    text, provenance = clean_summary(hit.text)
    facts = facts_of(
        official_symbol=hit.symbol,
        official_full_name=hit.name,
        primary_source=hit.primary_source,
        see_related=list(hit.related),
        gene_type=hit.gene_type,
        organism=_ORGANISMS[wanted.species],
        aliases=list(hit.aliases),
        summary=text,
    )
    if wanted.entrez_id is not None and hit.entrez_id != wanted.entrez_id:
        facts["replaced"] = [wanted.entrez_id, hit.entrez_id]
    description = Description(
        gene_id=gene_id,
        text=text,
        source="mygene",
        source_version="v3",
        retrieved_at=now,
        kind="human",
        provenance=provenance_json(provenance),
    )
    return Answer(
        job,
        Gene(
            gene_id=gene_id,
            species=wanted.species,
            symbol=hit.symbol,
            entrez_id=hit.entrez_id,
            name=hit.name,
            gene_type=hit.gene_type,
            ensembl_ids=hit.ensembl_ids,
            aliases=hit.aliases,
        ),
        (description,) if text else (),
        Note(gene_id, "mygene", "v3", now, facts),
    )

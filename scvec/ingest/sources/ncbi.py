"""NCBI Gene through the E-utilities: document summaries by POST, names looked up by search.

https://www.ncbi.nlm.nih.gov/books/NBK25499/ (parameters), NBK25497 (limits and keys).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from scvec.ingest.ncbi_details import Details, parse_details
from scvec.ingest.ncbi_summaries import (
    FOUND,
    REPLACED,
    Summary,
    check_search,
    check_summaries,
    gene_called,
    gene_of_id,
    read_summaries,
    read_version,
)
from scvec.ingest.sources.facts import (
    TAXON_OF_SPECIES,
    clean_summary,
    facts_of,
    id_field,
    provenance_json,
)
from scvec.ingest.sources.http import HttpClient, HttpSource
from scvec.records import Answer, Failure, Job, Note, Wanted
from scvec.settings import ServiceSettings
from scvec.types import Description, Gene

__all__ = ["NcbiSource", "ncbi_requests"]

URL = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
#: Requests a second without a key and with one.
WITHOUT_KEY, WITH_KEY = 3.0, 10.0
#: Most ids of one request for summaries, full records (these are large) and names of one search.
SUMMARIES, RECORDS, NAMES = 500, 50, 100

# What may stand in a quoted phrase of an Entrez query without meaning anything there.
_ASKABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/()'+:#-]{0,79}")


class NcbiSource(HttpSource):
    """Answers jobs from NCBI Gene. An async context manager, and a source as ``harvest`` takes it.

    Genes with an Entrez id are asked by it; others by their symbol. Of a symbol the gene is taken whose
    official symbol it is; one that is only another name of a gene, or of two genes, has no answer.

    Parameters
    ----------
    wanted
        The genes of all jobs that will be asked.
    settings
        Key, address, ``tool`` and ``email`` that NCBI asks for.
    base_url, per_second
        Come before those of the settings. NCBI's own host gets 3 requests a second, 10 with a key, at most.
    details
        Whether the full records are read as well, for gene type, RefSeq status, lineage, sources, expression
        and orthologs. They are large: 50 genes a request.
    batch_size
        Genes in one request.
    pace
        Factor on waits between attempts.

    Raises
    ------
    InputError
        If the address is none.
    """

    name = "ncbi"

    def __init__(
        self,
        wanted: Mapping[Job, Wanted],
        settings: ServiceSettings | None = None,
        *,
        base_url: str | None = None,
        per_second: float | None = None,
        details: bool = False,
        batch_size: int | None = None,
        pace: float = 1.0,
    ) -> None:
        settings = settings or ServiceSettings()
        self._wanted = wanted
        self._settings = settings
        self._details = details
        most = RECORDS if details else SUMMARIES
        self.batch_size = max(1, min(batch_size or most, most))
        client = HttpClient.of(
            "ncbi",
            URL,
            settings,
            limit=WITH_KEY if settings.api_key else WITHOUT_KEY,
            base_url=base_url,
            per_second=per_second,
            pace=pace,
        )
        super().__init__(client)

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        """Return answers and failures; jobs in neither were left out of what came back."""
        failures: list[Failure] = []
        by_id: dict[Job, int] = {}
        by_name: dict[Job, Wanted] = {}
        for job in jobs:
            wanted = self._wanted[job]
            if wanted.entrez_id is not None:
                by_id[job] = wanted.entrez_id
            elif _ASKABLE.fullmatch(wanted.symbol):
                by_name[job] = wanted
            elif wanted.symbol:
                failures.append(Failure(job, "the name cannot be searched for: it is no gene symbol", True))
            else:
                failures.append(Failure(job, "NCBI is asked by Entrez id or symbol; this has neither", True))
        found = await self._search(by_name.values())
        ids = [*by_id.values(), *(i for some in found.values() for i in some)]
        summaries, version = await self._summaries(ids)
        chosen: dict[Job, tuple[int, Summary]] = {}
        for job, entrez_id in by_id.items():
            outcome = gene_of_id(self._wanted[job], entrez_id, summaries)
            _sort(job, entrez_id, outcome, chosen, failures)
        for job, wanted in by_name.items():
            outcome = gene_called(wanted, found[wanted.species], summaries)
            _sort(job, 0, outcome, chosen, failures)
        details: dict[int, Details] = {}
        if self._details and chosen:
            details = await self._records(s.entrez_id for _, s in chosen.values())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        answers = []
        for job, (asked, summary) in chosen.items():
            if self._details and summary.entrez_id not in details:
                continue  # it was left out
            more = details.get(summary.entrez_id)
            answers.append(_answer(job, self._wanted[job], asked, summary, more, version, now))
        return answers, failures

    async def _search(self, wanted: Iterable[Wanted]) -> dict[str, list[int]]:
        """Return per species the ids of live genes that have one of the names, as symbol or alias."""
        names: dict[str, list[str]] = {}
        for one in wanted:
            names.setdefault(one.species, []).append(one.symbol)
        found: dict[str, list[int]] = {}
        for species, symbols in names.items():
            symbols = list(dict.fromkeys(symbols))
            for first in range(0, len(symbols), NAMES):
                phrases = " OR ".join(f'"{s}"[Gene Name]' for s in symbols[first : first + NAMES])
                term = f"({phrases}) AND {TAXON_OF_SPECIES[species]}[Taxonomy ID] AND alive[prop]"
                found.setdefault(species, []).extend(await self._ids(term))
        return found

    async def _ids(self, term: str) -> list[int]:
        body = await self._post_json("esearch", {"term": term, "retmax": str(FOUND)}, check_search)
        return [i for i in map(id_field, body["esearchresult"]["idlist"][:FOUND]) if i is not None]

    async def _summaries(self, ids: Iterable[int]) -> tuple[dict[int, Summary | None], str]:
        """Return what is known of ids; None for one that NCBI does not have. Left out ones are missing.

        Ids that were replaced are asked again under the new one, which is among the results then.
        """
        found: dict[int, Summary | None] = {}
        version = ""
        todo = list(dict.fromkeys(ids))
        for _round in range(REPLACED + 1):
            for first in range(0, len(todo), SUMMARIES):
                some = todo[first : first + SUMMARIES]
                form = {"id": ",".join(map(str, some)), "version": "2.0"}
                body = await self._post_json("esummary", form, check_summaries)
                found.update(read_summaries(body, some))
                version = read_version(body)
            replaced = {s.current_id for s in found.values() if s is not None and s.current_id}
            todo = [i for i in sorted(filter(None, replaced)) if i not in found]
            if not todo:
                break
        return found, version

    async def _records(self, ids: Iterable[int]) -> dict[int, Details]:
        asked = list(dict.fromkeys(ids))
        found: dict[int, Details] = {}
        for first in range(0, len(asked), RECORDS):
            some = asked[first : first + RECORDS]
            form = {**self._form(), "id": ",".join(map(str, some)), "retmode": "xml"}
            found.update(await self._client.post_read("efetch.fcgi", form, parse_details))
        return {i: found[i] for i in asked if i in found}

    async def _post_json(
        self, tool: str, form: Mapping[str, str], check: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        form = {**self._form(), **form, "retmode": "json"}
        return await self._client.post_json(f"{tool}.fcgi", form, dict, check)

    def _form(self) -> dict[str, str]:
        form = {"db": "gene", "tool": self._settings.tool or "scvec"}
        if self._settings.email:
            form["email"] = self._settings.email
        if self._settings.api_key:
            form["api_key"] = self._settings.api_key.reveal()
        return form


def ncbi_requests(wanted: Sequence[Wanted], details: bool = False) -> int:
    """Return how many requests genes take where each is answered at once."""
    batch = RECORDS if details else SUMMARIES
    total = 0
    for first in range(0, len(wanted), batch):
        some = wanted[first : first + batch]
        named: dict[str, set[str]] = {}
        for one in some:
            if one.entrez_id is None and _ASKABLE.fullmatch(one.symbol):
                named.setdefault(one.species, set()).add(one.symbol)
        total += sum(-(-len(symbols) // NAMES) for symbols in named.values())
        if named or any(one.entrez_id is not None for one in some):
            total += 2 if details else 1
    return total


def _sort(
    job: Job,
    asked: int,
    outcome: Summary | str | None,
    chosen: dict[Job, tuple[int, Summary]],
    failures: list[Failure],
) -> None:
    if isinstance(outcome, Summary):
        chosen[job] = (asked, outcome)
    elif outcome is not None:
        failures.append(Failure(job, outcome, final=True))


def _answer(
    job: Job,
    wanted: Wanted,
    asked: int,
    summary: Summary,
    more: Details | None,
    version: str,
    now: str,
) -> Answer:
    more = more or Details(summary.entrez_id)
    gene_id = f"entrez:{summary.entrez_id}" if job.gene_id.startswith("ask:") else wanted.gene_id
    text, provenance = clean_summary(summary.text)
    facts = facts_of(
        official_symbol=summary.official_symbol or summary.symbol,
        official_full_name=summary.official_name or summary.name,
        primary_source=more.primary_source,
        see_related=list(dict.fromkeys([*more.see_related, *summary.related])),
        gene_type=more.gene_type,
        refseq_status=more.refseq_status,
        organism=summary.organism,
        lineage=more.lineage,
        aliases=list(summary.aliases),
        summary=text,
        annotation_information=more.annotation_information,
        expression=more.expression,
        orthologs=[dict(o) for o in more.orthologs],
    )
    if asked and asked != summary.entrez_id:
        facts["replaced"] = [asked, summary.entrez_id]
    descriptions = (
        Description(
            gene_id=gene_id,
            text=text,
            source="ncbi",
            source_version=version,
            retrieved_at=now,
            kind="human",
            provenance=provenance_json(provenance),
        ),
    )
    return Answer(
        job,
        Gene(
            gene_id=gene_id,
            species=wanted.species,
            symbol=summary.symbol,
            entrez_id=summary.entrez_id,
            name=summary.name,
            gene_type=more.gene_type,
            ensembl_ids=more.ensembl_ids,
            aliases=summary.aliases,
        ),
        descriptions if text else (),
        Note(gene_id, "ncbi", version, now, facts),
    )

"""NCBI Gene through the E-utilities: document summaries by id, and search by name.

Parameters: https://www.ncbi.nlm.nih.gov/books/NBK25499/; limits and keys: NBK25497.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scvec.base.settings import ServiceSettings
from scvec.base.types import Answer, Failure, Job, Wanted
from scvec.ingest.sources import gene_source
from scvec.ingest.sources.facts import (
    SPECIES_OF_TAXON,
    TAXON_OF_SPECIES,
    id_field,
    text_field,
    texts_field,
)
from scvec.ingest.sources.http import GeneFound, GeneSource, in_parts
from scvec.ingest.sources.retry import ServiceError

__all__ = ["NcbiSource"]

#: Largest number of ids in the answer to a search.
FOUND = 5000
#: Largest number of replacements of an id that are followed.
REPLACED = 3


@dataclass(frozen=True, slots=True)
class Summary:
    """A document summary, checked."""

    entrez_id: int
    symbol: str
    name: str
    official_symbol: str
    official_name: str
    taxon: int
    organism: str
    aliases: tuple[str, ...]
    text: str
    related: tuple[str, ...]
    current_id: int | None
    live: bool

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Summary | None:
        """Read an entry of esummary's ``result``; return None if id, taxon or symbol are missing."""
        organism = entry.get("organism")
        organism = organism if isinstance(organism, dict) else {}
        entrez_id = id_field(entry.get("uid"))
        taxon = id_field(organism.get("taxid")) or id_field(entry.get("taxid"))
        official = text_field(entry.get("nomenclaturesymbol"), 80)
        symbol = official or text_field(entry.get("name"), 80)
        if entrez_id is None or taxon is None or not symbol:
            return None
        common = text_field(organism.get("commonname"), 80)
        scientific = text_field(organism.get("scientificname") or entry.get("orgname"), 120)
        official_name = text_field(entry.get("nomenclaturename"))
        text = entry.get("summary")
        return cls(
            entrez_id=entrez_id,
            symbol=symbol,
            name=official_name or text_field(entry.get("description")),
            official_symbol=official,
            official_name=official_name,
            taxon=taxon,
            organism=f"{scientific} ({common})" if scientific and common else scientific or common,
            aliases=texts_field(text_field(entry.get("otheraliases"), 8000).split(", "), 80),
            text=text if isinstance(text, str) else "",
            related=tuple(f"MIM:{mim}" for mim in texts_field(entry.get("mim") or [], 20)),
            current_id=id_field(entry.get("currentid")),
            live=entry.get("status") in ("", 0, "0", None),
        )

    def found(self) -> GeneFound:
        """Return the gene with its facts."""
        return GeneFound(
            symbol=self.symbol,
            entrez_id=self.entrez_id,
            name=self.name,
            aliases=self.aliases,
            text=self.text,
            facts={
                "official_symbol": self.official_symbol or self.symbol,
                "official_full_name": self.official_name or self.name,
                "organism": self.organism,
                "see_related": list(dict.fromkeys(self.related)),
            },
        )


def check_search(body: dict[str, Any]) -> None:
    """Raise ServiceError if an answer with status 200 does not have the complete list of ids."""
    result = body.get("esearchresult")
    result = result if isinstance(result, dict) else {}
    if "error" in body or "ERROR" in result:
        raise _error(body.get("error") or result.get("ERROR"))
    listed = result.get("idlist")
    if not isinstance(listed, list) or len(listed) < min(id_field(result.get("count")) or 0, FOUND):
        raise _unreadable("search")


def check_summaries(body: dict[str, Any]) -> None:
    """Raise ServiceError if an answer with status 200 has no summaries."""
    for key in ("error", "esummaryresult"):
        if key in body:
            raise _error(body[key])
    if not isinstance(body.get("result"), dict):
        raise _unreadable("request for summaries")


def _error(said: object) -> ServiceError:
    text = "; ".join(texts_field(said, 160, 3)) or "no reason given"
    # Errors about ids are permanent; others ("Search Backend failed") are transient.
    kind = re.search(r"too many|maximum number|invalid uid|invalid id|empty id", text, re.IGNORECASE)
    return ServiceError("rejected" if kind else "transient", f"ncbi answered with an error: {text}")


def _unreadable(what: str) -> ServiceError:
    return ServiceError("transient", f"the answer of ncbi to a {what} cannot be read")


def read_summaries(body: Mapping[str, Any], asked: Iterable[int]) -> dict[int, Summary | None]:
    """Return id -> summary, None for ids that NCBI does not have; ids without an answer are missing."""
    found: dict[int, Summary | None] = {}
    for entrez_id in asked:
        entry = body["result"].get(str(entrez_id))
        # Compare the id inside the entry too, because the key alone may be wrong.
        if not isinstance(entry, dict) or id_field(entry.get("uid")) != entrez_id:
            continue
        if "error" in entry:
            if "cannot get document summary" in text_field(entry["error"]).lower():
                found[entrez_id] = None
            continue
        summary = Summary.of(entry)
        if summary is not None:
            found[entrez_id] = summary
    return found


def read_version(body: Mapping[str, Any]) -> str:
    """Return the version of esummary in an answer."""
    header = body.get("header")
    version = text_field(header.get("version"), 20) if isinstance(header, dict) else ""
    return f"esummary {version}" if re.fullmatch(r"[0-9.]+", version) else "esummary"


def gene_of_id(
    wanted: Wanted, entrez_id: int, summaries: Mapping[int, Summary | None]
) -> Summary | str | None:
    """Return the gene, the reason why there is none, or None if the answers did not include it."""
    seen: list[int] = []
    at = entrez_id
    while at not in seen and len(seen) <= REPLACED:
        seen.append(at)
        if at not in summaries:
            return None
        summary = summaries[at]
        if summary is None:
            return f"NCBI has no gene {at}"
        if summary.current_id:
            at = summary.current_id
            continue
        if not summary.live:
            return f"NCBI has discontinued gene {at}"
        if SPECIES_OF_TAXON.get(summary.taxon) != wanted.species:
            return f"gene {at} belongs to {summary.organism or summary.taxon}, not to {wanted.species}"
        return summary
    return f"NCBI has replaced gene {entrez_id} more than {REPLACED} times"


def gene_called(
    wanted: Wanted, candidates: Iterable[int], summaries: Mapping[int, Summary | None]
) -> Summary | str | None:
    """Return the gene whose symbol is the name, or the reason why there is none.

    Return None if the answers did not include a candidate.
    """
    name = wanted.symbol
    ids = list(dict.fromkeys(candidates))
    if any(i not in summaries for i in ids):
        return None  # a missing candidate may be the gene, or a second gene with this symbol
    found = filter(None, (summaries[i] for i in ids))
    genes = [s for s in found if s.live and not s.current_id]
    genes = [g for g in genes if SPECIES_OF_TAXON.get(g.taxon) == wanted.species]
    same = [g for g in genes if g.symbol == name] or [
        g for g in genes if g.symbol.casefold() == name.casefold()
    ]
    if len(same) == 1:
        return same[0]
    if same:
        return f"{len(same)} genes have the symbol {name}: {', '.join(str(g.entrez_id) for g in same)}"
    others = [g for g in genes if name.casefold() in (a.casefold() for a in g.aliases)]
    if others:
        listed = ", ".join(f"{g.symbol} ({g.entrez_id})" for g in others[:5])
        return f"{name} is not an official symbol; it is an alias of {listed}"
    return f"NCBI has no {wanted.species} gene with the name {name}"


#: Largest number of ids in a request for summaries, and of names in a search.
SUMMARIES, NAMES = 500, 100
# Names that a quoted phrase of an Entrez query can hold without special meaning.
_ASKABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/()'+:#-]{0,79}")


@gene_source("ncbi")
class NcbiSource(GeneSource):
    """Looks up genes in NCBI Gene by Entrez id, or by symbol if a gene has no Entrez id.

    A symbol must be the official symbol of one gene. Aliases, and symbols of several genes, have no answer.
    NCBI's own host gets 3 requests a second, or 10 with a key.
    """

    url = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"

    most = SUMMARIES

    @classmethod
    def per_second_allowed(cls, settings: ServiceSettings) -> float:
        return 10.0 if settings.api_key else 3.0

    @classmethod
    def n_requests(cls, wanted: Sequence[Wanted]) -> int:
        batch, total = cls.most, 0
        for first in range(0, len(wanted), batch):
            some = wanted[first : first + batch]
            named: dict[str, set[str]] = {}
            for one in some:
                if one.entrez_id is None and _ASKABLE.fullmatch(one.symbol):
                    named.setdefault(one.species, set()).add(one.symbol)
            total += sum(-(-len(symbols) // NAMES) for symbols in named.values())
            if named or any(one.entrez_id is not None for one in some):
                total += 1
        return total

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        failures: list[Failure] = []
        by_id: dict[Job, int] = {}
        by_name: dict[Job, Wanted] = {}
        for job in jobs:
            wanted = self.wanted[job]
            if wanted.entrez_id is not None:
                by_id[job] = wanted.entrez_id
            elif _ASKABLE.fullmatch(wanted.symbol):
                by_name[job] = wanted
            elif wanted.symbol:
                failures.append(
                    Failure(job, "NCBI cannot search for the name: it is not a gene symbol", True)
                )
            else:
                failures.append(
                    Failure(job, "NCBI needs an Entrez id or a symbol; the gene has neither", True)
                )
        found = await self._search(by_name.values())
        ids = [*by_id.values(), *(i for some in found.values() for i in some)]
        summaries, version = await self._summaries(ids)
        outcomes = {job: gene_of_id(self.wanted[job], i, summaries) for job, i in by_id.items()}
        outcomes |= {job: gene_called(w, found[w.species], summaries) for job, w in by_name.items()}
        failures += [Failure(job, why, final=True) for job, why in outcomes.items() if isinstance(why, str)]
        chosen = {job: summary for job, summary in outcomes.items() if isinstance(summary, Summary)}
        answers = [
            summary.found().answer(job, self.wanted[job], version, by_id.get(job))
            for job, summary in chosen.items()
        ]
        return answers, failures

    async def _search(self, wanted: Iterable[Wanted]) -> dict[str, list[int]]:
        """Return species -> ids of live genes that have one of the names as symbol or alias."""
        names: dict[str, list[str]] = {}
        for one in wanted:
            names.setdefault(one.species, []).append(one.symbol)
        found: dict[str, list[int]] = {species: [] for species in names}
        for species, symbols in names.items():
            for some in in_parts(symbols, NAMES):
                phrases = " OR ".join(f'"{s}"[Gene Name]' for s in some)
                term = f"({phrases}) AND {TAXON_OF_SPECIES[species]}[Taxonomy ID] AND alive[prop]"
                found[species] += await self._ids(term)
        return found

    async def _ids(self, term: str) -> list[int]:
        body = await self._post_json("esearch", {"term": term, "retmax": str(FOUND)}, check_search)
        return [i for i in map(id_field, body["esearchresult"]["idlist"][:FOUND]) if i is not None]

    async def _summaries(self, ids: Iterable[int]) -> tuple[dict[int, Summary | None], str]:
        """Return id -> summary, and the version; None for ids that NCBI does not have.

        Ids without an answer are missing. If an id was replaced, the result also has the new id.
        """
        found: dict[int, Summary | None] = {}
        version = ""
        todo = list(ids)
        for _round in range(REPLACED + 1):
            for some in in_parts(todo, self.most):
                form = {"id": ",".join(map(str, some)), "version": "2.0"}
                body = await self._post_json("esummary", form, check_summaries)
                found.update(read_summaries(body, some))
                version = read_version(body)
            replaced = {s.current_id for s in found.values() if s is not None and s.current_id}
            todo = [i for i in sorted(filter(None, replaced)) if i not in found]
            if not todo:
                break
        return found, version

    async def _post_json(
        self, tool: str, form: Mapping[str, str], check: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        form = {**self._form(), **form, "retmode": "json"}
        return await self.client.post_json(f"{tool}.fcgi", form, dict, check)

    def _form(self) -> dict[str, str]:
        form = {"db": "gene", "tool": self.settings.tool or "scvec"}
        if self.settings.email:
            form["email"] = self.settings.email
        if self.settings.api_key:
            form["api_key"] = self.settings.api_key.reveal()
        return form

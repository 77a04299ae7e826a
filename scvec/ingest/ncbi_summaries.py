"""What NCBI's searches and document summaries say, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scvec.ingest.sources.facts import SPECIES_OF_TAXON, id_field, text_field, texts_field
from scvec.ingest.sources.retry import ServiceError
from scvec.records import Wanted

__all__ = [
    "FOUND",
    "REPLACED",
    "Summary",
    "check_search",
    "check_summaries",
    "gene_called",
    "gene_of_id",
    "read_summaries",
    "read_version",
]

#: Ids that one search may find.
FOUND = 5000
#: Times an id is followed to the one that replaced it.
REPLACED = 3


@dataclass(frozen=True, slots=True)
class Summary:
    """What a document summary says, checked."""

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
        """Read an entry of esummary's ``result``; None if it lacks what makes it a gene."""
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


def check_search(body: dict[str, Any]) -> None:
    """Raise if a body under status 200 is no list of ids, or not all of it."""
    result = body.get("esearchresult")
    result = result if isinstance(result, dict) else {}
    if "error" in body or "ERROR" in result:
        raise _error(body.get("error") or result.get("ERROR"))
    listed = result.get("idlist")
    if not isinstance(listed, list) or len(listed) < min(id_field(result.get("count")) or 0, FOUND):
        raise _unreadable("search")


def check_summaries(body: dict[str, Any]) -> None:
    """Raise if a body under status 200 holds no summaries."""
    for key in ("error", "esummaryresult"):
        if key in body:
            raise _error(body[key])
    if not isinstance(body.get("result"), dict):
        raise _unreadable("question for summaries")


def _error(said: object) -> ServiceError:
    text = "; ".join(texts_field(said, 160, 3)) or "no reason given"
    # Errors about the ids come again; the others ("Search Backend failed") pass.
    kind = re.search(r"too many|maximum number|invalid uid|invalid id|empty id", text, re.IGNORECASE)
    return ServiceError("rejected" if kind else "transient", f"ncbi answered with an error: {text}")


def _unreadable(what: str) -> ServiceError:
    return ServiceError("transient", f"the answer of ncbi to a {what} cannot be read")


def read_summaries(body: Mapping[str, Any], asked: Iterable[int]) -> dict[int, Summary | None]:
    found: dict[int, Summary | None] = {}
    for entrez_id in asked:
        entry = body["result"].get(str(entrez_id))
        # Matched by the id inside the entry: the key alone is not trusted.
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
    header = body.get("header")
    version = text_field(header.get("version"), 20) if isinstance(header, dict) else ""
    return f"esummary {version}" if re.fullmatch(r"[0-9.]+", version) else "esummary"


def gene_of_id(
    wanted: Wanted, entrez_id: int, summaries: Mapping[int, Summary | None]
) -> Summary | str | None:
    """Return the gene, why there is none, or None if what came back does not say."""
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
            return f"gene {at} is of {summary.organism or summary.taxon}, not of {wanted.species}"
        return summary
    return f"NCBI has replaced gene {entrez_id} again and again"


def gene_called(
    wanted: Wanted, candidates: Iterable[int], summaries: Mapping[int, Summary | None]
) -> Summary | str | None:
    """Return the gene that has the name as its symbol, why there is none, or None if that is not known."""
    name = wanted.symbol
    ids = list(dict.fromkeys(candidates))
    if any(i not in summaries for i in ids):
        return None  # the one that is missing might be it, or a second
    genes = [s for s in (summaries[i] for i in ids) if s is not None and s.live and not s.current_id]
    genes = [g for g in genes if SPECIES_OF_TAXON.get(g.taxon) == wanted.species]
    same = [g for g in genes if g.symbol == name] or [
        g for g in genes if g.symbol.casefold() == name.casefold()
    ]
    if len(same) == 1:
        return same[0]
    if same:
        return f"{len(same)} genes are called {name}: {', '.join(str(g.entrez_id) for g in same)}"
    others = [g for g in genes if name.casefold() in (a.casefold() for a in g.aliases)]
    if others:
        listed = ", ".join(f"{g.symbol} ({g.entrez_id})" for g in others[:5])
        return f"{name} is no gene's symbol; it is another name of {listed}"
    return f"NCBI knows no gene of {wanted.species} called {name}"

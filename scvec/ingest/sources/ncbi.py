"""NCBI Gene through the E-utilities: document summaries by POST, names looked up by search.

https://www.ncbi.nlm.nih.gov/books/NBK25499/ (parameters), NBK25497 (limits and keys).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from scvec.base.records import Answer, Failure, Job, Note, Wanted
from scvec.base.settings import ServiceSettings
from scvec.base.types import Description, Gene
from scvec.ingest.sources.facts import (
    SPECIES_OF_TAXON,
    TAXON_OF_SPECIES,
    clean_summary,
    facts_of,
    id_field,
    provenance_json,
    text_field,
    texts_field,
)
from scvec.ingest.sources.http import HttpClient, HttpSource
from scvec.ingest.sources.retry import ServiceError

__all__ = ["NcbiSource", "ncbi_requests", "parse_details"]

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


#: Databases that name the genes of their species.
_AUTHORITIES = ("HGNC", "MGI")
#: Most orthologs that are kept of a gene.
_MOST = 20


@dataclass(frozen=True, slots=True)
class Details:
    """Facts of one full record; empty where it has none.

    Attributes
    ----------
    primary_source
        The authority's id, like ``HGNC:7739``.
    see_related
        Ids in other databases, like ``MIM:162280``.
    orthologs
        ``entrez_id``, ``symbol`` and ``organism`` of each.
    """

    entrez_id: int
    gene_type: str = ""
    refseq_status: str = ""
    lineage: str = ""
    primary_source: str = ""
    see_related: tuple[str, ...] = ()
    ensembl_ids: tuple[str, ...] = ()
    annotation_information: str = ""
    expression: str = ""
    orthologs: tuple[dict[str, Any], ...] = ()


def parse_details(body: bytes) -> dict[int, Details]:
    """Read an Entrezgene-Set gene by gene.

    Raises
    ------
    ServiceError
        If the body is something else, is cut off, or defines entities.
    """
    from lxml import etree

    # The real ones name a DTD and define nothing. No parser option is relied on for what nobody needs.
    if b"<!ENTITY" in body:
        raise ServiceError("transient", "the record of ncbi defines entities; it is not read")
    found: dict[int, Details] = {}
    try:
        events = etree.iterparse(
            io.BytesIO(body),
            events=("start", "end"),
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            dtd_validation=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )
        root = None
        for event, element in events:
            if root is None:
                root = element
                if element.tag != "Entrezgene-Set":
                    raise ServiceError("transient", _other(body))
            elif event == "end" and element.tag == "Entrezgene" and element.getparent() is root:
                details = _details(element)
                if details is not None:
                    found[details.entrez_id] = details
                element.clear()
                while element.getprevious() is not None:
                    del root[0]
    except etree.XMLSyntaxError:
        raise ServiceError("transient", _other(body)) from None
    return found


def _other(body: bytes) -> str:
    shown = text_field(body[:2000].decode("utf-8", "replace"), 100)
    return "the records of ncbi cannot be read" + (f": {shown}" if b"rror" in body[:2000] else "")


def _details(gene: Any) -> Details | None:
    entrez_id = id_field(_text(gene, "Entrezgene_track-info/Gene-track/Gene-track_geneid"))
    if entrez_id is None:
        return None
    kind = gene.find("Entrezgene_type")
    tags = list(_tags(gene.find("Entrezgene_gene/Gene-ref/Gene-ref_db")))
    primary = next((_named(db, value) for db, value in tags if db in _AUTHORITIES), "")
    related = (
        f"{db}:{value}" for db, value in tags if db not in _AUTHORITIES or _named(db, value) != primary
    )
    lineage = "Entrezgene_source/BioSource/BioSource_org/Org-ref/Org-ref_orgname/OrgName/OrgName_lineage"
    comments: dict[str, Any] = {}
    for comment in gene.iterfind("Entrezgene_comments/Gene-commentary"):
        comments.setdefault(_text(comment, "Gene-commentary_heading").lower(), comment)
    status = comments.get("refseq status")
    annotation = comments.get("annotation information")
    expression = comments.get("representative expression")
    return Details(
        entrez_id,
        gene_type="" if kind is None else text_field(kind.get("value"), 40),
        refseq_status="" if status is None else _text(status, "Gene-commentary_label"),
        lineage=_text(gene, lineage, 1000),
        primary_source=primary,
        see_related=texts_field(list(related), 80, 50),
        ensembl_ids=texts_field([v for db, v in tags if db == "Ensembl" and v.startswith("ENS")], 40, 20),
        annotation_information="" if annotation is None else _labelled(annotation),
        expression="" if expression is None else _expression(expression),
        orthologs=tuple(_orthologs(comments.get("orthologs from annotation pipeline"), entrez_id)),
    )


def _text(element: Any, path: str, longest: int = 400) -> str:
    return text_field(element.findtext(path), longest)


def _tags(parent: Any) -> Iterator[tuple[str, str]]:
    """Yield database and id of the Dbtag elements of a parent."""
    for tag in parent.iterfind("Dbtag") if parent is not None else ():
        db = _text(tag, "Dbtag_db", 40)
        value = _text(tag, "Dbtag_tag/Object-id/Object-id_str", 80) or _text(
            tag, "Dbtag_tag/Object-id/Object-id_id", 80
        )
        if db and value:
            yield db, value


def _named(db: str, value: str) -> str:
    # Old records have 7739, new ones HGNC:7739.
    return value if value.startswith(f"{db}:") else f"{db}:{value}"


def _labelled(comment: Any) -> str:
    """Return what commentaries inside one say, as ``label: text``."""
    parts = []
    for inner in comment.iter("Gene-commentary"):
        label, text = _text(inner, "Gene-commentary_label", 80), _text(inner, "Gene-commentary_text", 1000)
        if text:
            parts.append(f"{label}: {text}" if label else text)
    return text_field("; ".join(dict.fromkeys(parts)), 2000)


def _expression(comment: Any) -> str:
    for inner in comment.iterfind("Gene-commentary_comment/Gene-commentary"):
        if _text(inner, "Gene-commentary_label").lower() == "text summary":
            return _text(inner, "Gene-commentary_text", 1000)
    return ""


def _orthologs(comment: Any, own: int) -> Iterator[dict[str, Any]]:
    path = "Gene-commentary_comment/Gene-commentary/Gene-commentary_source/Other-source"
    n = 0
    for source in comment.iterfind(path) if comment is not None else ():
        for db, value in _tags(source.find("Other-source_src")):
            other = id_field(value)
            if db == "GeneID" and other is not None and other != own and n < _MOST:
                n += 1
                yield {
                    "entrez_id": other,
                    "symbol": _text(source, "Other-source_pre-text", 80),
                    "organism": _text(source, "Other-source_anchor", 120),
                }


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

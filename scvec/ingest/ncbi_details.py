"""What NCBI's full gene records (efetch XML) say beyond the summaries."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scvec.ingest.sources.facts import id_field, text_field, texts_field
from scvec.ingest.sources.retry import ServiceError

__all__ = ["Details", "parse_details"]

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

"""Check and clean texts and fields of live sources, and move provenance out of texts."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from scvec.base.species import known_species

__all__ = [
    "FACTS",
    "SPECIES_OF_TAXON",
    "TAXON_OF_SPECIES",
    "clean_summary",
    "clean_text",
    "facts_of",
    "id_field",
    "provenance_json",
    "text_field",
    "texts_field",
    "with_prefix",
]

#: Facts of a gene, with the names and the order of the gene page at NCBI.
FACTS = (
    "official_symbol",
    "official_full_name",
    "primary_source",
    "see_related",
    "gene_type",
    "organism",
    "aliases",
    "summary",
)
TAXON_OF_SPECIES = {key: one.taxon for key, one in known_species().items()}
SPECIES_OF_TAXON = {taxon: species for species, taxon in TAXON_OF_SPECIES.items()}

#: Largest number of characters of a text.
LONGEST = 20_000
#: Largest number of entries of a list.
MOST = 500

_DATE = r"(?:(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? )?\d{4}"
_WHO = (
    r"refseq|omim|mgi|rgd|hgnc|zfin|sgd|flybase|wormbase|xenbase|alliance of genome resources|"
    r"uniprotkb/swiss-prot function"
)
# Tags in brackets: the provider of the text and the date, or its PubMed ids. Of the full stops before and
# after a tag, one is kept.
_PUBMED = r"(?:pubmed|pmid):? ?"
_TAG = re.compile(
    r"(?P<before>\.?) ?\[ ?"
    r"(?:(?:provided|supplied) by (?P<who>[^\[\],]{1,80})(?:, ?(?P<when>[^\[\]]{1,40}))?"
    rf"|(?P<name>{_WHO})(?:, ?(?P<date>{_DATE}))?"
    rf"|(?P<pubmed>{_PUBMED}\d{{1,9}}(?:(?:, ?|; ?| )(?:{_PUBMED})?\d{{1,9}}){{0,200}})) ?\] ?(?P<after>\.?)",
    re.IGNORECASE,
)
_INLINE = "a|abbr|b|big|code|em|font|i|img|s|script|small|span|strong|style|sub|sup|tt|u"
_BLOCK = "br|div|h[1-6]|hr|li|ol|p|pre|table|tbody|td|th|tr|ul"
_ATTRIBUTES = (
    r"""(?:\s{1,9}[a-zA-Z-]{1,40}\s{0,9}=\s{0,9}(?:"[^"<>]{0,400}"|'[^'<>]{0,400}'|[^\s"'<>]{1,400}))"""
)
_HIDDEN = re.compile(
    r"<(script|style)\b[^<>]{0,400}>.{0,1000}?</\1>|<!--.{0,1000}?-->|\x1b\[[0-9;]{0,40}[A-Za-z]", re.I | re.S
)
_SUSPECT = re.compile(r"[<>&\[\]]|  |^ | $")
_MARKUP = re.compile(rf"</?(?:(?P<block>{_BLOCK})|{_INLINE}){_ATTRIBUTES}{{0,20}}\s{{0,9}}/?>", re.IGNORECASE)
#: Number of cleaning rounds after which a text counts as malicious and loses all brackets.
_ROUNDS = 8
_BRACKETS = str.maketrans(dict.fromkeys("<>[]&"))


def clean_text(text: object, longest: int = LONGEST) -> str:
    """Return a text in NFC without control characters, HTML and extra white space; "" if it is not a text.

    Cleaning a clean text changes nothing. The function never raises.
    """
    return clean_summary(text, longest, tags=False)[0]


def clean_summary(
    text: object, longest: int = LONGEST, *, tags: bool = True
) -> tuple[str, dict[str, str | list[str]]]:
    """Return a cleaned text, and the provenance from its tags.

    ``[provided by RefSeq, Jul 2008]`` becomes ``{"provided_by": "RefSeq", "provided_at": "Jul 2008"}``.
    Further providers become ``also_provided_by``, and ``[PubMed 123]`` becomes ``pubmed``.

    Parameters
    ----------
    text
        The text.
    longest
        Longer texts are cut to this number of characters.
    tags
        True to remove the tags from the text.
    """
    if not isinstance(text, str):
        return "", {}
    if len(text) <= longest and text.isascii() and text.isprintable() and not _SUSPECT.search(text):
        return text, {}
    text = text[: 4 * longest]
    found: list[re.Match[str]] = []

    def collect(match: re.Match[str]) -> str:
        found.append(match)
        dot = "." if match["before"] or match["after"] else ""
        following = match.string[match.end() : match.end() + 1]
        return dot + (" " if following.isalnum() else "")

    for n_round in range(10_000):
        before = text
        text = html.unescape(text)
        text = _HIDDEN.sub(" ", text)
        text = _MARKUP.sub(lambda m: " " if m["block"] else "", text)
        text = unicodedata.normalize("NFC", text if text.isprintable() else "".join(map(_plain, text)))
        text = " ".join(text.split())
        if tags:
            text = " ".join(_TAG.sub(collect, text).split())
        if len(text) > longest:
            text = text[:longest].rstrip()
        if n_round >= _ROUNDS:
            text = text.translate(_BRACKETS)
        if text == before:
            break
    return text, _provenance(found)


def provenance_json(provenance: Mapping[str, Any]) -> str:
    """Return provenance as JSON with sorted keys, or "" if it is empty."""
    kept = {k: v for k, v in provenance.items() if v not in ("", None, [], {})}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False) if kept else ""


def facts_of(**facts: Any) -> dict[str, Any]:
    """Return the facts that are not empty, in the order of :data:`FACTS`; refuse other names."""
    unknown = set(facts) - set(FACTS)
    if unknown:
        raise ValueError(f"unknown facts: {', '.join(sorted(unknown))}")
    return {k: facts[k] for k in FACTS if facts.get(k) not in ("", None, (), [], {})}


def text_field(value: object, longest: int = 400) -> str:
    """Return a field of an answer as text; "" if it is ``-``, or neither text nor number."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        value = str(value) if abs(value) < 1e18 else ""
    text = clean_text(value, longest)
    return "" if text == "-" else text


def texts_field(value: object, longest: int = 400, most: int = MOST) -> tuple[str, ...]:
    """Return the distinct texts in a field, which may be a text or a list of texts, in order."""
    values: Iterable[object] = value[: 4 * most] if isinstance(value, list | tuple) else (value,)
    return tuple(dict.fromkeys(t for t in (text_field(v, longest) for v in values) if t))[:most]


def id_field(value: object) -> int | None:
    """Return a positive id from a number or a text of digits; None for other values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    return value if isinstance(value, int) and 0 < value < 10**12 else None


def with_prefix(db: str, value: str) -> str:
    """Return an id with the name of its database. Old records have 7739, new ones HGNC:7739."""
    return value if value.startswith(f"{db}:") else f"{db}:{value}"


def _plain(character: str) -> str:
    if character.isprintable():
        return character
    # Other characters are white space or invisible: control characters, marks of writing direction, and
    # halves of surrogate pairs, which JSON allows but UTF-8 does not.
    return " " if character.isspace() else ""


def _provenance(found: list[re.Match[str]]) -> dict[str, str | list[str]]:
    by: list[tuple[str, str]] = []
    pubmed: list[str] = []
    for match in found:
        who = (match["who"] or match["name"] or "").strip()
        if who:
            by.append((who, (match["when"] or match["date"] or "").strip()))
        else:
            pubmed += re.findall(r"\d{1,9}", match["pubmed"] or "")
    by = list(dict.fromkeys(by))
    provenance: dict[str, str | list[str]] = {}
    if by:
        provenance["provided_by"], date = by[0]
        if date:
            provenance["provided_at"] = date
    if by[1:]:
        provenance["also_provided_by"] = [", ".join(filter(None, one)) for one in by[1:]][:20]
    if pubmed:
        provenance["pubmed"] = list(dict.fromkeys(pubmed))[:200]
    return provenance

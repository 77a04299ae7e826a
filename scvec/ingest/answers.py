"""Whether what a language model wrote may be kept as the description of a gene."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable

from scvec.secrets import redact
from scvec.types import Species

__all__ = ["LONGEST", "SHORTEST", "UnfitError", "check_answer"]

#: Characters of a description.
SHORTEST, LONGEST = 60, 1200
#: Characters of an answer that are looked at.
MOST = 20_000
FIELDS = ("symbol", "description")


class UnfitError(ValueError):
    """An answer that is not to be kept. The message says why, in our own words only."""


_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]*://|\bwww\.|\bdoi\b|\b(?:mailto|javascript|data):|\S@\S+\.\w|"
    r"\b[a-z0-9-]+\.(?:com|org|net|gov|edu|info|html?|php|io|ai|dev|app)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"`|\*\*|__|^\s*#{1,6}\s|^\s*[-*•·]\s|^\s*\d{1,2}[.)]\s|\]\(|</?[a-z!]|<\||&#?\w{1,8};|[{}\\|]|~~",
    re.IGNORECASE | re.MULTILINE,
)
_COMMANDS = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.]{0,40}\b(?:previous|prior|above|earlier|all|any|"
    r"rules?|instructions?|prompts?)\b|\binstructions?\b|\bsystem prompt\b|\byou(?:r|rs|rself|'re)?\b|"
    r"\bplease\b|\bclick\b|\bdownload\b|\bsubscribe\b|\bpassword|\bcredentials?\b|\bapi[ _-]?keys?\b|"
    r"^\s*(?:system|user|assistant|human|ai)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
# "I" is a numeral in this field (type I collagen, polymerase I): only where it can be nothing else.
_ITSELF = re.compile(
    r"\b(?:as|being) an? (?:ai|artificial|large language|language)\b|\blanguage model\b|\bchatbot\b|"
    r"\bI'(?:m|ve|ll|d)\b|\bI (?:am|apologi[sz]e|cannot|can't|don't|do not|was unable|hope)\b|"
    r"(?:^|[.!?]\s)I\s|\bsorry\b|\bmy (?:knowledge|training|data)\b|\bknowledge cut-?off\b|\bJSON\b|"
    r"\bthe (?:provided|given|supplied) (?:facts|data|information|object)\b|"
    r"(?:^|[.!?]\s)(?:here is|here's|sure|certainly)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:no|unable|n/?a|none|null|unknown)\b|\b(?:cannot|can't|unable to) (?:help|assist|provide|fulfil)",
    re.IGNORECASE,
)
_OWN: dict[Species, re.Pattern[str]] = {
    "human": re.compile(r"\b(?:humans?|Homo sapiens|patients?)\b", re.IGNORECASE),
    "mouse": re.compile(r"\b(?:mouse|mice|murine|Mus musculus|rodents?)\b", re.IGNORECASE),
}
_OTHER: dict[Species, str] = {"human": r"mouse|mice|murine|Mus musculus|", "mouse": r"humans?|Homo sapiens|"}
_STRANGERS = (
    r"rats?|Rattus norvegicus|zebrafish|Danio rerio|Drosophila|fruit fly|Caenorhabditis|C\. elegans|yeast|"
    r"Saccharomyces|Arabidopsis|chicken|Gallus|Xenopus|bovine|cattle|pigs?|porcine|dogs?|canine|Escherichia"
)
_KINSHIP = re.compile(
    r"\b(?:homolog|ortholog|paralog|counterpart|similar|relat|conserved|resembl|vertebrate)", re.I
)


def check_answer(
    content: str, *, symbol: str, species: Species, aliases: Iterable[str] = (), told: str = ""
) -> str:
    """Return the description in a model's answer, with blanks evened out.

    Parameters
    ----------
    content
        The answer: a JSON object, or text with one in it.
    symbol, aliases
        Names of the gene; the description has to hold one, spelt so.
    told
        What the model was told to do, which it must not say back.

    Raises
    ------
    UnfitError
        If it is not an object with the two fields, or the description does not name the gene, is shorter
        than 60 or longer than 1,200 characters, holds an address, markup, code, instructions, control
        characters or a key, talks about its writer, repeats itself, or is about another species.
    """
    fields = _object(content)
    if fields["symbol"].strip() != symbol:
        raise UnfitError("it is about another gene")
    text = fields["description"].strip()
    if any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and c not in "\n\t"
        for c in text
    ):
        raise UnfitError("the description holds control characters")
    text = unicodedata.normalize("NFC", text)
    if not SHORTEST <= len(text) <= LONGEST:
        raise UnfitError(
            f"the description has {len(text):,} characters; {SHORTEST} to {LONGEST:,} are wanted"
        )
    plain = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    for pattern, what in (
        (_ADDRESS, "an address"),
        (_MARKUP, "markup or code"),
        (_COMMANDS, "instructions, or speaks to its reader"),
        (_ITSELF, "words about its writer or its task"),
        (_REFUSAL, "a refusal"),
    ):
        if pattern.search(plain):
            raise UnfitError(f"the description holds {what}")
    text = " ".join(text.split())
    if redact(text) != text:
        raise UnfitError("the description holds something like a key")
    if not _names(text, (symbol, *aliases)):
        raise UnfitError("the description does not name the gene")
    sentences = re.split(r"(?<=[.!?])\s+", text)
    _check_sentences(sentences, " ".join(told.split()))
    _check_species(sentences[0], text, species)
    return text


def _object(content: str) -> dict[str, str]:
    """Return the first JSON object in a text, if it has the two fields and no others."""
    content = content[:MOST]
    start = content.find("{")
    if start < 0:
        raise UnfitError("there is no JSON object in it")
    try:
        found, _ = json.JSONDecoder(object_pairs_hook=_once_each).raw_decode(content, start)
    except UnfitError:
        raise
    except (ValueError, RecursionError):
        raise UnfitError("its JSON cannot be read") from None
    if not isinstance(found, dict) or set(found) != set(FIELDS):
        raise UnfitError("its JSON object has not just the two fields")
    if not all(isinstance(value, str) for value in found.values()):
        raise UnfitError("a field of its JSON object is no text")
    return found


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise UnfitError("its JSON object has a field twice")
    return dict(pairs)


def _names(text: str, names: Iterable[str]) -> bool:
    # Not \b: symbols hold hyphens, dots and @, and HLA-A must not be found in HLA-A2 nor INS in INS-IGF2.
    return any(
        name and re.search(rf"(?<![\w-]){re.escape(name)}(?!\w|-\w)", text) is not None for name in names
    )


def _check_sentences(sentences: list[str], told: str) -> None:
    long = [s.lower() for s in sentences if len(s) >= 20]
    if len(set(long)) < len(long):
        raise UnfitError("the description repeats itself")
    if any(s in told.lower() for s in long):
        raise UnfitError("the description says back what was asked")


def _check_species(first: str, text: str, species: Species) -> None:
    # Summaries by people speak of yeast and mice, too: as kin of the gene, or beside its own species.
    stranger = re.search(rf"\b(?:{_OTHER[species]}{_STRANGERS})\b", first, re.IGNORECASE)
    if stranger and not _KINSHIP.search(first) and not _OWN[species].search(text):
        raise UnfitError("the description is about another species")

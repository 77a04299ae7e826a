"""Checks of answers of language models, which are untrusted: parsing, and content that is refused."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection
from typing import Any

from scvec.ingest.sources.openai import Reply

__all__ = ["UnfitError", "foreign", "json_object", "tidy", "whole"]


class UnfitError(ValueError):
    """An answer was rejected. The message never quotes the answer."""


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


def foreign(text: str) -> str:
    """Return, in words, what in a text cannot be a fact of biology; empty if there is nothing."""
    for pattern, what in (
        (_ADDRESS, "an address"),
        (_MARKUP, "markup or code"),
        (_COMMANDS, "instructions, or speaks to its reader"),
    ):
        if pattern.search(text):
            return what
    return ""


def json_object(content: str, fields: Collection[str], *, most: int) -> dict[str, Any]:
    """Return the first JSON object in a text, if it has these fields and no others.

    Parameters
    ----------
    most
        Number of characters of the text that are parsed.
    """
    content = content[:most]
    start = content.find("{")
    if start < 0:
        raise UnfitError("the answer has no JSON object")
    try:
        found, _ = json.JSONDecoder(object_pairs_hook=_once_each).raw_decode(content, start)
    except UnfitError:
        raise
    except (ValueError, RecursionError):
        raise UnfitError("the JSON of the answer cannot be read") from None
    if not isinstance(found, dict) or set(found) != set(fields):
        raise UnfitError("the JSON object of the answer does not have exactly the requested fields")
    return found


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise UnfitError("the JSON object repeats a field")
    return dict(pairs)


def whole(reply: Reply) -> str:
    """Return the text of a complete reply; raise UnfitError otherwise."""
    if reply.refusal:
        raise UnfitError("the model refused to answer")
    if reply.finish_reason == "length":
        raise UnfitError("the answer was cut off at the token limit")
    if reply.finish_reason != "stop":
        filtered = reply.finish_reason == "content_filter"
        raise UnfitError("the answer was filtered" if filtered else "the answer is incomplete")
    if not reply.content.strip():
        raise UnfitError("the answer is empty")
    return reply.content


def tidy(text: str, limit: int) -> str:
    """Return a text on one line, without control characters, of at most ``limit`` characters."""
    kept = text[: 4 * limit]
    if not kept.isprintable():
        kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in kept)
    return " ".join(kept.split())[:limit].rstrip()

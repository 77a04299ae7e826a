"""Keys that must never be shown. This module imports nothing of ours."""

from __future__ import annotations

import re
import threading

__all__ = ["Secret", "redact"]

HIDDEN = "[hidden]"

_known: set[str] = set()
_lock = threading.Lock()

# Keys that somebody pasted into an address or a header, where no Secret was made of them: the names under
# which services take keys, and the shapes of keys themselves.
_SHAPES = (
    re.compile(r"(?i)((?:api[_-]?key|token|secret|password|access[_-]?key)\s*[=:]\s*)[^\s&,;'\"]{4,}"),
    re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"),
    # Not "basic" alone: summaries of genes tell of basic helix-loop-helix proteins.
    re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?basic\s+)[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"()\b(?:sk|rk|pk|gsk|hf|ghp)[-_][A-Za-z0-9_-]{16,}"),
    re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


class Secret:
    """A key. Printing, formatting or pickling it shows nothing; :meth:`reveal` gives it.

    Every secret ever made in this process is cut out of texts by :func:`redact`.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.strip()
        # Cutting out very short texts would garble every message.
        if len(self._value) >= 4:
            with _lock:
                _known.add(self._value)

    def reveal(self) -> str:
        """Return the key itself, for the one header or field it is meant for."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN if self._value else ''})"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a secret is not to be stored")


def redact(text: str) -> str:
    """Return ``text`` without any key: those made with :class:`Secret`, and what looks like one."""
    from urllib.parse import quote

    for value in sorted(_known, key=len, reverse=True):
        for form in {value, quote(value, safe="")}:
            text = text.replace(form, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(lambda m: m.group(1) + HIDDEN, text)
    return text

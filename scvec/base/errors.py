"""Errors a user can meet: what happened, where, how to fix it, and a code for programs."""

from __future__ import annotations

__all__ = [
    "AuthError",
    "InputError",
    "LockedError",
    "NetworkError",
    "ResourceError",
    "ScvecError",
    "StoreError",
]


class ScvecError(Exception):
    """Base of every error scvec raises on purpose.

    Parameters
    ----------
    what
        What went wrong, one sentence.
    where
        The file, column, gene or store it went wrong in.
    fix
        What the user can do about it.
    code
        The kind of error, in kebab-case, for programs and tests: messages may change, codes do not. Empty for
        the code of the class. ``docs/errors.md`` lists all; a test compares that list with the source.
    """

    exit_code = 1
    code = "error"

    def __init__(self, what: str, where: str = "", fix: str = "", *, code: str = "") -> None:
        if code:
            self.code = code
        self.what = _one_line(what)
        self.where = _one_line(where)
        self.fix = _one_line(fix)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return the message, at most three lines."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return lines

    def to_dict(self) -> dict[str, object]:
        """Return the message as the JSON object that ``--json`` prints."""
        return {"error": type(self).__name__, **self.body(), "exit_code": self.exit_code}

    def body(self) -> dict[str, str]:
        """Return the message as the JSON object of a REST answer."""
        return {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix}


def _one_line(text: str, limit: int = 400) -> str:
    # Names from files end up in messages: a line break or an escape code in a gene name must not.
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


class InputError(ScvecError):
    """Wrong usage, or an input file that cannot be used (exit 2)."""

    exit_code = 2
    code = "input"


class StoreError(ScvecError):
    """The store is damaged, of another format, or does not match (exit 3)."""

    exit_code = 3
    code = "store-damaged"


class NetworkError(ScvecError):
    """A remote service failed or cannot be reached (exit 4)."""

    exit_code = 4
    code = "network"


class AuthError(ScvecError):
    """A key is missing, refused, or out of quota (exit 5)."""

    exit_code = 5
    code = "auth"


class ResourceError(ScvecError):
    """Out of memory or disk (exit 6)."""

    exit_code = 6
    code = "out-of-memory"


class LockedError(ScvecError):
    """Another process writes to the store (exit 7)."""

    exit_code = 7
    code = "locked"

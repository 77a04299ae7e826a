"""Errors a user can meet: what happened, where, how to fix it, and a code for programs."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = [
    "AuthError",
    "InputError",
    "LockedError",
    "NetworkError",
    "ResourceError",
    "ScvecError",
    "StoreError",
    "did_you_mean",
    "disk_errors",
    "is_disk_full",
    "reading",
    "unreadable",
]

# EFBIG is a file-size limit of the process or file system: to the user the same thing, no room.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXT = re.compile(
    rf"errno = (?:{'|'.join(map(str, sorted(_NO_ROOM)))})\b|No space left|quota exceeded", re.IGNORECASE
)


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


def did_you_mean(name: str, known: Sequence[str], n: int = 1) -> str:
    """Return ``did you mean 'NAME'? `` with the ``n`` most similar of ``known``; nothing where none is."""
    near = difflib.get_close_matches(name, known, n=n)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


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


@contextlib.contextmanager
def reading(path: str | Path, part: str = "") -> Iterator[None]:
    """Turn whatever h5py or anndata raise on a damaged file into an ``InputError``.

    Both let errors of every kind through when a file lies (OSError, KeyError, ValueError, TypeError,
    UnicodeDecodeError, ...), so nothing narrower will do; only foreign reading belongs inside.
    """
    where = f"{path} ({part})" if part else str(path)
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError(
            "the file asks for more memory than there is", where, "check the file, or use a larger machine"
        ) from error
    except Exception as error:
        reason = str(error).strip("'\"").split("\n")[0][:160] or type(error).__name__
        raise InputError(
            f"the file is damaged or not a valid h5ad: {reason}",
            where,
            "copy or download it again, or write it anew with adata.write_h5ad()",
            code="damaged-file",
        ) from error


def unreadable(error: Exception, path: str | Path, name: str, fix: str) -> InputError:
    """Return what to raise where ``name``, a file of text, could not be read; its code says why."""
    if isinstance(error, FileNotFoundError):
        what, code = f"{name} does not exist", "file-not-found"
    elif isinstance(error, IsADirectoryError):
        what, code = f"{name} is a folder", "not-a-file"
    elif isinstance(error, PermissionError):
        what, code = f"you may not read {name}", "permission-denied"
    elif isinstance(error, UnicodeDecodeError):
        what, code = f"{name} is not UTF-8 text", "wrong-format"
    else:
        what, code = f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", "damaged-file"
    return InputError(what, str(path), fix, code=code)


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of writing to ``path`` into ``ResourceError`` (no room) or ``InputError``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if is_disk_full(error):
            raise ResourceError(
                "the disk is full; nothing was written",
                str(path),
                "free some space, or write elsewhere",
                code="disk-full",
            ) from error
        if isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error).split("\n")[0]
            raise InputError(
                f"cannot write the output: {reason}",
                str(path),
                "choose another place for it",
                code="output-not-writable",
            ) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Return whether there was no room to write.

    HDF5 raises OSError or RuntimeError and keeps errno in its text only.
    """
    return getattr(error, "errno", None) in _NO_ROOM or _NO_ROOM_TEXT.search(str(error)) is not None

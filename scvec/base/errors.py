"""Errors that a user may see: what happened, where, how to fix it, a code for programs, and their JSON."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.util
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

__all__ = [
    "AuthError",
    "InputError",
    "LockedError",
    "NetworkError",
    "ResourceError",
    "ScvecError",
    "StoreError",
    "check_choice",
    "check_fraction",
    "check_range",
    "did_you_mean",
    "disk_errors",
    "error_bytes",
    "is_disk_full",
    "need_extra",
    "reading",
    "unreadable",
    "without_paths",
]

# EFBIG is a limit on file size. For the user it means the same as a full disk.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXT = re.compile(
    rf"errno = (?:{'|'.join(map(str, sorted(_NO_ROOM)))})\b|No space left|quota exceeded", re.IGNORECASE
)


class ScvecError(Exception):
    """Base class of every error that scvec raises on purpose.

    Parameters
    ----------
    what
        The problem, in one sentence.
    where
        The file, column, gene or store with the problem.
    fix
        What the user can do about it.
    code
        Kind of error in kebab-case, for programs and tests. Messages may change, codes do not. Empty means
        the code of the class. ``docs/errors.md`` lists all codes; a test compares that list with the source.
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
    # Messages quote names from files. A gene name with a line break or an escape code must not reach a
    # terminal.
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def did_you_mean(name: str, known: Sequence[str], n: int = 1) -> str:
    """Return ``did you mean 'NAME'? `` with the ``n`` most similar known names; empty if none is similar."""
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
    """Translate any error that h5py or anndata raise on a damaged file into an ``InputError``.

    Both libraries raise errors of many types on damaged files (OSError, KeyError, ValueError, TypeError,
    UnicodeDecodeError, ...), so this catches ``Exception``. Put only calls of these libraries in the block.

    Parameters
    ----------
    path
        The file.
    part
        The part of the file that is read, for the message.

    Raises
    ------
    InputError
        The file is damaged or not valid.
    ResourceError
        The file needs more memory than the machine has.
    """
    where = f"{path} ({part})" if part else str(path)
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError(
            "the file needs more memory than this machine has",
            where,
            "check the file, or use a larger machine",
        ) from error
    except Exception as error:
        reason = str(error).strip("'\"").split("\n")[0][:160] or type(error).__name__
        raise InputError(
            f"the file is damaged or not a valid h5ad: {reason}",
            where,
            "copy or download the file again, or write it again with adata.write_h5ad()",
            code="damaged-file",
        ) from error


def unreadable(error: Exception, path: str | Path, name: str, fix: str) -> InputError:
    """Return the error to raise if the text file ``name`` cannot be read. Its code gives the reason."""
    if isinstance(error, FileNotFoundError):
        what, code = f"{name} does not exist", "file-not-found"
    elif isinstance(error, IsADirectoryError):
        what, code = f"{name} is a folder", "not-a-file"
    elif isinstance(error, PermissionError):
        what, code = f"no permission to read {name}", "permission-denied"
    elif isinstance(error, UnicodeDecodeError):
        what, code = f"{name} is not UTF-8 text", "wrong-format"
    else:
        what, code = f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", "damaged-file"
    return InputError(what, str(path), fix, code=code)


def need_extra(extra: str, modules: Iterable[str], what: str, where: str, other: str = "") -> None:
    """Raise InputError (``extra-not-installed``) if a module of an extra is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        what = f"{what} needs packages that are not installed: {', '.join(missing)}"
        fix = f"pip install 'scvec[{extra}]'{f', or {other}' if other else ''}"
        raise InputError(what, where, fix, code="extra-not-installed")


def check_choice(option: str, value: str, known: Iterable[str]) -> None:
    """Raise InputError (``unknown-choice``) if the value of an option such as ``--method`` is not known."""
    choices = list(known)
    if value not in choices:
        what = f"{value!r} is not a value of {option}"
        fix = f"{did_you_mean(str(value), choices)}give one of: {', '.join(choices)}"
        raise InputError(what, option, fix, code="unknown-choice")


def check_range(option: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise InputError (``option-out-of-range``) if the value of an option is not in a closed range."""
    if not (least <= value <= most and math.isfinite(value)):
        allowed = f"{least:,g} or more" if most == math.inf else f"from {least:,g} to {most:,g}"
        what = f"{option} must be {allowed}, not {value:g}"
        raise InputError(what, option, "give such a number, or leave it out", code="option-out-of-range")


def check_fraction(option: str, value: float) -> None:
    """Raise InputError (``option-out-of-range``) if the value of an option is not between 0 and 1."""
    if not 0.0 < value < 1.0:
        what = f"{option} must be a fraction between 0 and 1, not {value:g}"
        raise InputError(what, option, "give a fraction such as 0.95", code="option-out-of-range")


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Translate errors of writing to ``path`` into ``ResourceError`` (disk full) or ``InputError``."""
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
                "choose another output path",
                code="output-not-writable",
            ) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full.

    HDF5 raises OSError or RuntimeError, with errno only in the text of the message.
    """
    return getattr(error, "errno", None) in _NO_ROOM or _NO_ROOM_TEXT.search(str(error)) is not None


#: An absolute path of two parts or more, but not the path of a URL. The group is the last part.
_PATH = re.compile(
    r"(?<![\w:/.~])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\"(),;]+)*[/\\](?=[^\s/\\])([^\s/\\'\"(),;]+)"
)


def without_paths(body: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return an error body without absolute paths.

    Parameters
    ----------
    names
        Path -> replacement. Other paths are replaced by their last part.
    """
    cleaned = {}
    for key, text in body.items():
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        cleaned[key] = _PATH.sub(r"\1", text)
    return cleaned


def error_bytes(error: ScvecError) -> bytes:
    """Return an error as the JSON body of an answer."""
    return json.dumps({"error": error.body()}).encode()

"""Foreign errors become scvec's own here, once, at the border: what, where, how to fix it."""

from __future__ import annotations

import errno

import click

from scvec.base.errors import InputError, ResourceError, ScvecError

__all__ = ["InternalError", "Interrupted", "translate"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: DuckDB raises this text as a plain RuntimeError when Ctrl-C interrupts a query.
_INTERRUPTED_QUERY = "Query interrupted"
# Libraries have classes of their own for "out of memory"; they do not inherit from MemoryError.
_MEMORY_CLASSES = {"OutOfMemoryError", "OutOfMemoryException", "ArrowMemoryError"}
_MEMORY_TEXTS = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")


class InternalError(ScvecError):
    """A bug in scvec (exit 1)."""

    exit_code = 1
    code = "bug"


class Interrupted(ScvecError):
    """The user stopped the command (exit 130)."""

    exit_code = 130
    code = "interrupted"


def translate(error: BaseException, command: str = "scvec") -> ScvecError:
    """Return the error that says for people what ``error`` means.

    Parameters
    ----------
    error
        Whatever ended the command.
    command
        The command as it was typed, such as ``scvec ingest cells``.
    """
    if isinstance(error, ScvecError):
        return error
    if isinstance(error, RuntimeError) and str(error) == _INTERRUPTED_QUERY:
        error = KeyboardInterrupt()
    if isinstance(error, KeyboardInterrupt | click.Abort):
        # click raises its own error from the interrupt.
        kept = str(error.__cause__ if isinstance(error, click.Abort) and error.__cause__ else error)
        return Interrupted(
            f"interrupted; {kept}" if kept else "interrupted",
            command,
            "run the same command again: it continues from here"
            if kept
            else "run the same command again: the store is intact; gene texts encoded so far are kept",
        )
    if isinstance(error, click.ClickException):
        return _usage(error, command)
    text = str(error)
    if _is_out_of_memory(error, text):
        return ResourceError(
            "out of memory", text or command, "use a machine with more memory, or fewer cells at a time"
        )
    if isinstance(error, OSError):
        translated = _os_error(error, command, text)
        if translated is not None:
            return translated
    return InternalError(
        f"this is a bug in scvec: {type(error).__name__}: {text}",
        command,
        "run it again with -v, and report what it prints; the store is intact",
    )


def _usage(error: click.ClickException, command: str) -> ScvecError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else command
    if isinstance(error, click.exceptions.NoArgsIsHelpError) or error.message == "Missing command.":
        return InputError("a command is missing", path, f"{path} --help lists the commands", code="usage")
    in_group = context is not None and isinstance(context.command, click.Group)
    shows = "lists the commands" if in_group else "shows how it is used"
    near = getattr(error, "possibilities", None) or ()
    hint = f"did you mean {' or '.join(map(repr, sorted(near)))}? " if near else ""
    said = error.message if near else error.format_message()
    return InputError(_in_our_style(said), path, f"{hint}{path} --help {shows}", code="usage")


def _in_our_style(said: str) -> str:
    # click writes sentences; our messages begin small and end without a full stop.
    return said[:1].lower() + said[1:].rstrip(".")


def _is_out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ in _MEMORY_CLASSES:
        return True
    # torch and faiss raise a plain RuntimeError when an allocation fails.
    return isinstance(error, RuntimeError) and any(t in text.lower() for t in _MEMORY_TEXTS)


def _os_error(error: OSError, command: str, text: str) -> ScvecError | None:
    where = str(error.filename) if error.filename is not None else ""
    if error.errno in _DISK or "No space left on device" in text:
        return ResourceError(
            "the disk is full",
            where or text,
            "free some space and run the same command again",
            code="disk-full",
        )
    if error.errno == errno.ENOMEM:
        return ResourceError(
            "out of memory", where or command, "use a machine with more memory, or fewer cells at a time"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return InputError(
            "permission denied",
            where or text,
            "choose a place where you may read and write",
            code="permission-denied",
        )
    return None

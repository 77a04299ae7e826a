"""The ``scvec`` command: its global options, and the border where errors become messages."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

# Before any numeric library is loaded: threads that spin while they wait make training four times slower on a
# machine that does anything else (benchmarks/openmp_wait.py). A user's own setting stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from scvec import __version__
from scvec.base.errors import InputError, ResourceError, ScvecError, is_disk_full
from scvec.cli.evaluate import demo, evaluate, labels
from scvec.cli.ingest import ingest
from scvec.cli.ingest_genes import import_legacy
from scvec.cli.name import markers
from scvec.cli.name import name as name_
from scvec.cli.options import Session, global_options
from scvec.cli.pack import commands as pack_commands
from scvec.cli.query import explain, query
from scvec.cli.search import search
from scvec.cli.serve import mcp, serve
from scvec.cli.store import commands as store_commands

__all__ = ["InternalError", "Interrupted", "Terminated", "cli", "main", "translate"]

# The exit code of a program that writes to a closed pipe, as shells count it (128 + SIGPIPE).
_CLOSED_PIPE = 141


class _Root(click.Group):
    """A group that turns every error into a message of three lines and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if sys.stderr.isatty():
                click.echo(err=True)  # behind the ^C; click would do it into logs too
            raise click.Abort from error
        except EOFError as error:
            # click takes any EOFError for Ctrl-D at a prompt; from a library it is a truncated file.
            raise translate(error, ctx.command_path) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        words = list(sys.argv[1:] if args is None else args)
        session = Session()
        session.typed = words
        try:
            with session.interrupts.listening(), warnings.catch_warnings():
                if not sys.warnoptions and not _asked_for_details(words):
                    warnings.simplefilter("ignore")
                code = super().main(
                    words,
                    prog_name or "scvec",
                    complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    obj=session,
                    **extra,
                )
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it at exit)
            sys.exit(_CLOSED_PIPE)
        except (Exception, KeyboardInterrupt) as error:
            # The option may stand behind the word that was wrong, where parsing never came.
            session.as_json = session.as_json or "--json" in words
            translated = translate(
                error, _command(words), terminated=session.interrupts.terminated is not None
            )
            session.error(translated, error)
            sys.exit(translated.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _asked_for_details(words: Sequence[str]) -> bool:
    return any(w == "--verbose" or (w.startswith("-v") and set(w[1:]) == {"v"}) for w in words)


def _command(words: Sequence[str]) -> str:
    """Return the command in ``words``, without options and file names."""
    found: list[str] = []
    group: click.Command = cli
    for word in words:
        if isinstance(group, click.Group) and word in group.commands:
            found.append(word)
            group = group.commands[word]
    return " ".join(["scvec", *found])


@click.group(
    "scvec", cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="scvec")
@global_options
def cli() -> None:
    """Annotate the cells of a single-cell data set with labelled reference cells.

    \b
    Two commands give a first answer:
      scvec ingest cells ref.h5ad --name pancreas --label-key cell_type
      scvec query new.h5ad --reference pancreas -o annotated.h5ad
    """


cli.add_command(ingest)
cli.add_command(query)
cli.add_command(explain)
cli.add_command(name_)
ingest.add_command(markers)
cli.add_command(labels)
cli.add_command(evaluate)
cli.add_command(search)
cli.add_command(import_legacy)
for _command_ in (*store_commands, *pack_commands):
    cli.add_command(_command_)
cli.add_command(serve)
cli.add_command(mcp)
cli.add_command(demo)


def main() -> None:
    """Run the command line. Entry point of the ``scvec`` program."""
    # Libraries read these once, when they are imported. Bars and warnings of theirs would mix with ours;
    # idle OpenMP threads that spin take the cores from everyone else on a shared machine.
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("OMP_WAIT_POLICY", "PASSIVE"),
    ):
        os.environ.setdefault(name, value)
    cli()


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
    """The user stopped the command (exit 130: 128 + SIGINT)."""

    exit_code = 130
    code = "interrupted"


class Terminated(Interrupted):
    """A scheduler or another program stopped the command (exit 143: 128 + SIGTERM)."""

    exit_code = 143


def translate(error: BaseException, command: str = "scvec", *, terminated: bool = False) -> ScvecError:
    """Return a scvec error with a message for people.

    Parameters
    ----------
    error
        Whatever ended the command.
    command
        The command as it was typed, such as ``scvec ingest cells``.
    terminated
        An interrupt came by SIGTERM and not by Ctrl-C.
    """
    if isinstance(error, ScvecError):
        return error
    if isinstance(error, RuntimeError) and str(error) == _INTERRUPTED_QUERY:
        error = KeyboardInterrupt()
    if isinstance(error, KeyboardInterrupt | click.Abort):
        # click raises its own error from the interrupt.
        kept = str(error.__cause__ if isinstance(error, click.Abort) and error.__cause__ else error)
        kind = Terminated if terminated else Interrupted
        return kind(
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
    message = error.message if near else error.format_message()
    # click writes sentences; messages of scvec begin small and end without a full stop.
    message = message[:1].lower() + message[1:].rstrip(".")
    return InputError(message, path, f"{hint}{path} --help {shows}", code="usage")


def _is_out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ in _MEMORY_CLASSES:
        return True
    # torch and faiss raise a plain RuntimeError when an allocation fails.
    return isinstance(error, RuntimeError) and any(t in text.lower() for t in _MEMORY_TEXTS)


def _os_error(error: OSError, command: str, text: str) -> ScvecError | None:
    where = str(error.filename) if error.filename is not None else ""
    if is_disk_full(error):
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

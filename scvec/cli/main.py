"""The ``scvec`` command: its global options, and the border where errors become messages."""

from __future__ import annotations

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
from scvec.cli.demo import demo
from scvec.cli.errors import translate
from scvec.cli.evaluate import evaluate, labels
from scvec.cli.explain import explain
from scvec.cli.ingest import ingest
from scvec.cli.ingest_genes import import_legacy
from scvec.cli.options import Session, global_options
from scvec.cli.query import query
from scvec.cli.search import search
from scvec.cli.serve import serve
from scvec.cli.store import commands as store_commands

__all__ = ["cli", "main"]

# The exit code of a program that writes to a closed pipe, as shells count it (128 + SIGPIPE).
_CLOSED_PIPE = 141


class _Root(click.Group):
    """A group that turns every error into a message of three lines and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
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
            translated = translate(error, _command(words))
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
    """Annotate the cells of a single-cell data set by labelled reference cells, and search genes and cells.

    \b
    Two commands give a first answer:
      scvec ingest cells ref.h5ad --name pancreas --label-key cell_type
      scvec query new.h5ad --reference pancreas -o annotated.h5ad
    """


cli.add_command(ingest)
cli.add_command(query)
cli.add_command(explain)
cli.add_command(labels)
cli.add_command(evaluate)
cli.add_command(search)
cli.add_command(import_legacy)
for _command_ in store_commands:
    cli.add_command(_command_)
cli.add_command(serve)
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

"""Options that several commands share, and the session they fill."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scvec.base.errors import InputError
from scvec.base.species import SPECIES, known_species, species_key
from scvec.cli.console import Console, Interrupts
from scvec.model.query_options import DEVICES, METHODS, NOVELTY, UNMATCHED, QueryOptions

if TYPE_CHECKING:
    from scvec.base.results import NextStep
    from scvec.base.types import Progress

__all__ = [
    "FilePath",
    "PathOrName",
    "Session",
    "SpeciesName",
    "any_species_option",
    "base_url_option",
    "concurrency_option",
    "coverage_option",
    "device_option",
    "dry_run_option",
    "engine_options",
    "false_novel_option",
    "genes_option",
    "global_options",
    "layer_option",
    "llm_option",
    "max_cost_option",
    "memory_option",
    "method_option",
    "n_neighbors_option",
    "novelty_option",
    "pass_session",
    "reference_option",
    "species_option",
    "timeout_option",
    "unmatched_option",
    "values_option",
    "vectors_only_option",
    "where_option",
]

#: scvec.ingest.cells.values.VALUES, spelt out for the same reason.
VALUES = (
    "auto",
    "counts",
    "linear",
    "log1p",
    "log1p-cp10k",
    "log1p-cpm",
    "log2",
    "log2-cp10k",
    "log2-cpm",
    "log2-tpm10",
    "log10",
    "sqrt",
    "arcsinh",
)

F = TypeVar("F", bound=Callable[..., Any])


class Session(Console):
    """Values of the global options, which may be given before or after the command."""

    def __init__(self) -> None:
        super().__init__()
        self.store_option: Path | None = None
        self.interrupts = Interrupts()

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Yield the function of :meth:`Console.progress`; it ends the command if the user interrupted it."""
        with super().progress() as report:
            yield self.interrupts.heeding(report)

    def where(self, step: NextStep) -> list[str]:
        """Return ``--store DIR`` if it was given, and the step is about this store."""
        return [] if self.store_option is None or step.place else ["--store", str(self.store_option)]

    @property
    def store(self) -> Path:
        """The store: ``--store``, else ``$SCVEC_STORE``, else the platform's user data folder."""
        given = self.store_option or os.environ.get("SCVEC_STORE")
        if given:
            from scvec.base.resources import expanded

            return expanded(given)
        from platformdirs import user_data_path

        return user_data_path("scvec", appauthor=False)


class FilePath(click.Path):
    """A path; ``~`` and ``$NAME`` are replaced as a shell does, which does not see those after ``=``."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        from scvec.base.resources import expanded

        return super().convert(expanded(value), param, ctx)


#: What may stand before a path.
_KIND = re.compile(r"(?:permuted:|name:)*(?:st:|hf:)?")


class PathOrName(click.ParamType):  # type: ignore[type-arg]
    """A path (also after ``st:`` or ``hf:``), or a name or address that is left as it is."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        from scvec.base.resources import expanded

        kind = _KIND.match(str(value))[0]  # type: ignore[index]  # it matches nothing, too
        path = str(value).removeprefix(kind)
        is_path = (path.startswith("~") or "$" in path) and "://" not in path
        return f"{kind}{expanded(path)}" if is_path else str(value)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _set_store(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).store_option = value


def _set_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).as_json = True


def _set_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).verbosity = -1


def _set_verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    if value:
        session = ctx.ensure_object(Session)
        session.verbosity += value
        if session.verbosity >= 2:
            from scvec.cli.console import show_logs

            show_logs()


def global_options(function: F) -> F:
    """Add the global options to a command, so that they also work after it."""
    options = (
        click.option(
            "--store",
            type=FilePath(),
            metavar="DIR",
            callback=_set_store,
            expose_value=False,
            help="The store.  [default: $SCVEC_STORE, else the user's data folder]",
        ),
        click.option(
            "--json",
            is_flag=True,
            callback=_set_json,
            expose_value=False,
            help="Print one JSON object on stdout.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            callback=_set_quiet,
            expose_value=False,
            help="No notes, no progress.",
        ),
        click.option(
            "-v",
            "--verbose",
            count=True,
            callback=_set_verbose,
            expose_value=False,
            help="More messages; a traceback with an error. Twice: logs.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def engine_options(function: F) -> F:
    """Add ``--engine`` and ``--ray-address``."""
    function = click.option(
        "--ray-address",
        metavar="ADDR",
        help="Address of a Ray cluster: auto, or HOST:PORT of its head.  [default: start Ray here]",
    )(function)
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Encode and search in this process, or with workers of a Ray cluster.",
    )(function)


def llm_option(help_: str) -> Callable[[F], F]:
    """Return a decorator that adds ``--llm``."""
    return click.option("--llm", type=PathOrName(), metavar="MODEL", help=help_)


class SpeciesName(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A species by name or taxon id, ``other``, a new name, or one of ``extra``."""

    name = "species"

    def __init__(self, *extra: str) -> None:
        self.extra = extra

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the text for ``--help``."""
        return "|".join([*self.extra, *list(known_species())[:3], "..."])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the key."""
        if value in self.extra:
            return str(value)
        try:
            return species_key(str(value))
        except InputError as error:
            self.fail(f"{error.what}: {error.fix}", param, ctx)


species_option = click.option(
    "--species",
    type=SpeciesName(),
    multiple=True,
    default=SPECIES,
    show_default=True,
    help="Species of the genes; may be repeated.",
)
genes_option = click.option(
    "--genes", type=FilePath(), metavar="FILE", help="Only these genes, one per line."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, without changes.")
base_url_option = click.option(
    "--base-url", metavar="URL", help="Address of the service.  [default: config, else its own]"
)
concurrency_option = click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Simultaneous requests.",
)
max_cost_option = click.option(
    "--max-cost", type=click.FloatRange(min=0), metavar="DOLLARS", help="Limit on the cost."
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time limit of a request.  [default: 45]",
)
any_species_option = click.option(
    "--species", type=SpeciesName("auto"), default="auto", show_default=True, help="Species of the genes."
)
reference_option = click.option(
    "--reference", metavar="NAME", help="Name of the reference.  [default: the only one]"
)
n_neighbors_option = click.option(
    "--n-neighbors",
    type=click.IntRange(min=1),
    default=QueryOptions.n_neighbors,
    show_default=True,
    help="Reference cells that vote for each cell.",
)
method_option = click.option(
    "--method",
    type=click.Choice(METHODS),
    default=QueryOptions.method,
    show_default=True,
    help="Classifier: neighbours (knn), the trained head, or the mean of both.",
)
vectors_only_option = click.option(
    "--vectors-only", is_flag=True, help="obsm:KEY: use the vectors alone, without genes beside them."
)
novelty_option = click.option(
    "--novelty",
    type=click.Choice(NOVELTY),
    default=QueryOptions.novelty,
    show_default=True,
    help="Whether to subtract the common shift of all query cells (such as another platform).",
)
where_option = click.option(
    "--where", metavar="SQL", help="Only reference cells that meet this condition on their obs columns."
)
layer_option = click.option("--layer", metavar="NAME", help="Layer with the counts.  [default: detected]")
values_option = click.option(
    "--values",
    type=click.Choice(VALUES),
    default="auto",
    show_default=True,
    help="Scale of the values: counts, linear (CPM, TPM, RPKM), or a transform of these.",
)
memory_option = click.option(
    "--memory", metavar="SIZE", help="Memory limit, such as 4G.  [default: half of the free memory]"
)
coverage_option = click.option(
    "--coverage",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="FRACTION",
    help="Add label sets that hold the true label for this fraction of the cells, such as 0.9.",
)
false_novel_option = click.option(
    "--false-novel-rate",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=QueryOptions.false_novel_rate,
    show_default=True,
    metavar="FRACTION",
    help="Fraction of cells of known types that may be called novel.",
)
unmatched_option = click.option(
    "--unmatched-genes",
    type=click.Choice(UNMATCHED),
    default=QueryOptions.unmatched_genes,
    show_default=True,
    help="Genes missing in the reference: drop them, or match them by their descriptions.",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default=QueryOptions.device,
    show_default=True,
    help="Device for computing.",
)

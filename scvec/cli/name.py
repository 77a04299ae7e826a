"""``scvec name`` and ``scvec ingest markers``: names without a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scvec.base.errors import InputError
from scvec.base.species import SPECIES
from scvec.cli.options import (
    FilePath,
    PathOrName,
    Session,
    SpeciesName,
    base_url_option,
    concurrency_option,
    dry_run_option,
    global_options,
    layer_option,
    llm_option,
    max_cost_option,
    memory_option,
    pass_session,
    timeout_option,
    values_option,
)
from scvec.ingest.sources import MARKER_SOURCES

__all__ = ["markers", "name"]


@click.command()
@click.argument("cells", required=False, metavar="[QUERY]", type=FilePath())
@click.option(
    "--markers",
    type=FilePath(),
    metavar="CSV",
    help="Marker lists: group,genes.",
)
@click.option("--groupby", metavar="COLUMN", help="Column of obs with the groups.  [default: clusters]")
@click.option(
    "--tissue", default="", help="Tissue of the cells, such as lung; cell types of it are preferred."
)
@click.option(
    "--species",
    type=SpeciesName("auto"),
    default="auto",
    show_default=True,
    help="Species of the genes.",
)
@click.option("--only", type=click.Choice(["novel"]), help="Name only the cells that query called novel.")
@click.option(
    "-o",
    "--output",
    type=FilePath(),
    metavar="OUT",
    help="OUT.h5ad: the input with columns scvec_name...; OUT.csv: one row per group.",
)
@click.option("--key-added", default="scvec", show_default=True, help="Prefix of the columns.")
@click.option("--force", is_flag=True, help="Continue even if few genes match.")
@llm_option("openai:MODEL: a language model chooses among the candidates (docs/names.md).")
@click.option(
    "--votes",
    type=click.IntRange(1, 25),
    default=3,
    show_default=True,
    help="Requests per group; the agreement of the answers is the confidence.",
)
@base_url_option
@max_cost_option
@timeout_option
@concurrency_option
@dry_run_option
@layer_option
@values_option
@memory_option
@global_options
@pass_session
def name(
    session: Session, /, cells: Path | None, markers: Path | None, output: Path | None, **given: Any
) -> None:
    """Name groups of cells with known markers.

    No reference is needed: the specific genes of each group are compared with the markers of all
    types of the Cell Ontology.

    \b
    Examples:
      scvec name new.h5ad --groupby leiden --tissue lung
      scvec name annotated.h5ad --only novel
      scvec name --markers lists.csv --json
      scvec name new.h5ad --groupby leiden --llm openai:gpt-4o-mini --dry-run
    """
    from scvec.workflows.name import name as name_

    with session.progress() as progress:
        report = name_(session.store, cells, markers=markers, output=output, progress=progress, **given)
    session.show(report)


@click.command()
@click.option(
    "--source",
    "sources",
    type=PathOrName(),
    multiple=True,
    required=True,
    metavar="|".join([*MARKER_SOURCES, "FILE"]),
    help="A marker table (CellMarker, PanglaoDB, ScType, ASCT+B, GMT, csv), may be repeated; or a "
    "live service.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="WHAT=NAME",
    help="Meaning of a column: gene=Symbol, cell_type=Type; may be repeated.",
)
@click.option(
    "--species",
    type=SpeciesName(),
    help=f"Species of rows without a species ({SPECIES[0]} by default), and of requests to a live service.",
)
@click.option(
    "--tissue",
    "tissues",
    multiple=True,
    metavar="NAME",
    help="Only types that the live service has in this tissue, such as lung; may be repeated.",
)
@click.option("--refresh", is_flag=True, help="Request types again that the live service has answered.")
@base_url_option
@click.option(
    "--requests-per-second",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Largest rate; 0 for no limit, for a mirror.  [default: 5]",
)
@concurrency_option
@dry_run_option
@global_options
@pass_session
def markers(session: Session, /, sources: tuple[str, ...], columns: tuple[str, ...], **given: Any) -> None:
    """Add marker genes of cell types, from tables or from CELLxGENE's CellGuide.

    scvec name uses them. The next run continues an interrupted run.

    \b
    Examples:
      scvec ingest markers --source CellMarker_human.csv
      scvec ingest markers --source cellguide --tissue lung
    """
    from scvec.celltypes.markers import COLUMNS
    from scvec.workflows.ingest_markers import ingest_markers

    wanted = {}
    for text in columns:
        what, sign, column = text.partition("=")
        if not sign or what not in COLUMNS:
            fix = f"write WHAT=NAME with one of: {', '.join(COLUMNS)}"
            raise InputError(f"{text!r} has the wrong form", "--column", fix)
        wanted[what] = column
    with session.progress() as progress:
        report = ingest_markers(session.store, list(sources), columns=wanted, progress=progress, **given)
    session.show(report)

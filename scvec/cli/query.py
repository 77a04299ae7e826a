"""``scvec query``: name new cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scvec.base.errors import InputError
from scvec.cli.options import (
    Session,
    any_species_option,
    coverage_option,
    device_option,
    engine_options,
    false_novel_option,
    global_options,
    layer_option,
    llm_option,
    memory_option,
    method_option,
    n_neighbors_option,
    novelty_option,
    pass_session,
    reference_option,
    unmatched_option,
    values_option,
    where_option,
)
from scvec.model.query_options import COLUMNS, QueryOptions

__all__ = ["query"]


@click.command()
@click.argument("queries", metavar="QUERY...", nargs=-1, required=True, type=click.Path(path_type=Path))
@reference_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="File for the annotation: .h5ad, .csv or .parquet; {} in it is the name of QUERY.  "
    "[default: print the counts only]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="OUT.html",
    help="A page for people: map, tables, evidence; and the numbers as JSON beside it.",
)
@n_neighbors_option
@method_option
@any_species_option
@layer_option
@values_option
@memory_option
@where_option
@click.option("--exact", is_flag=True, help="Search every reference cell, never an approximation.")
@click.option(
    "--recall",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="FRACTION",
    help="Fraction of the nearest cells that an approximate index is to find.  [default: as it was ingested]",
)
@coverage_option
@false_novel_option
@novelty_option
@click.option(
    "--majority-vote",
    is_flag=True,
    help="Also the label that most cells of a cell's cluster have; needs igraph.",
)
@click.option(
    "--columns",
    type=click.Choice(COLUMNS),
    default=QueryOptions.columns,
    show_default=True,
    help="Names of the columns: scvec's own, or those that CellTypist writes.",
)
@unmatched_option
@click.option("--force", is_flag=True, help="Go on where few genes match.")
@device_option
@llm_option("Where the language model of the reference lies, if it was moved.")
@engine_options
@global_options
@pass_session
def query(
    session: Session, /, queries: tuple[Path, ...], output: Path | None, report: Path | None, **chosen: Any
) -> None:
    """Annotate the cells of QUERY by a reference. The file itself is never changed.

    QUERY is an h5ad, a zarr folder of anndata, or what Cell Ranger writes: an .h5, or a folder of matrix.mtx.
    Of several, each is annotated alone: a cell's label does not depend on the other files.

    \b
    Examples:
      scvec query new.h5ad --reference pancreas -o annotated.h5ad --report report.html
      scvec query new.h5ad --where "donor = 'human1'" -o labels.csv
      scvec query sample1.h5ad sample2.h5ad -o '{}-labels.csv'
    """
    from scvec.workflows.query import annotate_files, query_files

    files = query_files(queries, output, report)
    found = annotate_files(session.store, files, QueryOptions(**chosen), progress=session.progress)
    errors: list[InputError] = []
    for one in found:
        if not isinstance(one, InputError):
            session.show(one if len(files) > 1 else one.annotation)
        elif len(files) == 1:
            raise one
        else:
            session.error(one, one)
            errors.append(one)
    if errors:
        session.note(f"{len(files) - len(errors)} of {len(files)} files were annotated")
        click.get_current_context().exit(errors[0].exit_code)

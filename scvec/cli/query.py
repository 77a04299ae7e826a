"""``scvec query``: name new cells."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import (
    SPECIES,
    Session,
    coverage_option,
    device_option,
    false_novel_option,
    global_options,
    layer_option,
    memory_option,
    pass_session,
)

__all__ = ["query"]


@click.command()
@click.argument("query", metavar="QUERY", type=click.Path(path_type=Path))
@click.option("--reference", metavar="NAME", help="Reference to ask.  [default: the only one]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="File for the answer: .h5ad, .csv or .parquet.  [default: print the counts only]",
)
@click.option(
    "--n-neighbors",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Neighbours asked per cell.",
)
@click.option(
    "--method",
    type=click.Choice(["both", "knn", "head", "prototype", "linear"]),
    default="both",
    show_default=True,
    help="Which voices decide; both means all of them, combined.",
)
@click.option(
    "--species", type=click.Choice(["auto", *SPECIES]), default="auto", show_default=True, help="Whose genes."
)
@layer_option
@memory_option
@click.option(
    "--where", metavar="SQL", help="Only reference cells of which this is true, over their obs columns."
)
@click.option("--exact", is_flag=True, help="Search every reference cell, never an approximation.")
@coverage_option
@false_novel_option
@click.option("--force", is_flag=True, help="Go on where few genes match.")
@device_option
@global_options
@pass_session
def query(
    session: Session,
    query: Path,
    reference: str | None,
    output: Path | None,
    n_neighbors: int,
    method: str,
    species: str,
    layer: str | None,
    memory: str | None,
    where: str | None,
    exact: bool,
    coverage: float | None,
    false_novel_rate: float,
    force: bool,
    device: str,
) -> None:
    """Annotate the cells of QUERY by a reference. The file itself is never changed.

    \b
    Examples:
      scvec query new.h5ad --reference pancreas -o annotated.h5ad
      scvec query new.h5ad --where "donor = 'human1'" -o labels.csv
    """
    from scvec.api.query import query as annotate_file

    with session.progress() as progress:
        annotation = annotate_file(
            session.store,
            query,
            reference=reference,
            output=output,
            n_neighbors=n_neighbors,
            method=method,
            species=species,
            layer=layer,
            memory=memory,
            where=where,
            exact=exact,
            coverage=coverage,
            false_novel_rate=false_novel_rate,
            force=force,
            device=device,
            progress=progress,
        )
    session.show(annotation)

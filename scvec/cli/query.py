"""``scvec query``: name new cells."""

from __future__ import annotations

from pathlib import Path

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

__all__ = ["query"]


@click.command()
@click.argument("queries", metavar="QUERY...", nargs=-1, required=True, type=click.Path(path_type=Path))
@reference_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="File for the answer: .h5ad, .csv or .parquet; {} in it is the name of QUERY.  "
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
    metavar="SHARE",
    help="Share of the nearest cells that an approximate index is to find.  [default: as it was ingested]",
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
    type=click.Choice(["scvec", "celltypist"]),
    default="scvec",
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
    session: Session,
    queries: tuple[Path, ...],
    reference: str | None,
    output: Path | None,
    report: Path | None,
    n_neighbors: int,
    method: str,
    species: str,
    layer: str | None,
    values: str,
    memory: str | None,
    where: str | None,
    exact: bool,
    recall: float | None,
    coverage: float | None,
    false_novel_rate: float,
    novelty: str,
    majority_vote: bool,
    columns: str,
    unmatched_genes: str,
    force: bool,
    device: str,
    llm: str | None,
    engine: str,
    ray_address: str | None,
) -> None:
    """Annotate the cells of QUERY by a reference. The file itself is never changed.

    QUERY is an h5ad, zarr, loom, h5mu, rds (extra r), csv or tsv, or a folder: what Cell Ranger, STARsolo,
    kb or Parse write, or files of GEO with one prefix.
    Of several, each is annotated for itself: a cell's label does not depend on the other files.

    \b
    Examples:
      scvec query new.h5ad --reference pancreas -o annotated.h5ad --report report.html
      scvec query new.h5ad --where "donor = 'human1'" -o labels.csv
      scvec query sample1.h5ad sample2.h5ad -o '{}-labels.csv'
    """
    from scvec.workflows.query_files import annotate_files, query_files

    files = query_files(queries, output, report)
    found = annotate_files(
        session.store,
        files,
        progress=session.progress,
        reference=reference,
        n_neighbors=n_neighbors,
        method=method,
        species=species,
        layer=layer,
        values=values,
        memory=memory,
        where=where,
        exact=exact,
        recall=recall,
        coverage=coverage,
        false_novel_rate=false_novel_rate,
        novelty=novelty,
        majority_vote=majority_vote,
        columns=columns,
        unmatched_genes=unmatched_genes,
        force=force,
        device=device,
        llm=llm,
        engine=engine,
        ray_address=ray_address,
    )
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

"""``scvec ingest``: fill the store."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import (
    SPECIES,
    Session,
    device_option,
    global_options,
    layer_option,
    memory_option,
    pass_session,
)

__all__ = ["ingest"]


@click.group()
@global_options
def ingest() -> None:
    """Fill the store: genes, their vectors, and labelled cells.

    \b
    Example:
      scvec ingest cells ref.h5ad --name pancreas --label-key cell_type
    """


@ingest.command()
@click.option(
    "--species",
    type=click.Choice(SPECIES),
    multiple=True,
    default=SPECIES,
    show_default=True,
    help="Species to ingest; may be given several times.",
)
@click.option(
    "--source",
    default="snapshot",
    show_default=True,
    metavar="snapshot|FILE",
    help="The snapshot that ships with scvec, or a jsonl, csv or parquet file.",
)
@click.option(
    "--genes", type=click.Path(path_type=Path), metavar="FILE", help="Only these genes, one a line."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@global_options
@pass_session
def genes(session: Session, species: tuple[str, ...], source: str, genes: Path | None, dry_run: bool) -> None:
    """Put gene facts and descriptions into the knowledge base.

    \b
    Examples:
      scvec ingest genes
      scvec ingest genes --species human --source my_genes.csv
    """
    from scvec.api.genes import ingest_genes

    with session.progress() as progress:
        report = ingest_genes(
            session.store, species=species, source=source, genes=genes, dry_run=dry_run, progress=progress
        )
    session.show(report)


@ingest.command()
@click.option(
    "--backbone",
    default="minilm",
    show_default=True,
    metavar="SPEC",
    help=("minilm, st:PATH_OR_ID, or a control: random:DIM, permuted:SPEC, name:SPEC."),
)
@click.option(
    "--text", default="default", show_default=True, metavar="TEMPLATE", help="What is said of a gene."
)
@click.option(
    "--species",
    type=click.Choice(SPECIES),
    multiple=True,
    default=SPECIES,
    show_default=True,
    help="Species to encode; may be given several times.",
)
@click.option(
    "--genes", type=click.Path(path_type=Path), metavar="FILE", help="Only these genes, one a line."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@global_options
@pass_session
def embeddings(
    session: Session, backbone: str, text: str, species: tuple[str, ...], genes: Path | None, dry_run: bool
) -> None:
    """Turn the descriptions of genes into vectors, in one space.

    \b
    Examples:
      scvec ingest embeddings
      scvec ingest embeddings --backbone minilm --genes genes.txt
    """
    from scvec.api.embeddings import ingest_embeddings

    with session.progress() as progress:
        report = ingest_embeddings(
            session.store,
            backbone=backbone,
            text=text,
            species=species,
            genes=genes,
            dry_run=dry_run,
            progress=progress,
        )
    session.show(report)


@ingest.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What to call the reference.")
@click.option("--label-key", required=True, metavar="COLUMN", help="Column of obs with the labels.")
@click.option(
    "--species", type=click.Choice(["auto", *SPECIES]), default="auto", show_default=True, help="Whose genes."
)
@layer_option
@memory_option
@click.option("--backbone", default="minilm", show_default=True, metavar="SPEC", help="Which gene vectors.")
@click.option(
    "--encoder",
    type=click.Choice(["adapted", "weighted", "pca", "residual"]),
    default="adapted",
    show_default=True,
    help="How vectors of genes become the vector of a cell; pca and residual are controls.",
)
@click.option(
    "--batch-key", metavar="COLUMN", help="Column of obs with the donor or batch; calibrates across them."
)
@click.option(
    "--min-cells",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Leave out labels that fewer cells have.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all that is random."
)
@click.option("--force", is_flag=True, help="Go on where few genes match.")
@device_option
@global_options
@pass_session
def cells(
    session: Session,
    refs: tuple[Path, ...],
    name: str,
    label_key: str,
    species: str,
    layer: str | None,
    memory: str | None,
    backbone: str,
    encoder: str,
    batch_key: str | None,
    min_cells: int,
    seed: int,
    force: bool,
    device: str,
) -> None:
    """Make a reference of labelled cells: vectors, index, head and calibration.

    Genes and gene vectors that the store lacks are ingested on the way.

    \b
    Example:
      scvec ingest cells ref.h5ad --name pancreas --label-key cell_type --batch-key donor
    """
    from scvec.api.cells import ingest_cells

    with session.progress() as progress:
        report = ingest_cells(
            session.store,
            refs,
            name=name,
            label_key=label_key,
            species=species,
            layer=layer,
            memory=memory,
            backbone=backbone,
            encoder=encoder,
            batch_key=batch_key,
            min_cells=min_cells,
            seed=seed,
            force=force,
            device=device,
            progress=progress,
        )
    session.show(report)

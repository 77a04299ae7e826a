"""``scvec ingest``: fill the store."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from scvec.backbones import backbone_forms
from scvec.base.errors import InputError
from scvec.base.species import SPECIES
from scvec.cli.ingest_genes import commands as gene_commands
from scvec.cli.options import (
    FilePath,
    PathOrName,
    Session,
    SpeciesName,
    any_species_option,
    base_url_option,
    device_option,
    dry_run_option,
    engine_options,
    global_options,
    layer_option,
    llm_option,
    max_cost_option,
    memory_option,
    pass_session,
    values_option,
    vectors_only_option,
)
from scvec.encoders import encoder_names
from scvec.stores.index import index_kinds

__all__ = ["ingest"]


class _Encoder(click.Choice[str]):
    """The name of an encoder, with an optional key after a colon (``obsm:KEY``)."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        super().convert(value.partition(":")[0], param, ctx)
        return value


@click.group()
@global_options
def ingest() -> None:
    """Fill the store: genes, their vectors, and labelled cells.

    \b
    Example:
      scvec ingest cells ref.h5ad --name pancreas --label-key cell_type
    """


for _command in gene_commands:
    ingest.add_command(_command)


@ingest.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True, type=FilePath())
@click.option("--name", required=True, help="Name of the reference.")
@click.option("--label-key", required=True, metavar="COLUMN", help="Column of obs with the labels.")
@any_species_option
@layer_option
@values_option
@memory_option
@click.option(
    "--backbone",
    type=PathOrName(),
    default="minilm",
    show_default=True,
    metavar="SPEC",
    help=f"Source of the gene vectors: {', '.join(backbone_forms())}.",
)
@base_url_option
@max_cost_option
@click.option(
    "--encoder",
    type=_Encoder(encoder_names()),
    default="discriminant",
    show_default=True,
    help="Encoder of the cells; obsm:X_scVI uses the vectors in obsm; pca and residual are controls.",
)
@vectors_only_option
@click.option(
    "--batch-key", metavar="COLUMN", help="Column of obs with donors or batches, held out for calibration."
)
@click.option(
    "--label-map",
    type=FilePath(),
    metavar="FILE",
    help="csv, tsv or JSON with old and new labels, for files with different names of one type.",
)
@click.option(
    "--min-cells",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Remove labels with fewer cells.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option("--force", is_flag=True, help="Continue even if few genes match.")
@llm_option("prompt: folder of a language model, GGUF file, smollm2, or hub id.  [default: smollm2]")
@click.option(
    "--n-genes",
    type=click.IntRange(min=1),
    metavar="N",
    help="prompt, sentence: genes per cell.  [default: 256 on a CPU, 2048 on a GPU; 64]",
)
@click.option(
    "--prompt-order",
    type=click.Choice(["paper", "code", "none"]),
    help="prompt: instruction first, last, or no language model.  [default: paper]",
)
@click.option("--epochs", type=click.IntRange(min=0), help="prompt: largest number of epochs.  [default: 8]")
@click.option(
    "--append", is_flag=True, help="Append the cells to an existing reference, without training it again."
)
@click.option(
    "--index",
    type=click.Choice(["auto", *index_kinds()]),
    default="auto",
    show_default=True,
    help="Search of neighbours: flat is exact, ivf is approximate; auto: ivf from 200,000 cells on.",
)
@click.option(
    "--recall",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    metavar="FRACTION",
    help="ivf: requested fraction of the nearest cells that are found.",
)
@device_option
@engine_options
@global_options
@pass_session
@click.pass_context
def cells(
    ctx: click.Context, session: Session, /, refs: tuple[Path, ...], append: bool, **given: Any
) -> None:
    """Make a reference from labelled cells: vectors, index, head and calibration.

    Missing genes and gene vectors are ingested first.

    \b
    Example:
      scvec ingest cells ref.h5ad --name pancreas --label-key cell_type --batch-key donor
      scvec ingest cells more.h5ad --name pancreas --label-key cell_type --append
      scvec ingest cells ref.h5ad --name read --label-key cell_type --encoder prompt --llm smollm2
    """
    if append:
        _refuse_settings(ctx)
        from scvec.workflows.append_and_drop import append_cells
        from scvec.workflows.ingest_options import AppendOptions

        options = AppendOptions(**{f.name: given[f.name] for f in fields(AppendOptions)})
        with session.progress() as progress:
            grown = append_cells(session.store, refs, options, progress=progress)
        session.show(grown)
        return
    from scvec.workflows.ingest_cells import ingest_cells
    from scvec.workflows.ingest_options import IngestOptions

    with session.progress() as progress:
        report = ingest_cells(session.store, refs, IngestOptions(**given), progress=progress)
    session.show(report)


def _refuse_settings(ctx: click.Context) -> None:
    """Raise InputError if an option was given that needs training."""
    from scvec.workflows.ingest_options import AppendOptions

    kept = {"refs", "append", *(field.name for field in fields(AppendOptions))}
    typed = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.expose_value
        and parameter.name not in kept
        and ctx.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
    ]
    if typed:
        raise InputError(
            f"{typed[0]} cannot be used with --append, which does not train",
            "scvec ingest cells",
            f"omit {', '.join(typed)}",
        )


@ingest.command()
@click.option("--recipe", default="", metavar="NAME", help="Tissue, condition and limits of a recipe.")
@click.option("--list-recipes", is_flag=True, help="Show the recipes and exit.")
@click.option(
    "--organism", type=SpeciesName(), default=SPECIES[0], show_default=True, help="Organism of the cells."
)
@click.option(
    "--tissue", multiple=True, metavar="NAME", help="Value of tissue_general or tissue; may be repeated."
)
@click.option(
    "--where", metavar="CONDITION", help="Condition on columns of obs, such as \"disease == 'normal'\"."
)
@click.option(
    "--max-per-type",
    type=click.IntRange(min=2),
    metavar="N",
    help="Most cells of a type, sampled evenly from datasets and donors.  [default: 500]",
)
@click.option(
    "--min-cells",
    type=click.IntRange(min=1),
    metavar="N",
    help="Leave out types with fewer cells.  [default: 50]",
)
@click.option(
    "--census-version",
    default="stable",
    show_default=True,
    metavar="DATE",
    help="stable, latest, or the date of a build.",
)
@click.option(
    "--uri",
    type=PathOrName(),
    metavar="PLACE",
    help="A copy of the Census: a folder, or the address of a mirror.",
)
@click.option("--name", default="", help="Name of the reference.  [default: RECIPE-ORGANISM]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed of the sample."
)
@memory_option
@device_option
@dry_run_option
@global_options
@pass_session
def census(session: Session, /, list_recipes: bool, dry_run: bool, **given: Any) -> None:
    """Make a reference from CELLxGENE Census, with curated types and citations of all datasets.

    The next run continues an interrupted run. Needs the extra census.

    \b
    Examples:
      scvec ingest census --recipe lung --dry-run
      scvec ingest census --organism mouse --tissue kidney --where "disease == 'normal'"
    """
    if list_recipes:
        from scvec.workflows.ingest_census import recipe_table

        session.show(recipe_table())
        return
    from scvec.workflows.ingest_census import ingest_census

    with session.progress() as progress:
        report = ingest_census(session.store, dry_run=dry_run, progress=progress, **given)
    session.show(report)

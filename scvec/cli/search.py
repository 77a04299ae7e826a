"""``scvec search``: search genes and cells by a text, and cells similar to a cell."""

from __future__ import annotations

from typing import Any

import click

from scvec.cli.options import (
    PathOrName,
    Session,
    any_species_option,
    device_option,
    global_options,
    pass_session,
    reference_option,
)

__all__ = ["search"]

k_option = click.option(
    "-k", "k", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Number of hits."
)
how_option = click.option(
    "--method",
    type=click.Choice(["hybrid", "meaning", "words"]),
    default="hybrid",
    show_default=True,
    help="Compare vectors (meaning), words, or both.",
)
backbone_option = click.option(
    "--backbone",
    type=PathOrName(),
    metavar="SPEC",
    help="Model whose gene vectors are searched.  [default: the model that ships with scvec]",
)


@click.group()
@global_options
def search() -> None:
    """Search genes and cells by a text, or cells similar to a cell.

    \b
    Examples:
      scvec search genes "insulin secretion"
      scvec search cells "insulin secretion" --reference pancreas
    """


@search.command()
@click.argument("text")
@k_option
@any_species_option
@click.option(
    "--where", metavar="SQL", help="Only genes that meet this condition, such as \"gene_type = 'lncRNA'\"."
)
@how_option
@backbone_option
@device_option
@global_options
@pass_session
def genes(session: Session, /, text: str, **given: Any) -> None:
    """Search genes by their names and descriptions.

    \b
    Examples:
      scvec search genes "insulin secretion"
      scvec search genes "cell adhesion" -k 20 --where "gene_type = 'lncRNA'"
    """
    from scvec.workflows.search_genes import search_genes

    session.show(search_genes(session.store, text, **given))


@search.command()
@click.argument("text", default="")
@click.option("--like", metavar="CELL", help="Find cells similar to this reference cell, instead of TEXT.")
@reference_option
@k_option
@click.option(
    "--where",
    metavar="SQL",
    help="Only reference cells that meet this condition, such as \"tissue = 'pancreas'\".",
)
@how_option
@backbone_option
@device_option
@global_options
@pass_session
def cells(session: Session, /, text: str, **given: Any) -> None:
    """Search cells and labels that express the genes of TEXT, or cells similar to a cell.

    \b
    Examples:
      scvec search cells "insulin secretion" --reference pancreas
      scvec search cells --like human1_lib1.final_cell_0001 --where "donor = 'human2'"
    """
    from scvec.workflows.search_cells import search_cells

    session.show(search_cells(session.store, text, **given))

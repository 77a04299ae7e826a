"""``scvec explain``: the genes and cells behind a label."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import Session, global_options, memory_option, pass_session

__all__ = ["explain"]


@click.command()
@click.argument("annotated", metavar="OUT.h5ad", type=click.Path(path_type=Path))
@click.option("--cell", metavar="ID", help="Explain this cell.")
@click.option("--label", metavar="NAME", help="Explain the cells with this label.")
@click.option(
    "--against", metavar="LABEL", help="Compare with this label.  [default: the next best of each cell]"
)
@click.option("--n-genes", type=click.IntRange(min=0), default=10, show_default=True, help="Genes to list.")
@memory_option
@global_options
@pass_session
def explain(
    session: Session,
    annotated: Path,
    cell: str | None,
    label: str | None,
    against: str | None,
    n_genes: int,
    memory: str | None,
) -> None:
    """Show the evidence for a label.

    These are the genes and reference cells behind the label of a cell, or of all cells of a label.

    OUT.h5ad is the output of scvec query. The cells are computed again with the store of that query.
    Give --cell or --label.

    \b
    Examples:
      scvec explain annotated.h5ad --label beta
      scvec explain annotated.h5ad --cell AAACCTGAGAAACCAT-1 --against alpha
    """
    from scvec.workflows.explain import explain as explain_

    with session.progress() as progress:
        found = explain_(
            session.store,
            annotated,
            cell=cell,
            label=label,
            against=against,
            n_genes=n_genes,
            memory=memory,
            progress=progress,
        )
    session.show(found)

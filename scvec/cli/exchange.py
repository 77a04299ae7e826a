"""``scvec export`` and ``scvec import``: vectors for other systems, and back."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import Session, dry_run_option, global_options, memory_option, pass_session

__all__ = ["commands"]


@click.command()
@click.argument("reference", required=False)
@click.option(
    "--space", metavar="SPACE", help="Instead of a reference: genes of this space (see scvec info)."
)
@click.option("--to", type=click.Choice(["parquet", "h5ad"]), required=True, help="Format of the file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT", help="Where to write."
)
@global_options
@pass_session
def export(session: Session, reference: str | None, space: str | None, to: str, output: Path) -> None:
    """Write a reference to a file: its cells, labels and vectors; or a space: its genes and vectors.

    \b
    Examples:
      scvec export pancreas --to parquet -o pancreas.parquet
      scvec export --space minilm --to h5ad -o genes.h5ad
    """
    from scvec.workflows.export import export as export_

    session.show(export_(session.store, reference, to=to, output=output, space=space))


@click.command("import")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--reference", metavar="NAME", help="Of cells: whose they are.  [default: as the file says]")
@memory_option
@dry_run_option
@global_options
@pass_session
def import_(session: Session, file: Path, reference: str | None, memory: str | None, dry_run: bool) -> None:
    """Take back what export wrote: genes of a space, or labels and columns of the cells of a reference.

    \b
    Example:
      scvec import pancreas.parquet --dry-run
    """
    from scvec.workflows.export import import_vectors

    session.show(import_vectors(session.store, file, reference=reference, memory=memory, dry_run=dry_run))


commands: tuple[click.Command, ...] = (export, import_)

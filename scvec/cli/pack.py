"""``scvec pack`` and ``scvec pull``: share references as files."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import FilePath, PathOrName, Session, global_options, pass_session

__all__ = ["commands"]


@click.command()
@click.argument("reference", required=False)
@click.option("-o", "--output", type=FilePath(), required=True, metavar="OUT.scvec", help="The file.")
@click.option(
    "--with-cells/--without-cells",
    default=True,
    show_default=True,
    help="Include vectors, obs and training cells. Without them the head annotates alone.",
)
@click.option(
    "--license", "license_", default="", metavar="SPDX", help="Licence of the data, such as CC-BY-4.0."
)
@click.option(
    "--source", "sources", multiple=True, metavar="DOI", help="Source of the data; may be repeated."
)
@click.option("--tissue", default="", help="Tissue of the cells.  [default: from obs['tissue']]")
@click.option("--assay", default="", help="Assay of the cells.  [default: from obs['assay']]")
@click.option(
    "--known-failure",
    "failures",
    multiple=True,
    metavar="TEXT",
    help="A known error of the reference; may be repeated.",
)
@global_options
@pass_session
def pack(
    session: Session,
    reference: str | None,
    output: Path,
    with_cells: bool,
    license_: str,
    sources: tuple[str, ...],
    tissue: str,
    assay: str,
    failures: tuple[str, ...],
) -> None:
    """Write a reference to one file, with a card and a golden query.

    \b
    Examples:
      scvec pack pancreas -o pancreas.scvec --license CC-BY-4.0 --source 10.1016/j.cels.2016.08.011
      scvec pack patients -o patients.scvec --without-cells
    """
    from scvec.model.card import CardOptions
    from scvec.workflows.pack import pack as pack_

    card = CardOptions(license=license_, sources=sources, tissue=tissue, assay=assay, notes=failures)
    with session.progress() as progress:
        report = pack_(
            session.store, reference, output=output, with_cells=with_cells, card=card, progress=progress
        )
    session.show(report)


@click.command()
@click.argument("source", type=PathOrName())
@click.option(
    "--name", metavar="NAME", help="Name of the reference in the store.  [default: its name in the pack]"
)
@click.option(
    "--replace", is_flag=True, help="Replace a reference of this name, even if you made or changed it."
)
@click.option("--trust", is_flag=True, help="Also accept an address without a hash or a commit.")
@click.option(
    "--max-size",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="GB",
    help="Largest file to download.",
)
@global_options
@pass_session
def pull(
    session: Session, source: str, name: str | None, replace: bool, trust: bool, max_size: float
) -> None:
    """Add a packed reference to the store, after all checks.

    SOURCE is a file, an address (https://HOST/FILE#sha256=HEX), a file on Hugging Face's hub
    (hf:OWNER/NAME@COMMIT:FILE), or a reference that ships with scvec: pancreas-human, pancreas-mouse.
    The folder or address in SCVEC_MIRROR is tried first.

    \b
    Examples:
      scvec pull pancreas-human
      scvec pull pancreas.scvec --name pancreas
    """
    from scvec.workflows.pull import pull as pull_

    with session.progress() as progress:
        report = pull_(
            session.store,
            source,
            name=name,
            replace=replace,
            trust=trust,
            max_bytes=int(max_size * 1e9),
            progress=progress,
        )
    session.show(report)


commands: tuple[click.Command, ...] = (pack, pull)

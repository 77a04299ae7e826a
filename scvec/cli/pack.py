"""``scvec pack`` and ``scvec pull``: references that are handed on."""

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
    help="Whether vectors, obs and training cells go into the file. Without them the head annotates alone.",
)
@click.option("--license", "license_", default="", metavar="SPDX", help="Licence of the data: CC-BY-4.0.")
@click.option(
    "--source", "sources", multiple=True, metavar="DOI", help="Where the data come from; may be repeated."
)
@click.option("--tissue", default="", help="Tissue of the cells.  [default: as obs['tissue'] says]")
@click.option("--assay", default="", help="Assay of the cells.  [default: as obs['assay'] says]")
@click.option(
    "--known-failure", "failures", multiple=True, metavar="TEXT", help="What it gets wrong; may be repeated."
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
    """Write a reference as one file, with its card and a golden query.

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
@click.option("--name", metavar="NAME", help="What to call the reference here.  [default: as it was packed]")
@click.option("--trust", is_flag=True, help="Also take an address without a hash or a commit.")
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
def pull(session: Session, source: str, name: str | None, trust: bool, max_size: float) -> None:
    """Put a packed reference into the store, once every byte and its golden query were checked.

    SOURCE is a file, an address (https://HOST/FILE#sha256=HEX), a file on Hugging Face's hub
    (hf:OWNER/NAME@COMMIT:FILE), or a reference that ships with scvec: pancreas-human, pancreas-mouse.
    SCVEC_MIRROR names a folder or an address that is asked first.

    \b
    Examples:
      scvec pull pancreas-human
      scvec pull pancreas.scvec --name pancreas
    """
    from scvec.workflows.pull import pull as pull_

    with session.progress() as progress:
        report = pull_(
            session.store, source, name=name, trust=trust, max_bytes=int(max_size * 1e9), progress=progress
        )
    session.show(report)


commands: tuple[click.Command, ...] = (pack, pull)

"""``scvec import-legacy``: what earlier systems left."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import SPECIES, Session, global_options, memory_option, pass_session

__all__ = ["import_legacy"]


@click.command("import-legacy")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["auto", "scinterpreter", "genept"]),
    default="auto",
    show_default=True,
    help="Whose files they are.",
)
@click.option("--name", help="What to call the texts or the space.  [default: the file's name]")
@click.option(
    "--species",
    type=click.Choice(["auto", *SPECIES]),
    default="auto",
    show_default=True,
    help="Whose genes, where a record does not say it.",
)
@memory_option
@click.option("--dry-run", is_flag=True, help="Read, match and count; change nothing.")
@global_options
@pass_session
def import_legacy(
    session: Session,
    files: tuple[Path, ...],
    kind: str,
    name: str | None,
    species: str,
    memory: str | None,
    dry_run: bool,
) -> None:
    """Take over gene texts and vectors of scInterpreter, scReader or GenePT.

    JSON, CSV (also .gz) and pickles, which are read without being run. Genes are matched by name and id.

    \b
    Examples:
      scvec import-legacy human_gene_description.json
      scvec import-legacy GenePT_gene_embedding_ada_text.pickle --name genept --dry-run
    """
    from scvec.workflows.import_legacy import import_legacy as run

    with session.progress() as progress:
        report = run(
            session.store,
            files,
            kind=kind,
            name=name,
            species=species,
            memory=memory,
            dry_run=dry_run,
            progress=progress,
        )
    session.show(report)

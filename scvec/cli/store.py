"""Commands on the store itself: info, diff, verify, doctor, rm, compact, export, import."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from scvec.base.errors import InputError, StoreError
from scvec.cli.options import (
    FilePath,
    PathOrName,
    Session,
    SpeciesName,
    device_option,
    dry_run_option,
    global_options,
    llm_option,
    memory_option,
    pass_session,
)

__all__ = ["commands"]


@click.command()
@click.argument("reference", required=False)
@click.option(
    "--space", metavar="SPACE", help="Genes of this space, instead of a reference (see scvec info)."
)
@click.option("--to", type=click.Choice(["parquet", "h5ad"]), required=True, help="Format of the file.")
@click.option("-o", "--output", type=FilePath(), required=True, metavar="OUT", help="Output file.")
@global_options
@pass_session
def export(session: Session, reference: str | None, space: str | None, to: str, output: Path) -> None:
    """Write the vectors of a reference or a space to a file.

    The file of a reference has cells, labels and vectors. The file of a space has genes and vectors.

    \b
    Examples:
      scvec export pancreas --to parquet -o pancreas.parquet
      scvec export --space minilm --to h5ad -o genes.h5ad
    """
    from scvec.workflows.export import export as export_

    session.show(export_(session.store, reference, to=to, output=output, space=space))


@click.command("import")
@click.argument("file", metavar="FILE", type=FilePath())
@click.option("--reference", metavar="NAME", help="Reference of the cells.  [default: named in the file]")
@memory_option
@dry_run_option
@global_options
@pass_session
def import_(session: Session, file: Path, reference: str | None, memory: str | None, dry_run: bool) -> None:
    """Import a file of scvec export: genes of a space, or labels and obs columns of a reference.

    \b
    Example:
      scvec import pancreas.parquet --dry-run
    """
    from scvec.workflows.export import import_vectors

    session.show(import_vectors(session.store, file, reference=reference, memory=memory, dry_run=dry_run))


@click.command()
@click.argument("what", required=False, metavar="[genes]", type=click.Choice(["genes"]))
@click.argument("names", nargs=-1, metavar="[GENE...]")
@click.option("--reference", metavar="NAME", help="Show details of this reference.")
@click.option("--species", type=SpeciesName(), help="Species of the genes.  [default: all]")
@global_options
@pass_session
def info(
    session: Session, what: str | None, names: tuple[str, ...], reference: str | None, species: str | None
) -> None:
    """Show the contents of the store, or all texts, sources and vectors of genes.

    \b
    Examples:
      scvec info --reference pancreas
      scvec info genes INS
    """
    if what == "genes":
        if not names:
            fix = "give one or more, such as: scvec info genes INS"
            raise InputError("no gene was given", "scvec info genes", fix, code="usage")
        if reference is not None:
            what = "--reference cannot be used with genes"
            raise InputError(what, "scvec info genes", "leave it out", code="usage")
        from scvec.workflows.gene_info import gene_info

        session.show(gene_info(session.store, names, species=species))
        return
    from scvec.workflows.admin import info as info_

    session.show(info_(session.store, reference))


@click.command()
@click.argument("old", type=PathOrName())
@click.argument("new", type=PathOrName(), required=False)
@click.option(
    "--reference",
    "references",
    is_flag=True,
    help="OLD and NEW are references of the store. Files that end in .scvec always are.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Number of examples of each kind.",
)
@global_options
@pass_session
def diff(session: Session, old: str, new: str | None, references: bool, limit: int) -> None:
    """Show the changes from version OLD of the store to version NEW (default: the current one).

    OLD and NEW can also be packs, or names of references with --reference. The command then compares labels,
    cells, genes, accuracy, licence and sources.

    \b
    Examples:
      scvec diff 3 4
      scvec diff pancreas-1.scvec pancreas-2.scvec
      scvec diff --reference pancreas pancreas-2.scvec
    """
    if references or old.endswith(".scvec") or (new or "").endswith(".scvec"):
        if new is None:
            raise InputError("only one reference is given", "scvec diff", "give two")
        from scvec.workflows.diff import diff_references

        session.show(diff_references(session.store, old, new))
        return
    from scvec.workflows.diff import diff as diff_

    session.show(diff_(session.store, old, "current" if new is None else new, limit=limit))


@click.command()
@device_option
@llm_option("Folder of the language model of prompt references, if it moved.")
@global_options
@pass_session
@click.pass_context
def verify(ctx: click.Context, session: Session, device: str, llm: str | None) -> None:
    """Check every file of the store.

    It compares files with their checksums, and recomputed with stored vectors. The exit code is 3 if
    something is damaged.

    \b
    Example:
      scvec verify
    """
    from scvec.workflows.admin import verify as verify_

    report = verify_(session.store, device=device, llm=llm)
    session.show(report)
    if not report.ok:
        ctx.exit(StoreError.exit_code)


@click.command()
@global_options
@pass_session
def doctor(session: Session) -> None:
    """Check the machine: versions, cores, memory, disk, GPU, weights, store.

    \b
    Example:
      scvec doctor
    """
    from scvec.workflows.admin import doctor as doctor_

    session.show(doctor_(session.store))


@click.command()
@click.argument("reference")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--where", metavar="SQL", help="Only the cells that meet this condition on their obs columns.")
@global_options
@pass_session
def rm(session: Session, reference: str, yes: bool, where: str | None) -> None:
    """Delete a reference, or some of its cells.

    \b
    Examples:
      scvec rm pancreas --yes
      scvec rm pancreas --where "donor = 'human3'" --yes
    """
    from scvec.workflows.admin import rm as rm_
    from scvec.workflows.append_and_drop import drop_cells

    target = f"reference '{reference}'" if where is None else f"cells of '{reference}' with {where}"
    if not yes:
        if session.as_json or not sys.stdin.isatty():
            what = f"deleting {target} needs a confirmation in a terminal"
            raise InputError(what, "scvec rm", "add --yes to delete without it", code="not-confirmed")
        if not click.confirm(f"Delete {target}?", err=True):
            session.note("nothing was deleted")
            return
    session.show(
        rm_(session.store, reference) if where is None else drop_cells(session.store, reference, where=where)
    )


@click.command()
@global_options
@pass_session
def compact(session: Session) -> None:
    """Free the disk space of old versions, and merge the segments of appended and deleted cells.

    \b
    Example:
      scvec compact
    """
    from scvec.workflows.admin import compact as compact_

    session.show(compact_(session.store))


commands: tuple[click.Command, ...] = (info, diff, verify, doctor, rm, compact, export, import_)

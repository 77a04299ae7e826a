"""``scvec ingest genes``, ``complement``, ``embeddings`` and ``import-legacy``: gene texts and vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scvec.base.errors import InputError
from scvec.base.species import species_key
from scvec.cli.options import (
    Session,
    SpeciesName,
    base_url_option,
    concurrency_option,
    device_option,
    dry_run_option,
    genes_option,
    global_options,
    max_cost_option,
    memory_option,
    pass_session,
    species_option,
    timeout_option,
)
from scvec.ingest.sources import SOURCES

__all__ = ["commands", "import_legacy"]


@click.command("import-legacy")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["auto", "scinterpreter", "genept"]),
    default="auto",
    show_default=True,
    help="Where the files come from.",
)
@click.option("--name", help="Name of the texts or the space.  [default: the file's name]")
@click.option(
    "--species",
    type=SpeciesName("auto"),
    default="auto",
    show_default=True,
    help="Species of records that name none.",
)
@memory_option
@click.option("--dry-run", is_flag=True, help="Read, match and count; change nothing.")
@global_options
@pass_session
def import_legacy(session: Session, /, files: tuple[Path, ...], **given: Any) -> None:
    """Import gene texts and vectors of scInterpreter, scReader or GenePT.

    JSON, CSV (also .gz) and pickles, which are read without being run. Genes are matched by name and id.

    \b
    Examples:
      scvec import-legacy human_gene_description.json
      scvec import-legacy GenePT_gene_embedding_ada_text.pickle --name genept --dry-run
    """
    from scvec.workflows.import_legacy import import_legacy as run

    with session.progress() as progress:
        report = run(session.store, files, progress=progress, **given)
    session.show(report)


@click.command()
@species_option
@click.option(
    "--source",
    default="snapshot",
    show_default=True,
    metavar="|".join(["snapshot", *SOURCES, "FILE"]),
    help="The snapshot that ships with scvec, a live service, or a file (docs/genes.md).",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="SPECIES=NAME",
    help="Column of a table of orthologs with the genes of a species; may be repeated.",
)
@genes_option
@click.option("--refresh", is_flag=True, help="Ask again about genes that ncbi or mygene has answered.")
@click.option("--details", is_flag=True, help="Ask ncbi for type, status, lineage, expression too; slower.")
@base_url_option
@click.option(
    "--requests-per-second",
    type=click.FloatRange(min=0),
    metavar="N",
    help="The most to send; 0 for no limit, at a mirror.  [default: what the service allows]",
)
@concurrency_option
@dry_run_option
@global_options
@pass_session
def genes(session: Session, /, **given: Any) -> None:
    """Put gene facts and descriptions into the knowledge base.

    NCBI_API_KEY and NCBI_EMAIL, or the config file, identify you to ncbi; with a key it answers 10 requests
    a second instead of 3. A run that was stopped continues where it was.

    \b
    Examples:
      scvec ingest genes
      scvec ingest genes --species human --source my_genes.csv
      scvec ingest genes --species human --source ncbi --dry-run
      scvec ingest genes --species zebrafish
      scvec ingest genes --species sheep --source mart_export.txt
    """
    from scvec.workflows.ingest_genes import ingest_genes

    given["columns"] = _columns(given["columns"])
    with session.progress() as progress:
        report = ingest_genes(session.store, progress=progress, **given)
    session.show(report)


def _columns(texts: tuple[str, ...]) -> dict[str, str]:
    columns = {}
    for text in texts:
        what, sign, column = text.partition("=")
        if not sign:
            fix = "write SPECIES=NAME, kind=NAME or score=NAME"
            raise InputError(f"{text!r} does not say what a column means", "--column", fix)
        columns[what if what in ("kind", "score") else species_key(what, "--column")] = column
    return columns


@click.command()
@click.option("--model", required=True, metavar="NAME", help="Language model, as the server calls it.")
@species_option
@genes_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many genes.")
@click.option("--overwrite", is_flag=True, help="Write again what a language model has written before.")
@base_url_option
@max_cost_option
@concurrency_option
@timeout_option
@dry_run_option
@global_options
@pass_session
def complement(session: Session, /, **given: Any) -> None:
    """Let a language model describe genes that lack a written description.

    Any server that speaks OpenAI's protocol will do (--base-url). OPENAI_API_KEY or the config file holds
    the key. Each text is stored with model, prompt and tokens, marked as written by a model, and used only
    where people have written none. A run that was stopped continues where it was.

    \b
    Examples:
      scvec ingest complement --model gpt-4o-mini --dry-run
      scvec ingest complement --model gpt-4o-mini --max-cost 2.50
      scvec ingest complement --model qwen3 --base-url http://127.0.0.1:8080/v1 --genes genes.txt
    """
    from scvec.workflows.complement import ingest_complement

    with session.progress() as progress:
        report = ingest_complement(session.store, progress=progress, **given)
    session.show(report)


@click.command()
@click.option(
    "--backbone",
    default="minilm",
    show_default=True,
    metavar="SPEC",
    help="minilm, st:PATH_OR_ID, hf:PATH_OR_ID, openai:MODEL, or a control: random:DIM, permuted:SPEC, "
    "name:SPEC.",
)
@click.option(
    "--text", default="default", show_default=True, metavar="TEMPLATE", help="Template of the text of a gene."
)
@species_option
@genes_option
@base_url_option
@max_cost_option
@device_option
@dry_run_option
@global_options
@pass_session
def embeddings(session: Session, /, **given: Any) -> None:
    """Turn the descriptions of genes into vectors, in one space.

    Only texts that have no vector in this space are encoded.

    \b
    Examples:
      scvec ingest embeddings
      scvec ingest embeddings --backbone minilm --genes genes.txt
      scvec ingest embeddings --backbone openai:text-embedding-3-small --max-cost 1
    """
    from scvec.workflows.embed_genes import ingest_embeddings

    with session.progress() as progress:
        report = ingest_embeddings(session.store, progress=progress, **given)
    session.show(report)


commands = (genes, complement, embeddings)

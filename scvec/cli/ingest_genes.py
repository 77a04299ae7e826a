"""``scvec ingest genes``, ``complement``, ``embeddings`` and ``import-legacy``: gene texts and vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scvec.base.errors import InputError
from scvec.base.species import species_key
from scvec.cli.options import (
    FilePath,
    PathOrName,
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
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FilePath())
@click.option("--name", help="Name of the texts or the space.  [default: the file's name]")
@click.option(
    "--species",
    type=SpeciesName("auto"),
    default="auto",
    show_default=True,
    help="Species of records without a species.",
)
@memory_option
@click.option("--dry-run", is_flag=True, help="Read, match and count, without changes.")
@global_options
@pass_session
def import_legacy(session: Session, /, files: tuple[Path, ...], **given: Any) -> None:
    """Import gene texts and vectors of scInterpreter, scReader or GenePT.

    FILE is JSON, CSV (also .gz) or a pickle, which is read without running code. Genes are matched by name
    and id.

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
    type=PathOrName(),
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
@click.option("--refresh", is_flag=True, help="Request genes again that ncbi or mygene has answered.")
@base_url_option
@click.option(
    "--requests-per-second",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Largest rate; 0 for no limit, for a mirror.  [default: the limit of the service]",
)
@concurrency_option
@dry_run_option
@global_options
@pass_session
def genes(session: Session, /, **given: Any) -> None:
    """Add gene facts and descriptions to the knowledge base.

    NCBI_API_KEY and NCBI_EMAIL, or the config file, identify you to ncbi. With a key it answers 10 requests
    per second instead of 3. The next run continues an interrupted run.

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
            raise InputError(f"{text!r} has the wrong form", "--column", fix)
        columns[what if what in ("kind", "score") else species_key(what, "--column")] = column
    return columns


@click.command()
@click.option("--model", required=True, metavar="NAME", help="Name of the language model on the server.")
@species_option
@genes_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Largest number of genes.")
@click.option("--overwrite", is_flag=True, help="Replace descriptions that a language model wrote before.")
@base_url_option
@max_cost_option
@concurrency_option
@timeout_option
@dry_run_option
@global_options
@pass_session
def complement(session: Session, /, **given: Any) -> None:
    """Let a language model describe genes without a written description.

    Any server with the OpenAI protocol works (--base-url). OPENAI_API_KEY or the config file has the key.
    Each text is stored with model, prompt and tokens, and marked as written by a model. It is used only for
    genes without a human-written description. The next run continues an interrupted run.

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
    type=PathOrName(),
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
    """Encode the descriptions of genes as vectors in one space.

    Texts that already have a vector in this space are not encoded again.

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

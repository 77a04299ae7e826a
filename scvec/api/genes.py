"""``scvec ingest genes``: gene facts and descriptions into the knowledge base."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.api.reports import GenesReport
from scvec.errors import InputError
from scvec.protocols import Progress, no_progress
from scvec.types import SPECIES

if TYPE_CHECKING:
    from scvec.stores.knowledge import KnowledgeBase

__all__ = ["ensure_knowledge", "ingest_genes", "read_gene_list"]


def ensure_knowledge(kb: KnowledgeBase, *, progress: Progress = no_progress) -> bool:
    """Load the shipped snapshot where the knowledge base is empty; return whether it was."""
    if kb.counts()["genes"]:
        return False
    progress("loading gene knowledge", 0, None)
    kb.load_snapshot(SPECIES)
    progress("loading gene knowledge", 1, 1)
    return True


def read_gene_list(path: Path) -> list[str]:
    """Return gene names of a text file, one a line; empty lines and lines that begin with # do not count.

    Raises
    ------
    InputError
        If the file cannot be read as text or names no gene.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError("no such file", str(path), "give a file with one gene a line") from error
    except IsADirectoryError as error:
        fix = "give a file with one gene a line"
        raise InputError("this is a folder, not a file", str(path), fix) from error
    except UnicodeDecodeError as error:
        fix = "give a plain text file (UTF-8) with one gene a line"
        raise InputError("the list of genes is no text", str(path), fix) from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise InputError("the list names no gene", str(path), "give a file with one gene a line")
    return names


def ingest_genes(
    store: Path | str,
    *,
    species: Sequence[str] = SPECIES,
    source: str | Path = "snapshot",
    genes: Path | None = None,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> GenesReport:
    """Fill the knowledge base from the shipped snapshot or a file.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    source
        ``snapshot``, or a jsonl, csv or parquet file with one gene a row (see docs/genes.md).
    genes
        File with one gene name a line: of ``source``, only these are taken.
    dry_run
        Read and count; change nothing.

    Raises
    ------
    InputError
        If the file cannot be used.
    """
    from scvec.stores.store import Store

    started = time.monotonic()
    names = read_gene_list(genes) if genes else None
    if str(source) == "snapshot":
        if names is not None:
            raise InputError(
                "--genes chooses genes of a file, and the snapshot is loaded whole",
                "--genes",
                "leave it out, or give the file with --source",
            )
        path = None
    else:
        path = Path(source)
        if not path.is_file():
            what = "this is a folder, not a file" if path.is_dir() else "no such file"
            fix = "give --source snapshot, or a jsonl, csv or parquet file"
            raise InputError(what, str(source), fix)
    opened = Store.open(store, create=True)
    notes: list[str] = []
    with opened.begin("ingest genes", {"source": path.name if path else "snapshot"}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        if path is not None:
            loaded = _load_file(kb, path, species, names, progress)
            notes.append(f"{path.name}: {loaded:,} genes read")
        counts = kb.counts()
        generation = ""
        if not dry_run:
            generation = str(txn.commit().number)
        notes += txn.notes
    return GenesReport(
        genes=_by_prefix(counts, "genes "),
        descriptions=_by_prefix(counts, "descriptions "),
        orthologs=counts.get("orthologs", 0),
        source=path.name if path else "snapshot",
        seconds=time.monotonic() - started,
        generation=generation,
        dry_run=dry_run,
        notes=notes,
    )


def _load_file(
    kb: KnowledgeBase, path: Path, species: Sequence[str], names: list[str] | None, progress: Progress
) -> int:
    from scvec.ingest.gene_files import read_gene_file

    only = species[0] if len(species) == 1 else None
    wanted = set(names) if names is not None else None
    total = 0

    def batches() -> Iterator[Any]:
        nonlocal total
        for batch in read_gene_file(path, species=only):
            kept = [
                (gene, texts)
                for gene, texts in batch
                if gene.species in species
                and (
                    wanted is None
                    or not wanted.isdisjoint({gene.symbol, str(gene.entrez_id), *gene.ensembl_ids})
                )
            ]
            total += len(kept)
            progress(f"reading {path.name}", total, None)
            yield kept

    kb.upsert_records(batches(), source=path.name)
    return total


def _by_prefix(counts: dict[str, int], prefix: str) -> dict[str, int]:
    return {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}

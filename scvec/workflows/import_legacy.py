"""``scvec import-legacy``: texts and vectors of genes from scInterpreter, scReader and GenePT."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.results import Record, Report
from scvec.base.types import SPECIES, Description, Progress, Space, no_progress, text_sha256
from scvec.ingest.genes.legacy import LegacyFile, LegacyMatch, match_entries, read_legacy
from scvec.ingest.sources.facts import provenance_json
from scvec.model.resolvers import ensure_knowledge, resolver_of
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.stores.store.transaction import Transaction

__all__ = ["LegacyFileReport", "LegacyReport", "import_legacy"]

#: Records of each kind that the report names.
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class LegacyFileReport(Record):
    """What was taken from one file.

    Attributes
    ----------
    kind, holds
        ``scinterpreter`` or ``genept``; ``texts`` or ``vectors``.
    read, matched, ambiguous, unknown, refused, repeated
        Records read; taken; with a name of several genes; of no known gene; damaged or with names that
        contradict each other; of a gene that another record was taken for.
    examples
        The first few of each, with the reason.
    space, dim
        Fingerprint and dimension of the space that was made of vectors.
    """

    name: str
    file: str
    kind: str
    holds: str
    species: str
    read: int
    matched: int
    ambiguous: int
    unknown: int
    refused: int
    repeated: int
    examples: dict[str, list[str]]
    space: str = ""
    dim: int = 0

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        size = f" of {self.dim:,} numbers" if self.dim else ""
        lines = [
            f"{self.file}: {self.holds}{size} ({self.kind}), {self.matched:,} of {self.read:,} taken; "
            f"{self.unknown:,} unknown, {self.ambiguous:,} ambiguous, {self.refused:,} refused, "
            f"{self.repeated:,} of a gene that is there"
        ]
        for why, shown in self.examples.items():
            more = getattr(self, why) - len(shown)
            lines.append(f"  {why}: {'; '.join(shown)}{f'; and {more:,} more' if more > 0 else ''}")
        if self.space:
            use = f"scvec ingest cells REF --backbone stored:{self.name}"
            lines.append(f"  space {self.space}, backbone legacy:{self.name}: {use}")
        return lines


@dataclass(frozen=True, kw_only=True)
class LegacyReport(Report):
    """What ``import-legacy`` took from files of earlier systems."""

    files: list[LegacyFileReport]
    seconds: float
    generation: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [line for file in self.files for line in file.lines()]
        lines += ["nothing was changed (--dry-run)"] if self.dry_run else []
        return [*lines, f"took {self.seconds:.1f} s"]


def import_legacy(
    store: Path | str,
    files: Sequence[Path | str],
    *,
    kind: str = "auto",
    name: str | None = None,
    species: str = "auto",
    memory: str | int | None = None,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> LegacyReport:
    """Import gene texts and vectors of scInterpreter, scReader or GenePT.

    Texts become descriptions with their provenance; texts by a language model are marked. Vectors become a
    space of backbone ``legacy:NAME``: their texts and model are not known, so no vector can be added to it.

    Parameters
    ----------
    files
        JSON or CSV (also .gz), or pickles, which are read without being run.
    kind
        ``scinterpreter``, ``genept``, or ``auto``: detected from the content.
    name
        Of the texts or the space; the file's name by default.
    species
        Of records that name none: ``human``, ``mouse`` or ``auto``.
    memory
        The most that reading a file may use, as ``4G``.
    dry_run
        Read, match and count; change nothing.

    Raises
    ------
    InputError
        If a file is damaged, of another format, or holds anything that would have to be run.
    """
    started = time.monotonic()
    if species not in ("auto", *SPECIES):
        raise InputError(f"unknown species {species!r}", "--species", f"use {', '.join(SPECIES)} or auto")
    names = _names(files, name)
    notes: list[str] = []
    reports: list[LegacyFileReport] = []
    params = {"files": [Path(f).name for f in files], "name": name}
    with Store.open(store, create=True).begin("import-legacy", params) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        resolver, gene_ids = resolver_of(kb), set(kb.genes()["gene_id"])
        for number, (path, called) in enumerate(zip(files, names, strict=True)):
            progress("reading files", number, len(files))
            file = read_legacy(path, kind=kind, memory=memory)  # type: ignore[arg-type]  # it checks
            match = match_entries(file.entries, resolver, gene_ids, species)
            notes += file.notes
            space = None
            if not match.n_matched:
                known = "no gene is known, so nothing was taken; check --species"
                notes.append(f"warning: {file.path.name}: {known}")
            elif file.vectors is None:
                kb.upsert_descriptions(_descriptions(file, match, called))
            else:
                space = _put_vectors(txn, kb, file, match, called)
            reports.append(_report(file, match, called, space))
        progress("reading files", len(files), len(files))
        generation = "" if dry_run else str(txn.commit().number)
        notes += txn.notes
    seconds = time.monotonic() - started
    return LegacyReport(files=reports, seconds=seconds, generation=generation, dry_run=dry_run, notes=notes)


def _names(files: Sequence[Path | str], name: str | None) -> list[str]:
    if not files:
        raise InputError("no file is given", "FILE", "name at least one file")
    if name is not None and len(files) > 1:
        raise InputError("one name cannot stand for several files", "--name", "import them one by one")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fix = "use letters, digits, dots, dashes and underscores"
        raise InputError(f"{name!r} cannot be a name", "--name", fix, code="bad-name")
    stems = [Path(file).name.lower().removesuffix(".gz").rsplit(".", 1)[0] for file in files]
    names = [name or re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-.")[:100] or "file" for stem in stems]
    if len(set(names)) < len(names):
        fix = "import them one by one, with --name"
        raise InputError("two files would get the same name", ", ".join(names), fix)
    return names


def _put_vectors(
    txn: Transaction, kb: KnowledgeBase, file: LegacyFile, match: LegacyMatch, name: str
) -> Space:
    """Put the vectors of a file into a space of their own and return it."""
    if file.vectors is None:
        raise ValueError("the file has no vectors")
    (genes,) = match.genes.values()
    ids = sorted(genes)
    vectors = file.vectors[[genes[g].row for g in ids]]
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    space = Space(
        backbone=f"legacy:{name}",
        revision="unknown",
        weights_sha256=file.sha256,
        template="unknown",
        pooling="unknown",
        dim=vectors.shape[1],
        normalized=bool(np.abs(norms - 1).max() < 1e-3),
    )
    table = kb.genes().set_index("gene_id").loc[ids, ["species", "symbol"]].reset_index()
    # The text is not known: a hash of its own stands for it.
    table["text_sha256"] = [text_sha256(f"legacy:{file.sha256}:{g}") for g in ids]
    txn.put_space(space, table, vectors)
    return space


def _descriptions(file: LegacyFile, match: LegacyMatch, name: str) -> list[Description]:
    origin = {"file": file.path.name, "file_sha256": file.sha256}
    return [
        Description(
            gene_id=gene_id,
            text=entry.text,
            source=f"legacy:{name}/{group}" if group else f"legacy:{name}",
            source_version=str(entry.provenance.get("provided_at", "")) or file.path.name,
            retrieved_at="",  # not known, so that any text with a date is newer
            kind="llm" if entry.by_model else "human",
            model="unknown" if entry.by_model else "",
            provenance=provenance_json(
                {**entry.provenance, **origin, "key": entry.key, "facts": dict(entry.facts)}
            ),
        )
        for group, genes in match.genes.items()
        for gene_id, entry in genes.items()
    ]


def _report(file: LegacyFile, match: LegacyMatch, name: str, space: Space | None) -> LegacyFileReport:
    refused = {**file.refused, **match.contradictory}
    left: dict[str, list[str]] = {
        "unknown": match.unknown,
        "ambiguous": [f"{k} ({' or '.join(g)})" for k, g in match.ambiguous.items()],
        "refused": [f"{k}: {why}" for k, why in refused.items()],
        "repeated": [f"{k}, as {kept}" for k, kept in match.repeated.items()],
    }
    species = {e.species or match.species for group in match.genes.values() for e in group.values()}
    counts: dict[str, Any] = {why: len(records) for why, records in left.items()}
    return LegacyFileReport(
        name=name,
        file=file.path.name,
        kind=file.kind,
        holds="texts" if file.vectors is None else "vectors",
        species=" and ".join(sorted(species)) or match.species,
        read=file.n_records,
        matched=match.n_matched,
        examples={why: records[:EXAMPLES] for why, records in left.items() if records},
        space=space.fingerprint if space else "",
        dim=0 if file.vectors is None else int(file.vectors.shape[1]),
        **counts,
    )

"""``scvec import-legacy``: texts and vectors of genes from earlier systems."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.base.results import Record, Report
from scvec.base.types import SPECIES, Description, Progress, Space, no_progress, text_sha256

if TYPE_CHECKING:
    from scvec.ingest.genes.legacy import LegacyFile, LegacyMatch
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.transaction import Transaction

__all__ = ["LegacyFileReport", "LegacyReport", "import_legacy"]

#: Records that a line names.
EXAMPLES = 5
#: Model of texts that a language model wrote, where the file does not say which.
UNKNOWN_MODEL = "unknown"


@dataclass(frozen=True, kw_only=True)
class LegacyFileReport(Record):
    """What became of one file.

    Attributes
    ----------
    kind, holds
        ``scinterpreter`` or ``genept``; ``texts`` or ``vectors``.
    read, matched, ambiguous, unknown, refused, repeated
        Records read; taken; with a name of several genes; of no known gene; that cannot be used (damaged, or
        with names that contradict each other); of a gene that another record was taken for.
    examples
        The first few of each, with the reason.
    space, dim
        Fingerprint and dimension of the space made of vectors.
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
            lines.append(
                f"  space {self.space}, backbone legacy:{self.name}: "
                f"scvec ingest cells REF --backbone stored:{self.name}"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class LegacyReport(Report):
    """What ``import-legacy`` took from files of earlier systems."""

    files: list[LegacyFileReport]
    seconds: float
    generation: str = ""
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [line for file in self.files for line in file.lines()]
        if self.dry_run:
            lines.append("nothing was changed (--dry-run)")
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
    """Take over texts and vectors of genes that scInterpreter, scReader or GenePT left.

    Texts become descriptions with where they come from; texts that a language model wrote are marked so.
    Vectors become a space of the store, of backbone ``legacy:NAME``: what texts and which model made them
    is not known, so nothing can be added to it.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    files
        JSON or CSV (also .gz), or pickles, which are read without being run.
    kind
        ``scinterpreter``, ``genept``, or ``auto``: told by the content.
    name
        What the texts or the space are called; from the file's name by default.
    species
        Of records that do not say it: ``human``, ``mouse`` or ``auto``.
    memory
        What reading a file may use, as ``4G``.
    dry_run
        Read, match and count; change nothing.

    Raises
    ------
    InputError
        If a file is damaged, of another format, or holds anything that would have to be run.
    """
    from scvec.ingest.genes.legacy import match_entries, read_legacy
    from scvec.model.resolvers import ensure_knowledge, resolver_of
    from scvec.stores.store.store import Store

    started = time.monotonic()
    if species not in ("auto", *SPECIES):
        raise InputError(f"unknown species {species!r}", "--species", f"use {', '.join(SPECIES)} or auto")
    names = _names(files, name)
    opened = Store.open(store, create=True)
    notes: list[str] = []
    reports: list[LegacyFileReport] = []
    with opened.begin("import-legacy", {"files": [Path(f).name for f in files], "name": name}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        resolver, gene_ids = resolver_of(kb), set(kb.genes()["gene_id"])
        for number, (file, called) in enumerate(zip(files, names, strict=True)):
            progress("reading files", number, len(files))
            found = read_legacy(file, kind=kind, memory=memory)  # type: ignore[arg-type]  # it checks
            match = match_entries(found.entries, resolver, gene_ids, species)
            notes += found.notes
            space = _store(txn, kb, found, match, called, notes)
            reports.append(_report(found, match, called, space))
        progress("reading files", len(files), len(files))
        generation = "" if dry_run else str(txn.commit().number)
        notes += txn.notes
    return LegacyReport(
        files=reports,
        seconds=time.monotonic() - started,
        generation=generation,
        dry_run=dry_run,
        notes=notes,
    )


def _names(files: Sequence[Path | str], name: str | None) -> list[str]:
    if not files:
        raise InputError("no file is given", "FILE", "name at least one file")
    if name is not None and len(files) > 1:
        raise InputError("one name cannot stand for several files", "--name", "import them one by one")
    names = []
    for file in files:
        called = name if name is not None else Path(file).name.lower().removesuffix(".gz").rsplit(".", 1)[0]
        if name is None:
            called = re.sub(r"[^A-Za-z0-9._-]+", "-", called).strip("-.") or "file"
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", called):
            fix = "use letters, digits, dots, dashes and underscores"
            raise InputError(f"{called!r} cannot be a name", "--name", fix, code="bad-name")
        names.append(called[:100])
    if len(set(names)) < len(names):
        raise InputError(
            "two files would get the same name", ", ".join(names), "import them one by one, with --name"
        )
    return names


def _store(
    txn: Transaction,
    kb: KnowledgeBase,
    found: LegacyFile,
    match: LegacyMatch,
    name: str,
    notes: list[str],
) -> Space | None:
    """Put texts into the knowledge base or vectors into a space; return that."""
    if not match.n_matched:
        notes.append(f"warning: {found.path.name}: no gene is known, so nothing was taken; check --species")
        return None
    if found.vectors is None:
        kb.upsert_descriptions(_descriptions(found, match, name))
        return None
    import numpy as np

    (genes,) = match.genes.values()
    ids = sorted(genes)
    vectors = found.vectors[[genes[g].row for g in ids]]
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    space = Space(
        backbone=f"legacy:{name}",
        revision="unknown",
        weights_sha256=found.sha256,
        template="unknown",
        pooling="unknown",
        dim=vectors.shape[1],
        normalized=bool(np.abs(norms - 1).max() < 1e-3),
    )
    table = kb.genes().set_index("gene_id").loc[ids, ["species", "symbol"]].reset_index()
    # The text is not known. What stands for it is like no text's hash, and no other vector's.
    table["text_sha256"] = [text_sha256(f"legacy:{found.sha256}:{g}") for g in ids]
    txn.put_space(space, table, vectors)
    return space


def _descriptions(found: LegacyFile, match: LegacyMatch, name: str) -> list[Description]:
    from scvec.ingest.sources.facts import provenance_json

    texts = []
    for group, genes in match.genes.items():
        source = f"legacy:{name}/{group}" if group else f"legacy:{name}"
        for gene_id, entry in genes.items():
            origin: dict[str, Any] = {
                **entry.provenance,
                "file": found.path.name,
                "file_sha256": found.sha256,
                "key": entry.key,
                "facts": dict(entry.facts),
            }
            texts.append(
                Description(
                    gene_id=gene_id,
                    text=entry.text,
                    source=source,
                    source_version=str(entry.provenance.get("provided_at", "")) or found.path.name,
                    retrieved_at="",  # not known, so any text with a date is newer
                    kind="llm" if entry.by_model else "human",
                    model=UNKNOWN_MODEL if entry.by_model else "",
                    provenance=provenance_json(origin),
                )
            )
    return texts


def _report(found: LegacyFile, match: LegacyMatch, name: str, space: Space | None) -> LegacyFileReport:
    refused = {**found.refused, **match.contradictory}
    examples = {
        "unknown": match.unknown[:EXAMPLES],
        "ambiguous": [f"{k} ({' or '.join(g)})" for k, g in list(match.ambiguous.items())[:EXAMPLES]],
        "refused": [f"{k}: {why}" for k, why in list(refused.items())[:EXAMPLES]],
        "repeated": [f"{k}, as {kept}" for k, kept in list(match.repeated.items())[:EXAMPLES]],
    }
    kinds = {e.species or match.species for group in match.genes.values() for e in group.values()}
    return LegacyFileReport(
        name=name,
        file=found.path.name,
        kind=found.kind,
        holds="texts" if found.vectors is None else "vectors",
        species=" and ".join(sorted(kinds)) or match.species,
        read=found.n_records,
        matched=match.n_matched,
        ambiguous=len(match.ambiguous),
        unknown=len(match.unknown),
        refused=len(refused),
        repeated=len(match.repeated),
        examples={why: shown for why, shown in examples.items() if shown},
        space=space.fingerprint if space else "",
        dim=0 if found.vectors is None else int(found.vectors.shape[1]),
    )

"""``scvec info genes``: every text about a gene, its source and its vectors."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scvec.base.errors import InputError
from scvec.base.results import Record, Report
from scvec.base.species import species_key
from scvec.model.gene_vectors import gene_table
from scvec.model.resolvers import GeneResolver, no_knowledge, stored_resolver
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store

__all__ = ["gene_info"]

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class GeneText(Record):
    """One text about a gene.

    Attributes
    ----------
    kind
        ``human``, ``llm``, ``composed`` or ``borrowed``.
    provenance
        Provider and date of the text, or the number of tokens of a model.
    best
        True for the text that is encoded.
    """

    text: str
    source: str
    source_version: str
    retrieved_at: str
    sha256: str
    kind: str
    model: str
    prompt: str
    provenance: dict[str, Any]
    best: bool

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        who = " ".join(part for part in (self.source, self.source_version) if part)
        by = f", model {self.model}, prompt {self.prompt}" if self.model else ""
        mark = "*" if self.best else "-"
        lines = [
            f"{mark} {self.kind} text from {who}{by}, retrieved {self.retrieved_at or '?'}",
            *_wrapped(self.text, "    "),
            f"    sha256 {self.sha256[:16]}",
        ]
        if self.provenance:
            lines += _wrapped("; ".join(_facts_lines(self.provenance)), "    ")
        return lines


@dataclass(frozen=True, kw_only=True)
class GeneFacts(Record):
    """Other facts of a source about a gene, with the source's names."""

    source: str
    source_version: str
    retrieved_at: str
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GeneVector(Record):
    """The vector of a gene in one space.

    Attributes
    ----------
    state
        ``current``: vector of the text that would be encoded now; ``older``: of another text; ``unknown``:
        this version of scvec cannot read the template of the space.
    """

    fingerprint: str
    backbone: str
    template: str
    text_sha256: str
    state: str


@dataclass(frozen=True, kw_only=True)
class FailedJob(Record):
    """A request about a gene without an answer. ``final``: another request would not help."""

    source: str
    model: str
    reason: str
    final: bool
    attempts: int


@dataclass(frozen=True, kw_only=True)
class GeneInfo(Record):
    """All texts, facts and vectors of one gene. ``asked`` is the name in the request."""

    asked: str
    gene_id: str
    species: str
    symbol: str
    entrez_id: int | None
    name: str
    gene_type: str
    ensembl_ids: list[str]
    aliases: list[str]
    previous: list[str]
    source: str
    source_version: str
    texts: list[GeneText] = field(default_factory=list)
    facts: list[GeneFacts] = field(default_factory=list)
    vectors: list[GeneVector] = field(default_factory=list)
    failures: list[FailedJob] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        entrez = "" if self.entrez_id is None else f"Entrez {self.entrez_id}"
        ids = [self.gene_id, entrez, *self.ensembl_ids]
        lines = [f"{self.symbol} ({self.species}): {self.name or 'no name'}"]
        lines += _wrapped(", ".join(filter(None, [*ids, self.gene_type])), "  ")
        for what, names in (("aliases", self.aliases), ("previous symbols", self.previous)):
            if names:
                lines += _wrapped(f"{what}: {', '.join(names)}", "  ")
        lines.append(f"  from {self.source} {self.source_version}".rstrip())
        for text in self.texts:
            lines += ["  " + line for line in text.lines()]
        if not self.texts:
            lines.append("  no text: only its names are encoded")
        for source in self.facts:
            head = f"{source.source} {source.source_version}".rstrip()
            lines.append(f"  facts from {head}, retrieved {source.retrieved_at or '?'}")
            for line in _facts_lines(source.facts):
                lines += _wrapped(line, "    ", hanging="      ")
        words = {"older": "of an older text (encode it again)", "unknown": "of an unknown text"}
        for vector in self.vectors:
            state = words.get(vector.state, "of the current text")
            lines.append(f"  vector in space {vector.fingerprint} ({vector.backbone}), {state}")
        if not self.vectors:
            lines.append("  no vector in any space")
        for failed in self.failures:
            again = "final" if failed.final else "the next run requests it again"
            lines += _wrapped(f"{failed.source} has no answer ({again}): {failed.reason}", "  ")
        return lines


@dataclass(frozen=True, kw_only=True)
class GeneInfoReport(Report):
    """The texts, facts and vectors of some genes.

    Attributes
    ----------
    genes
        In the order of the names; an ambiguous name gives all its genes.
    unknown
        Unknown names -> similar names.
    """

    generation: int
    genes: list[GeneInfo]
    unknown: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines: list[str] = []
        for gene in self.genes:
            lines += [*([""] if lines else []), *gene.lines()]
        # Names and texts come from files and services, so terminal codes are removed.
        return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def _wrapped(text: str, indent: str, hanging: str | None = None) -> list[str]:
    later = indent if hanging is None else hanging
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=later) or [indent.rstrip()]


def _facts_lines(facts: dict[str, Any]) -> Iterable[str]:
    """Yield ``name: value`` of each fact."""
    for key, value in facts.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
            value = ", ".join(map(str, value))
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        yield f"{key.replace('_', ' ')}: {value}"


#: Number of suggestions for an unknown name.
NEAR = 3


def gene_info(store: Path | str, names: Sequence[str], species: str | None = None) -> GeneInfoReport:
    """Return the texts, facts and vectors of some genes.

    Parameters
    ----------
    store
        Folder of the store.
    names
        Symbols, previous symbols, aliases, Ensembl, Entrez or authority ids. An ambiguous name gives all its
        genes.
    species
        Name or taxon id of a species. Default: all species of the store.

    Raises
    ------
    InputError
        If no name is known; the message suggests similar ones.
    """
    species = None if species is None else species_key(species)
    if not names:
        raise InputError("no gene is named", "", "give symbols, Ensembl or Entrez ids")
    opened = Store(store)
    with opened.knowledge() as kb:
        genes = kb.genes(species).set_index("gene_id", drop=False)
        resolver = stored_resolver(opened)
        if species is not None and species not in resolver.species:
            fix = f"run: scvec ingest genes --species '{species}' --source FILE"
            raise no_knowledge(species, "--species", fix)
        found = _find(resolver, genes, names, (species,) if species else resolver.species)
        unknown = [name for name, gene_ids in found.items() if not gene_ids]
        near = _near(unknown, genes["symbol"].tolist()) if unknown else {}
        wanted = {gene_id: name for name, gene_ids in reversed(found.items()) for gene_id in gene_ids}
        order = list(dict.fromkeys(gene_id for gene_ids in found.values() for gene_id in gene_ids))
        if not order:
            raise InputError("no gene has this name", _listed(unknown), _hint(near), code="unknown-gene")
        vectors = _vectors(opened, kb, order)
        names_of = _names(kb, order)
        known = [_gene(kb, genes.loc[g], wanted[g], names_of[g], vectors[g]) for g in order]
    notes = []
    if unknown:
        notes.append(f"unknown: {_listed(unknown)}; {_hint(near)}")
    for name, gene_ids in found.items():
        if len(gene_ids) > 1:
            notes.append(f"{name} could be {len(gene_ids)} genes: {', '.join(gene_ids[:8])}")
    return GeneInfoReport(generation=opened.generation.number, genes=known, unknown=near, notes=notes)


def _find(
    resolver: GeneResolver, genes: pd.DataFrame, names: Sequence[str], species: Sequence[str]
) -> dict[str, list[str]]:
    """Return the genes of each name; exact matches come before matches that ignore case."""
    asked = list(dict.fromkeys(name.strip() for name in names))
    matches = [resolver.resolve(asked, one) for one in species]
    found: dict[str, list[str]] = {}
    for i, name in enumerate(asked):
        if name in genes.index:
            found[name] = [name]
            continue
        hits = []
        for match in matches:
            gene_id = match.gene_ids[i]
            for one in match.ambiguous.get(name, ()) if gene_id is None else (gene_id,):
                hits.append((match.how[i] == "case", one))
        exact = [gene_id for loose, gene_id in hits if not loose]
        found[name] = [g for g in exact or [gene_id for _, gene_id in hits] if g in genes.index]
    return found


def _near(names: Sequence[str], symbols: Sequence[str]) -> dict[str, list[str]]:
    spelled = {symbol.lower(): symbol for symbol in reversed(symbols)}
    # Only symbols with the same first letter, because all symbols would take seconds per name.
    near = {}
    for name in names:
        folded = name.lower()
        alike = [s for s in spelled if s[:1] == folded[:1] and abs(len(s) - len(folded)) <= 3]
        near[name] = [spelled[s] for s in difflib.get_close_matches(folded, alike, n=NEAR)]
    return near


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _hint(near: Mapping[str, Sequence[str]]) -> str:
    some = list(dict.fromkeys(symbol for symbols in near.values() for symbol in symbols))
    if some:
        return f"near: {_listed(some)}"
    return "give a symbol, Ensembl or Entrez id, and check --species"


def _names(kb: KnowledgeBase, gene_ids: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    names: dict[str, dict[str, list[str]]] = {g: {} for g in gene_ids}
    table = kb.aliases()
    table = table[table["gene_id"].isin(gene_ids)]
    for gene_id, name, kind in zip(table["gene_id"], table["name"], table["kind"], strict=True):
        names[gene_id].setdefault(kind, []).append(name)
    return {g: {kind: sorted(found) for kind, found in kinds.items()} for g, kinds in names.items()}


def _vectors(store: Store, kb: KnowledgeBase, gene_ids: Sequence[str]) -> dict[str, list[GeneVector]]:
    """Return the vectors of each gene."""
    found: dict[str, list[GeneVector]] = {g: [] for g in gene_ids}
    for fingerprint, stored in store.spaces().items():
        table = stored.genes[stored.genes["gene_id"].isin(gene_ids)].astype(str)
        try:
            now = gene_table(kb, table["gene_id"].tolist(), stored.space.template)["text_sha256"].tolist()
        except InputError:  # the template is unknown
            now = [None] * len(table)
        for gene_id, held, current in zip(table["gene_id"], table["text_sha256"], now, strict=True):
            found[gene_id].append(
                GeneVector(
                    fingerprint=fingerprint,
                    backbone=stored.space.backbone,
                    template=stored.space.template,
                    text_sha256=held,
                    state="unknown" if current is None else "current" if current == held else "older",
                )
            )
    return found


def _gene(
    kb: KnowledgeBase,
    row: Any,
    asked: str,
    names: Mapping[str, list[str]],
    vectors: list[GeneVector],
) -> GeneInfo:
    gene_id = str(row["gene_id"])
    best = kb.descriptions([gene_id]).get(gene_id)
    texts = sorted(kb.all_descriptions(gene_id), key=lambda d: d != best)
    entrez = row["entrez_id"]
    return GeneInfo(
        asked=asked,
        gene_id=gene_id,
        species=row["species"],
        symbol=row["symbol"],
        entrez_id=None if str(entrez) == "<NA>" else int(entrez),
        name=row["name"],
        gene_type=row["gene_type"],
        ensembl_ids=names.get("ensembl", []),
        aliases=names.get("alias", []),
        previous=names.get("previous", []),
        source=row["source"],
        source_version=row["source_version"],
        texts=[
            GeneText(
                text=d.text,
                source=d.source,
                source_version=d.source_version,
                retrieved_at=d.retrieved_at,
                sha256=d.sha256,
                kind=d.kind,
                model=d.model,
                prompt=d.prompt,
                provenance=_json(d.provenance),
                best=d == best,
            )
            for d in texts
        ],
        facts=[
            GeneFacts(
                source=n.source,
                source_version=n.source_version,
                retrieved_at=n.retrieved_at,
                facts=dict(n.facts),
            )
            for n in kb.notes(gene_id)
        ],
        vectors=vectors,
        failures=[
            FailedJob(
                source=f.job.source, model=f.job.model, reason=f.reason, final=f.final, attempts=f.attempts
            )
            for f in kb.failures(gene_id=gene_id)
        ],
    )


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {"text": text}
    return found if isinstance(found, dict) else {"text": found}

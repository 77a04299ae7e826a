"""What is known of a gene and where it comes from, and what differs between two generations, as reports."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from scvec.base.results import Record, Report

__all__ = [
    "Changed",
    "DiffReport",
    "Example",
    "FailedJob",
    "GeneFacts",
    "GeneInfo",
    "GeneInfoReport",
    "GeneText",
    "GeneVector",
    "SpaceChange",
]

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class GeneText(Record):
    """One text about a gene.

    Attributes
    ----------
    kind
        ``human``, ``llm``, ``composed`` or ``borrowed``.
    provenance
        What the source says of the text: who provided it and when, or the tokens a model took.
    best
        True for the one text that is encoded.
    spaces
        Fingerprints of the spaces that hold a vector of this text.
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
    spaces: list[str]

    def lines(self) -> list[str]:
        """Return it as lines for people."""
        who = " ".join(part for part in (self.source, self.source_version) if part)
        by = f", model {self.model}, prompt {self.prompt}" if self.model else ""
        held = f"vector in {', '.join(self.spaces)}" if self.spaces else "no vector"
        mark = "*" if self.best else "-"
        lines = [
            f"{mark} {self.kind} text from {who}{by}, retrieved {self.retrieved_at or '?'}",
            *_wrapped(self.text, "    "),
            f"    sha256 {self.sha256[:16]}, {held}",
        ]
        if self.provenance:
            lines += _wrapped("; ".join(_facts_lines(self.provenance)), "    ")
        return lines


@dataclass(frozen=True, kw_only=True)
class GeneFacts(Record):
    """What a source tells of a gene beside its text, under the source's names."""

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
        ``current``: of the text that would be encoded now; ``older``: of another; ``unknown``: this scvec
        cannot read the space's template.
    """

    fingerprint: str
    backbone: str
    template: str
    text_sha256: str
    state: str


@dataclass(frozen=True, kw_only=True)
class FailedJob(Record):
    """A question about a gene that has no answer. ``final``: asking again would not help."""

    source: str
    model: str
    reason: str
    final: bool
    attempts: int


@dataclass(frozen=True, kw_only=True)
class GeneInfo(Record):
    """All that a store knows of one gene. ``asked`` is the name it was asked for by."""

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
        """Return it as lines for people."""
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
            lines.append("  no text: only its names would be encoded")
        for told in self.facts:
            head = f"{told.source} {told.source_version}".rstrip()
            lines.append(f"  facts from {head}, retrieved {told.retrieved_at or '?'}")
            for line in _facts_lines(told.facts):
                lines += _wrapped(line, "    ", hanging="      ")
        words = {"older": "of an older text: encode again", "unknown": "of a text that cannot be told"}
        for vector in self.vectors:
            state = words.get(vector.state, "of the current text")
            lines.append(f"  vector in space {vector.fingerprint} ({vector.backbone}), {state}")
        if not self.vectors:
            lines.append("  no space holds a vector of it")
        for failed in self.failures:
            again = "for good" if failed.final else "asked again next time"
            lines += _wrapped(f"{failed.source} has no answer ({again}): {failed.reason}", "  ")
        return lines


@dataclass(frozen=True, kw_only=True)
class GeneInfoReport(Report):
    """What a store knows of some genes, where it comes from and what was made of it.

    Attributes
    ----------
    genes
        In the order of the names; a name of several genes stands for them all.
    unknown
        Names of no gene -> names that are near.
    """

    generation: int
    genes: list[GeneInfo]
    unknown: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines: list[str] = []
        for gene in self.genes:
            lines += [*([""] if lines else []), *gene.lines()]
        return [_printable(line) for line in lines]


@dataclass(frozen=True, kw_only=True)
class Changed(Record):
    """Rows that came, changed and went. ``what`` says of what: a kind and source, a species."""

    what: str
    added: int = 0
    changed: int = 0
    removed: int = 0

    def line(self, changed: str = "changed") -> str:
        """Return it in words."""
        parts = [f"{self.added:,} added" if self.added else ""]
        parts += [f"{self.changed:,} {changed}" if self.changed else ""]
        parts += [f"{self.removed:,} removed" if self.removed else ""]
        return f"{self.what}: {', '.join(filter(None, parts)) or 'the same'}"


@dataclass(frozen=True, kw_only=True)
class SpaceChange(Changed):
    """A space of which vectors came, are of changed texts, or went. ``what`` is the fingerprint.

    Attributes
    ----------
    state
        ``added``, ``removed``, or ``changed``.
    """

    backbone: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Example(Record):
    """One description or gene that differs. ``before`` and ``after`` are texts or symbols, or empty."""

    state: str
    gene_id: str
    symbol: str
    what: str
    before: str = ""
    after: str = ""

    def lines(self) -> list[str]:
        """Return it as lines for people."""
        lines = [f"  {self.state} {self.symbol} ({self.gene_id}), {self.what}"]
        # Long texts are shown from where they differ.
        pairs = enumerate(zip(self.before, self.after, strict=False))
        alike = next((i for i, (one, other) in pairs if one != other), 0)
        start = 0 if alike < WIDTH // 2 else alike - WIDTH // 4
        for sign, text in (("-", self.before), ("+", self.after)):
            text = f"… {text[start:]}" if start and text else text
            if text:
                lines.append("    " + _shortened(f"{sign} {text}"))
        return lines


@dataclass(frozen=True, kw_only=True)
class DiffReport(Report):
    """What differs between two generations of a store.

    Attributes
    ----------
    old, new
        Their numbers.
    old_command, new_command
        What made them.
    genes
        By species; ``changed`` are those with another symbol.
    descriptions
        By kind and source; ``changed`` are those with another text.
    facts
        By source.
    spaces
        Spaces that differ.
    references
        ``added``, ``replaced`` and ``removed``, by name.
    examples
        Some descriptions and genes.
    """

    old: int
    new: int
    old_command: str
    new_command: str
    genes: list[Changed]
    descriptions: list[Changed]
    facts: list[Changed]
    spaces: list[SpaceChange]
    references: dict[str, list[str]]
    examples: list[Example]

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        sections = (self.genes, self.descriptions, self.facts, self.spaces)
        return not any(sections) and not any(self.references.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``same``."""
        return {"same": self.same, **super().to_dict()}

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        both = ((self.old, self.old_command), (self.new, self.new_command))
        made = [f"{number} ({command})" if command else str(number) for number, command in both]
        lines = [f"from generation {made[0]} to {made[1]}"]
        if self.same:
            return [*lines, "nothing differs"]
        lines += [f"genes, {c.line('renamed')}" for c in self.genes]
        lines += [f"descriptions, {c.line()}" for c in self.descriptions]
        lines += [f"facts, {c.line()}" for c in self.facts]
        for space in self.spaces:
            new = " (new)" if space.state == "added" else " (dropped)" if space.state == "removed" else ""
            lines.append(f"vectors{new}, {space.line('of changed texts')} ({space.backbone})")
        lines += [f"references {how}: {', '.join(names)}" for how, names in self.references.items() if names]
        for example in self.examples:
            lines += example.lines()
        return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    """Names and texts come from files and services: no escape code of theirs may reach a terminal."""
    return "".join(c if c.isprintable() else " " for c in line)


def _wrapped(text: str, indent: str, hanging: str | None = None) -> list[str]:
    later = indent if hanging is None else hanging
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=later) or [indent.rstrip()]


def _shortened(text: str) -> str:
    return textwrap.shorten(text[: 10 * WIDTH], WIDTH - 4, placeholder=" …")


def _facts_lines(facts: dict[str, Any]) -> Iterable[str]:
    """Yield ``name: value`` of all that is told."""
    for key, value in facts.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
            value = ", ".join(map(str, value))
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        yield f"{key.replace('_', ' ')}: {value}"

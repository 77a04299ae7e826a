"""Texts and vectors of genes from earlier systems, as files: scInterpreter's and GenePT's.

scInterpreter and scReader (arXiv 2402.12405, 2412.18156) keep JSON of ``token id -> fields of the page at
NCBI`` and pickles of ``token id -> {gene_name, embedding}``; GenePT (doi:10.1101/2023.10.16.562533) keeps
JSON of ``symbol -> text``, pickles of ``symbol -> 1,536 floats``, and CSV with a gene a row. A token id is a
number of a vocabulary and names no gene: what a record says of its gene does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scvec.base.errors import InputError
from scvec.base.types import Float32, Species
from scvec.ingest.genes.legacy_files import read_records
from scvec.ingest.sources.facts import clean_summary, facts_of, text_field, texts_field

__all__ = ["KINDS", "LegacyEntry", "LegacyFile", "read_legacy"]

Kind = Literal["auto", "scinterpreter", "genept"]
KINDS: tuple[Kind, ...] = ("auto", "scinterpreter", "genept")

_MAX_DIM = 65_536
# What scInterpreter calls the fields of a page, and what they are called here.
_FACTS = {
    "official symbol": "official_symbol",
    "official full name": "official_full_name",
    "primary source": "primary_source",
    "see related": "see_related",
    "gene type": "gene_type",
    "refseq status": "refseq_status",
    "organism": "organism",
    "lineage": "lineage",
    "also known as": "aliases",
    "aliases": "aliases",
    "annotation information": "annotation_information",
    "expression": "expression",
    "orthologs": "orthologs",
}
_SYMBOLS = ("official_symbol", "gene_symbol", "gene_name", "symbol", "official symbol", "gene symbol")
_VECTORS = ("embedding", "gpt_embedding", "vector")
_MODEL_TEXTS = ("gpt_summary", "gpt summary")
_ENTREZ = ("entrez_id", "entrez id", "gene id", "gene_id", "geneid", "ncbi_id", "_id")
_IDS = re.compile(r"\b(?:HGNC:\d+|MGI:\d+|ENS(?:MUS)?G\d{11})(?!\d)")
_NAMED = re.compile(r"Gene Symbol ([A-Za-z][\w.-]{1,30}) ")
_PROVIDED = re.compile(r"\s*provided\s*by.*$", re.IGNORECASE | re.DOTALL)
_SPECIES: dict[str, Species] = {
    "homo sapiens": "human",
    "human": "human",
    "mus musculus": "mouse",
    "mouse": "mouse",
}


@dataclass(frozen=True, slots=True)
class LegacyEntry:
    """A record of a file.

    Attributes
    ----------
    key
        Its key in the file, for people.
    symbol
        The name of its gene; empty where it says none.
    ids
        Other names of its gene that it tells: ``HGNC:n``, ``MGI:n``, Ensembl, ``entrez:n``, or the symbol
        that its text begins with.
    species
        Its species, where it says one.
    group
        The part of the file it stands in, where there are several.
    text
        Its text; empty for a vector.
    by_model
        Whether a language model wrote the text.
    row
        Row of :attr:`LegacyFile.vectors`; -1 for a text.
    provenance, facts
        Who provided the text; the other fields under the names of :data:`scvec.ingest.sources.facts.FACTS`.
    """

    key: str
    symbol: str
    ids: tuple[str, ...] = ()
    species: Species | None = None
    group: str = ""
    text: str = ""
    by_model: bool = False
    row: int = -1
    provenance: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """What a file holds.

    Attributes
    ----------
    kind
        ``scinterpreter`` (records with fields) or ``genept`` (by symbol).
    sha256
        Of the file as it lies there.
    n_records
        Records read, those refused included.
    vectors
        (n, dim) float32, or None where the file holds texts.
    refused
        Key -> why its record cannot be used.
    notes
        What a user should know.
    """

    path: Path
    kind: Kind
    sha256: str
    n_records: int
    entries: tuple[LegacyEntry, ...]
    vectors: Float32 | None
    refused: dict[str, str]
    notes: tuple[str, ...] = ()


def read_legacy(path: Path | str, *, kind: Kind = "auto", memory: str | int | None = None) -> LegacyFile:
    """Read a file of an earlier system; its records are checked, not yet matched to genes.

    Parameters
    ----------
    path
        JSON or CSV (also .gz), or a pickle, which :func:`scvec.ingest.genes.safe_pickle.load_plain` reads
        without running it.
    kind
        Whose file it is; told by its content when ``auto``.
    memory
        What reading may use, as ``4G``; half of what is free when None.

    Raises
    ------
    InputError
        The file is of another format, damaged, or holds neither texts nor vectors of genes.
    ResourceError
        It needs more memory than it may use.
    """
    path = Path(path)
    if kind not in KINDS:
        raise InputError(f"there is no kind {kind!r}", "--kind", f"kinds: {', '.join(KINDS)}")
    records = read_records(path, memory=memory)
    found = _kind_of(records.values)
    if kind == "auto":
        kind = found
    elif kind != found:
        what = f"this is no file of {kind}: its records look like {found}'s"
        raise InputError(what, str(path), "leave --kind out")
    reader = _Reader(kind, path)
    for group, key, value in _flat(records.values, kind):
        reader.add(group, key, value)
    entries, vectors = reader.result()
    if not entries and not reader.refused:
        raise InputError(
            "the file holds no records of genes", str(path), "see docs/genes.md for what is read"
        )
    if not entries:
        key, why = next(iter(reader.refused.items()))
        raise InputError(
            "the file holds neither texts nor vectors of genes",
            f"{path}, record {key!r}: {why}",
            "see docs/genes.md for what is read",
        )
    n = len(entries) + len(reader.refused)
    return LegacyFile(path, kind, records.sha256, n, entries, vectors, reader.refused, tuple(records.notes))


def _kind_of(values: Mapping[Any, Any]) -> Kind:
    fields = {*_FACTS, *_SYMBOLS, *_VECTORS, *_MODEL_TEXTS, "summary", "error"}
    records = [v for v in values.values() if isinstance(v, dict) and v]
    seen = sum(any(str(k).lower() in fields for k in v) for v in records)
    return "scinterpreter" if records and 2 * seen > len(records) else "genept"


def _flat(values: Mapping[Any, Any], kind: Kind) -> Iterator[tuple[str, str, Any]]:
    """Yield (group, key, value): GenePT's files may hold several sets of texts under names of their own."""
    for key, value in values.items():
        if kind == "genept" and isinstance(value, dict):
            for inner, one in value.items():
                yield str(key), str(inner), one
        else:
            yield "", str(key), value


class _Reader:
    def __init__(self, kind: Kind, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.entries: list[LegacyEntry] = []
        self.vectors: list[Float32] = []
        self.refused: dict[str, str] = {}

    def add(self, group: str, key: str, value: Any) -> None:
        name = f"{group}/{key}" if group else key
        found = self._fields(name, value) if self.kind == "scinterpreter" else self._plain(group, key, value)
        if isinstance(found, str):
            self.refused[name] = found
        else:
            self.entries.append(found)

    def _plain(self, group: str, key: str, value: Any) -> LegacyEntry | str:
        symbol = text_field(key, 100)
        if isinstance(value, str):
            text, provenance = clean_summary(value)
            if not text:
                return "its text is empty"
            # A newer symbol than the key's, which may have become ambiguous (QARS is QARS1 or EPRS1).
            named = _NAMED.match(text)
            return LegacyEntry(
                key, symbol, (named[1],) if named else (), group=group, text=text, provenance=provenance
            )
        row = self._vector(value)
        return row if isinstance(row, str) else LegacyEntry(key, symbol, group=group, row=row)

    def _fields(self, key: str, value: Any) -> LegacyEntry | str:
        if not isinstance(value, dict):
            return "it is no record with fields"
        if not value:
            return "it is empty"
        fields = {str(k).strip().lower(): v for k, v in value.items()}
        facts = facts_of(
            **{
                ours: list(texts_field(re.split(r"[;|]\s*", fields[theirs])))
                if ours == "aliases" and isinstance(fields[theirs], str)
                else text_field(fields[theirs], 2000)
                for theirs, ours in _FACTS.items()
                if theirs in fields
            }
        )
        symbol = next((s for n in _SYMBOLS if (s := text_field(fields.get(n), 100))), "")
        said = text_field(fields.get("organism", fields.get("species")), 200).lower()
        species = next((s for start, s in _SPECIES.items() if said.startswith(start)), None)
        if said and species is None:
            return "it is of another species than human or mouse"
        links = " ".join(
            text_field(fields.get(n), 4000) for n in ("primary source", "see related", "ensembl_id")
        )
        ids = tuple(dict.fromkeys(_IDS.findall(links)))
        numbers = (text_field(fields.get(n), 20) for n in _ENTREZ)
        ids += tuple(f"entrez:{n}" for n in dict.fromkeys(numbers) if n.isascii() and n.isdigit())
        entry = LegacyEntry(key, _PROVIDED.sub("", symbol), ids, species, facts=facts)
        vector = next((fields[n] for n in _VECTORS if fields.get(n) is not None), None)
        if vector is not None:
            row = self._vector(vector)
            return row if isinstance(row, str) else _with(entry, row=row)
        for n in ("summary", *_MODEL_TEXTS):
            text, provenance = clean_summary(fields.get(n))
            if text:
                return _with(entry, text=text, provenance=provenance, by_model=n != "summary")
        return "it has no summary"

    def _vector(self, value: Any) -> int | str:
        """Keep a vector and return its row, or why it is none."""
        if isinstance(value, list | tuple):
            if not value:
                return "its vector is empty"
            if not set(map(type, value)) <= {int, float}:
                return "its value is neither a text nor a list of numbers"
            try:
                value = np.array(value, dtype=np.float64)
            except OverflowError:
                return "its vector holds NaN or infinity"
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            return f"its value is a {type(value).__name__}, neither a text nor a vector"
        if value.ndim == 2 and 1 in value.shape:
            value = value.ravel()
        if value.ndim != 1 or not 2 <= len(value) <= _MAX_DIM:
            return f"its vector has the shape {value.shape}"
        with np.errstate(over="ignore"):
            vector = value.astype(np.float32)
        if not np.isfinite(vector).all():
            return "its vector holds NaN or infinity"
        if not vector.any():
            return "its vector is zero"
        self.vectors.append(vector)
        return len(self.vectors) - 1

    def result(self) -> tuple[tuple[LegacyEntry, ...], Float32 | None]:
        """Return what most records are: texts, or vectors of one length."""
        texts = [e for e in self.entries if e.row < 0]
        others = [e for e in self.entries if e.row >= 0]
        if len(texts) >= len(others):
            self._refuse(others, "it is a vector among texts")
            return tuple(texts), None
        self._refuse(texts, "it is a text among vectors")
        (dim, _), *_ = Counter(len(self.vectors[e.row]) for e in others).most_common(1)
        groups = sorted({e.group for e in others})
        if len(groups) > 1:
            what = f"the file holds several sets of vectors ({', '.join(groups[:5])})"
            raise InputError(what, str(self.path), "write each into a file of its own")
        kept = [e for e in others if len(self.vectors[e.row]) == dim]
        for entry in others:
            n = len(self.vectors[entry.row])
            if n != dim:
                self._refuse([entry], f"its vector has {n:,} numbers, most have {dim:,}")
        rows = np.stack([self.vectors[e.row] for e in kept])
        return tuple(_with(e, row=i) for i, e in enumerate(kept)), rows

    def _refuse(self, entries: list[LegacyEntry], why: str) -> None:
        for entry in entries:
            self.refused[f"{entry.group}/{entry.key}" if entry.group else entry.key] = why


def _with(entry: LegacyEntry, **changes: Any) -> LegacyEntry:
    return replace(entry, **changes)

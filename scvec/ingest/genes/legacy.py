"""Texts and vectors of genes from earlier systems, as files: scInterpreter's and GenePT's.

scInterpreter and scReader (arXiv 2402.12405, 2412.18156) keep JSON of ``token id -> fields of the page at
NCBI`` and pickles of ``token id -> {gene_name, embedding}``; GenePT (doi:10.1101/2023.10.16.562533) keeps
JSON of ``symbol -> text``, pickles of ``symbol -> 1,536 floats``, and CSV with a gene a row. A token id is a
number of a vocabulary and names no gene: what a record says of its gene does.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np

from scvec.base.borders import count_text, parse_memory, size_text
from scvec.base.errors import InputError, ResourceError
from scvec.base.types import SPECIES, Float32, Species
from scvec.ingest.genes.names import GeneResolver
from scvec.ingest.genes.safe_pickle import load_plain
from scvec.ingest.sources.facts import clean_summary, facts_of, text_field, texts_field

__all__ = [
    "KINDS",
    "LegacyEntry",
    "LegacyFile",
    "LegacyMatch",
    "Records",
    "match_entries",
    "read_legacy",
    "read_records",
]

_FIX = "give JSON or CSV (also .gz) or a pickle, of texts or vectors by gene; see docs/genes.md"
_GZIP = b"\x1f\x8b"
#: Bytes of memory that a byte of JSON may take as objects.
_PER_BYTE = 8
_MAX_CELL = 1 << 20


@dataclass
class Records:
    """Key -> value, as the file has it.

    Attributes
    ----------
    sha256
        Of the file as it lies there.
    """

    values: dict[Any, Any]
    sha256: str
    notes: list[str] = field(default_factory=list)


def read_records(path: Path, *, memory: str | int | None = None) -> Records:
    """Return the records of a JSON, CSV or pickle file.

    Raises
    ------
    InputError
        The file is missing, damaged, or none of these.
    ResourceError
        It needs more memory than it may use.
    """
    allowed = parse_memory(memory)
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(
            what, str(path), "check the path", code="not-a-file" if path.is_dir() else "file-not-found"
        )
    try:
        with path.open("rb") as raw:
            sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
            raw.seek(0)
            head = raw.read(512)
        packed = head.startswith(_GZIP)
        name = path.name.lower().removesuffix(".gz")
        if packed:
            with gzip.open(path) as unpacked:
                head = unpacked.read(512)
        notes: list[str] = []
        start = head.lstrip(b"\xef\xbb\xbf \r\n\t")
        if name.endswith((".pkl", ".pickle", ".p")) or head.startswith(b"\x80"):
            if packed:
                raise InputError(
                    "the pickle lies in a gzip file",
                    str(path),
                    f"unpack it first: gunzip {path.name}",
                    code="wrong-format",
                )
            values = load_plain(path, memory=memory)
            if not isinstance(values, dict):
                what = f"the pickle holds a {type(values).__name__}, not a dictionary by gene"
                raise InputError(what, str(path), _FIX, code="wrong-format")
        elif start.startswith(b"{") or name.endswith(".json"):
            values = _json(path, packed, allowed, notes)
        elif name.endswith((".csv", ".tsv", ".txt")):
            values = _csv(path, packed, allowed, notes)
        else:
            raise InputError(
                "this is no file of an earlier system that scvec reads", str(path), _FIX, code="wrong-format"
            )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            "the file is truncated or damaged", f"{path}: {error}", "get it again", code="damaged-file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            "the file is not UTF-8 text", f"{path}: {error}", _FIX, code="wrong-format"
        ) from error
    except OSError as error:
        raise InputError(
            f"the file cannot be read: {error}", str(path), "check the file", code="damaged-file"
        ) from error
    return Records(values, sha256, notes)


def _json(path: Path, packed: bool, memory: int, notes: list[str]) -> dict[Any, Any]:
    limit = memory // _PER_BYTE
    with gzip.open(path) if packed else path.open("rb") as raw:
        content = raw.read(limit + 1)
    if len(content) > limit:
        what = f"the JSON has more than {size_text(limit)}, which may take {size_text(memory)} of memory"
        raise ResourceError(what, str(path), "raise --memory, or split the file")
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return found

    try:
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise InputError(
            f"the JSON cannot be read: {error}", str(path), "get it again", code="damaged-file"
        ) from error
    if not isinstance(values, dict):
        what = f"the JSON holds a {type(values).__name__}, not an object by gene"
        raise InputError(what, str(path), _FIX, code="wrong-format")
    if twice:
        notes.append(_repeated(path, twice))
    return values


def _csv(path: Path, packed: bool, memory: int, notes: list[str]) -> dict[Any, Any]:
    with (
        gzip.open(path) if packed else path.open("rb") as raw,
        io.TextIOWrapper(cast("Any", raw), encoding="utf-8-sig", newline="") as text,
    ):
        return _rows(text, path, memory, notes)


def _rows(text: TextIO, path: Path, memory: int, notes: list[str]) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    twice: list[str] = []
    used = 0
    first = text.readline(_MAX_CELL)
    separator = "\t" if first.count("\t") > first.count(",") else ","
    lines = _bounded(first, text, path)
    try:
        for number, cells in enumerate(csv.reader(lines, delimiter=separator), 1):
            if len(cells) < 3:
                if number == 1:
                    raise InputError(
                        "the table has no columns of numbers", f"{path}, line 1", _FIX, code="wrong-format"
                    )
                if any(cells):
                    values[cells[0]] = None
                continue
            try:
                vector: Any = np.array(cells[1:], dtype=np.float32)
            except ValueError:
                if number == 1:
                    continue  # the names of the columns
                vector = None
            if number == 1 and vector is not None and np.array_equal(vector, np.arange(len(vector))):
                continue  # pandas numbers the columns
            if cells[0] in values:
                twice.append(cells[0])
            values[cells[0]] = vector
            used += 4 * len(cells) + 200
            if used > memory:
                what = f"the table needs more than {size_text(memory)} of memory"
                raise ResourceError(what, str(path), "raise --memory, or split the file")
    except csv.Error as error:
        raise InputError(
            f"the csv cannot be read: {error}", str(path), "write it again", code="damaged-file"
        ) from error
    if twice:
        notes.append(_repeated(path, twice))
    return values


def _repeated(path: Path, twice: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(twice[:3]))
    return f"{path.name}: {count_text(len(twice), 'record')} repeat a key, such as {shown}: the last counts"


def _bounded(first: str, text: TextIO, path: Path) -> Any:
    line = first
    while line:
        if len(line) >= _MAX_CELL:
            raise InputError("a line is longer than 1 MB", str(path), _FIX, code="damaged-file")
        yield line
        line = text.readline(_MAX_CELL)


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
        raise InputError(what, str(path), "leave --kind out", code="wrong-format")
    reader = _Reader(kind, path)
    for group, key, value in _flat(records.values, kind):
        reader.add(group, key, value)
    entries, vectors = reader.result()
    if not entries and not reader.refused:
        raise InputError(
            "the file holds no records of genes",
            str(path),
            "see docs/genes.md for what is read",
            code="wrong-format",
        )
    if not entries:
        key, why = next(iter(reader.refused.items()))
        raise InputError(
            "the file holds neither texts nor vectors of genes",
            f"{path}, record {key!r}: {why}",
            "see docs/genes.md for what is read",
            code="wrong-format",
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
            raise InputError(what, str(self.path), "write each into a file of its own", code="wrong-format")
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


# How well a name tells a gene, best first. What is left out guesses, and is not believed here.
_RANK = {
    "symbol": 0,
    "id": 1,
    "ensembl": 1,
    "entrez": 1,
    "previous": 2,
    "alias": 3,
    "composite": 4,
    "case": 5,
}
_NUMBER = re.compile(r"[\d.\s]*")


@dataclass
class LegacyMatch:
    """What became of the records of a file.

    Attributes
    ----------
    genes
        Gene id -> the record that tells of it, per group of records.
    ambiguous
        Key -> genes that its name could be.
    unknown
        Keys whose gene is not known.
    contradictory
        Key -> how its names contradict each other.
    repeated
        Key -> key of the record that was taken for the same gene.
    species
        Species of the records that say none themselves.
    """

    species: Species
    genes: dict[str, dict[str, LegacyEntry]] = field(default_factory=dict)
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    contradictory: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    @property
    def n_matched(self) -> int:
        """Number of records that tell of a gene and were taken."""
        return sum(len(group) for group in self.genes.values())


def match_entries(
    entries: Sequence[LegacyEntry],
    resolver: GeneResolver,
    gene_ids: Collection[str],
    species: Species | str = "auto",
) -> LegacyMatch:
    """Find the gene of each record by what the record says, never by where it stands.

    A symbol is looked up as :meth:`GeneResolver.resolve` does. Where a record names ids too, both must mean
    one gene. Of two records of one gene the one with its official symbol is taken, then a previous symbol,
    then an alias; of equals the first.

    Parameters
    ----------
    gene_ids
        All that the knowledge base knows.
    species
        Of records that say none: ``human``, ``mouse``, or ``auto``: what most symbols are of.
    """
    silent = [e.symbol for e in entries if e.species is None and e.symbol]
    default = resolver.resolve(silent, species).species
    known = frozenset(gene_ids)
    match = LegacyMatch(default)
    ranks: dict[tuple[str, str], int] = {}
    for one in SPECIES:
        group = [e for e in entries if (e.species or default) == one]
        by_symbol = _by_symbol(resolver, group, one)
        by_id = _by_id(resolver, group, one, known)
        for entry in group:
            genes, how = by_symbol.get(entry.symbol, ((), ""))
            gene_id = _decide(match, entry, genes, {g for i in entry.ids for g in by_id.get(i, ())})
            if gene_id is not None:
                _take(match, ranks, entry, gene_id, _RANK[how] if how in _RANK and gene_id in genes else 1)
    return match


def _by_symbol(
    resolver: GeneResolver, entries: Iterable[LegacyEntry], species: Species
) -> dict[str, tuple[tuple[str, ...], str]]:
    # A number could be an Entrez id, and is a token id.
    names = list(dict.fromkeys(e.symbol for e in entries if not _NUMBER.fullmatch(e.symbol)))
    found = resolver.resolve(names, species)
    genes: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, gene_id, how in zip(names, found.gene_ids, found.how, strict=True):
        if how == "ambiguous":
            genes[name] = (found.ambiguous[name], how)
        elif gene_id is not None and how in _RANK:
            genes[name] = ((gene_id,), how)
    return genes


def _by_id(
    resolver: GeneResolver, entries: Iterable[LegacyEntry], species: Species, known: Collection[str]
) -> dict[str, tuple[str, ...]]:
    ids = list(dict.fromkeys(i for e in entries for i in e.ids))
    found = resolver.resolve(ids, species)
    genes: dict[str, tuple[str, ...]] = {}
    for name, gene_id, how in zip(ids, found.gene_ids, found.how, strict=True):
        if name in known:
            genes[name] = (name,)
        elif gene_id is not None and how in _RANK:
            genes[name] = (gene_id,)
    return genes


def _decide(
    match: LegacyMatch, entry: LegacyEntry, by_symbol: tuple[str, ...], by_id: set[str]
) -> str | None:
    key = _key(entry)
    if len(by_id) > 1:
        match.contradictory[key] = f"its names are of several genes ({', '.join(sorted(by_id))})"
        return None
    if by_id:
        (gene_id,) = by_id
        if by_symbol and gene_id not in by_symbol:
            match.contradictory[key] = (
                f"{entry.symbol} is {' or '.join(by_symbol)}, {' and '.join(entry.ids)} is {gene_id}"
            )
            return None
        return gene_id
    if len(by_symbol) == 1:
        return by_symbol[0]
    if by_symbol:
        match.ambiguous[key] = by_symbol
    else:
        match.unknown.append(key)
    return None


def _take(
    match: LegacyMatch, ranks: dict[tuple[str, str], int], entry: LegacyEntry, gene_id: str, rank: int
) -> None:
    group = match.genes.setdefault(entry.group, {})
    there = group.get(gene_id)
    if there is None or rank < ranks[entry.group, gene_id]:
        if there is not None:
            match.repeated[_key(there)] = _key(entry)
        group[gene_id] = entry
        ranks[entry.group, gene_id] = rank
    else:
        match.repeated[_key(entry)] = _key(there)


def _key(entry: LegacyEntry) -> str:
    """Return what people know a record by: its symbol, and its token id where it has one."""
    name = entry.symbol if entry.symbol == entry.key or not entry.symbol else f"{entry.symbol} ({entry.key})"
    name = name or entry.key
    return f"{entry.group}/{name}" if entry.group else name

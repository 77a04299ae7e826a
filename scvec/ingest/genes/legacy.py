"""Read gene texts and vectors of scInterpreter, scReader and GenePT, and find the gene of each record.

scInterpreter and scReader (arXiv 2402.12405, 2412.18156) keep JSON of ``token id -> fields of the page at
NCBI`` and pickles of ``token id -> {gene_name, embedding}``. GenePT (doi:10.1101/2023.10.16.562533) keeps
JSON of ``symbol -> text``, pickles of ``symbol -> 1,536 floats``, and CSV with one gene a row. A token id is
a number of a vocabulary and does not name a gene.
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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scvec.base.errors import InputError, ResourceError, unreadable
from scvec.base.resources import parse_memory
from scvec.base.results import count_text, human_bytes
from scvec.base.types import SPECIES, Float32, Species
from scvec.ingest.genes.names import GeneResolver
from scvec.ingest.genes.safe_pickle import load_plain
from scvec.ingest.sources.facts import FACTS, clean_summary, facts_of, text_field, texts_field

__all__ = ["KINDS", "LegacyEntry", "LegacyFile", "LegacyMatch", "match_entries", "read_legacy"]

Kind = Literal["auto", "scinterpreter", "genept"]
KINDS: tuple[Kind, ...] = ("auto", "scinterpreter", "genept")
_FIX = "give JSON or CSV (also .gz) or a pickle, of texts or vectors by gene; see docs/genes.md"
#: Bytes of memory that a byte of JSON or CSV may take as objects; longest vector.
_PER_BYTE, _MAX_DIM = 8, 65_536
# Names of fields, in lower case with "_" for blanks.
_SYMBOLS = ("official_symbol", "gene_symbol", "gene_name", "symbol")
_VECTORS = ("embedding", "gpt_embedding", "vector")
_ENTREZ = ("entrez_id", "gene_id", "geneid", "ncbi_id", "_id")
_FIELDS = {*FACTS, *_SYMBOLS, *_VECTORS, "also_known_as", "gpt_summary", "error"}
_IDS = re.compile(r"\b(?:HGNC:\d+|MGI:\d+|ENS(?:MUS)?G\d{11})(?!\d)")
_NAMED = re.compile(r"Gene Symbol ([A-Za-z][\w.-]{1,30}) ")
_SPECIES: dict[Species, tuple[str, str]] = {
    "human": ("homo sapiens", "human"),
    "mouse": ("mus musculus", "mouse"),
}
#: How well a name identifies a gene, best first. Other ways of matching are guesses and are not used.
_WAYS = (("symbol",), ("id", "ensembl", "entrez"), ("previous",), ("alias",), ("composite",), ("case",))
_RANK = {way: rank for rank, ways in enumerate(_WAYS) for way in ways}


@dataclass(frozen=True, slots=True)
class LegacyEntry:
    """A record of a file: a text, or a row of :attr:`LegacyFile.vectors` (``row`` is -1 for a text).

    ``symbol`` and ``ids`` (``HGNC:n``, ``MGI:n``, Ensembl, ``entrez:n``, or the symbol that the text begins
    with) name its gene. ``group`` is the part of the file where there are several. ``facts`` are named as in
    :data:`scvec.ingest.sources.facts.FACTS`.
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

    @property
    def shown(self) -> str:
        """Group and symbol, with the key where that is another."""
        name = self.key if self.symbol in ("", self.key) else f"{self.symbol} ({self.key})"
        return f"{self.group}/{name}" if self.group else name


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """The records of a file.

    Attributes
    ----------
    kind
        ``scinterpreter`` (records with fields) or ``genept`` (by symbol).
    sha256
        Of the bytes on disk.
    n_records
        Records read, refused ones included.
    vectors
        (n, dim) float32, or None where the file holds texts.
    refused
        Key -> why its record cannot be used.
    """

    path: Path
    kind: Kind
    sha256: str
    n_records: int
    entries: tuple[LegacyEntry, ...]
    vectors: Float32 | None
    refused: dict[str, str]
    notes: tuple[str, ...] = ()


class _UnusableError(ValueError):
    """A record that cannot be used, and why."""


def read_legacy(path: Path | str, *, kind: Kind = "auto", memory: str | int | None = None) -> LegacyFile:
    """Read and check the records of a JSON, CSV (also .gz) or pickle file.

    Raises
    ------
    InputError
        The file is missing, damaged, of another format, or holds neither texts nor vectors of genes.
    ResourceError
        It needs more than ``memory``.
    """
    path = Path(path)
    if kind not in KINDS:
        raise InputError(f"there is no kind {kind!r}", "--kind", f"kinds: {', '.join(KINDS)}")
    notes: list[str] = []
    try:
        with path.open("rb") as raw:
            sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        values = _values(path, memory, notes)
    except (EOFError, OSError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        raise unreadable(error, path, "the file", "check the path, or get the file again") from error
    if not isinstance(values, dict):
        raise InputError(
            f"the file holds a {type(values).__name__}, not a table by gene",
            str(path),
            _FIX,
            code="wrong-format",
        )
    records = [v for v in values.values() if isinstance(v, dict) and v]
    with_fields = sum(any(_field(k) in _FIELDS for k in v) for v in records)
    found: Kind = "scinterpreter" if 2 * with_fields > len(records) else "genept"
    if kind not in ("auto", found):
        what = f"this is not a file of {kind}: its records look like {found}'s"
        raise InputError(what, str(path), "leave --kind out", code="wrong-format")
    taken: list[tuple[LegacyEntry, Float32 | None]] = []
    refused: dict[str, str] = {}
    # A file of GenePT may hold several sets of texts, each under a name.
    grouped = {k: v for k, v in values.items() if found == "genept" and isinstance(v, dict)}
    flat = [("", k, v) for k, v in values.items() if k not in grouped]
    flat += [(str(g), k, v) for g, inner in grouped.items() for k, v in inner.items()]
    for group, key, value in ((g, str(k), v) for g, k, v in flat):
        try:
            taken.append(_page(key, value) if found == "scinterpreter" else _plain(group, key, value))
        except _UnusableError as error:
            refused[f"{group}/{key}" if group else key] = str(error)
    n = len(taken) + len(refused)
    entries, vectors = _alike(path, taken, refused)
    if not entries:
        key, why = next(iter(refused.items()), ("", ""))
        what = "neither texts nor vectors of genes" if refused else "no records of genes"
        where = f"{path}, record {key!r}: {why}" if refused else str(path)
        raise InputError(
            f"the file holds {what}", where, "see docs/genes.md for what is read", code="wrong-format"
        )
    return LegacyFile(path, found, sha256, n, entries, vectors, refused, tuple(notes))


def _values(path: Path, memory: str | int | None, notes: list[str]) -> Any:
    name = path.name.lower().removesuffix(".gz")
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(512)
        if name.endswith((".pkl", ".pickle", ".p")) or head.startswith(b"\x80"):
            if packed:
                raise InputError(
                    "the pickle is in a gzip file",
                    str(path),
                    f"unpack it: gunzip {path.name}",
                    code="wrong-format",
                )
            return load_plain(path, memory=memory)
        limit = parse_memory(memory) // _PER_BYTE
        content = head + file.read(limit)
    if len(content) > limit:
        size, needed = human_bytes(limit), human_bytes(limit * _PER_BYTE)
        what = f"the file has more than {size} and may take {needed} of memory"
        raise ResourceError(what, str(path), "raise --memory, or split the file")
    is_json = name.endswith(".json") or head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")
    if not is_json and not name.endswith((".csv", ".tsv", ".txt")):
        raise InputError("scvec does not read files of this format", str(path), _FIX, code="wrong-format")
    twice: list[str] = []
    text = content.decode("utf-8-sig")
    values = _json(text, twice) if is_json else _csv(text, path, twice)
    if twice:
        shown = ", ".join(dict.fromkeys(twice[:3]))
        repeats = f"{count_text(len(twice), 'record')} repeat a key, such as {shown}: the last counts"
        notes.append(f"{path.name}: {repeats}")
    return values


def _json(text: str, twice: list[str]) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                twice.append(key)
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=once)


def _csv(text: str, path: Path, twice: list[str]) -> dict[str, Any]:
    """Return key -> vector, or None for a row that has none."""
    values: dict[str, Any] = {}
    lines = io.StringIO(text, newline="")
    first = text.partition("\n")[0]
    rows = csv.reader(lines, delimiter="\t" if first.count("\t") > first.count(",") else ",")
    for number, cells in enumerate(rows, 1):
        if number == 1 and len(cells) < 3:
            raise InputError(
                "the table has no columns of numbers", f"{path}, line 1", _FIX, code="wrong-format"
            )
        vector = None
        try:
            vector = np.array(cells[1:], dtype=np.float32)
        except ValueError:
            if number == 1:
                continue  # names of columns
        if number == 1 and np.array_equal(vector, np.arange(len(cells) - 1)):  # type: ignore[arg-type]
            continue  # pandas numbers the columns
        if cells:
            twice += [cells[0]] if cells[0] in values else []
            values[cells[0]] = vector if len(cells) > 2 else None
    return values


def _field(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_")


def _plain(group: str, key: str, value: Any) -> tuple[LegacyEntry, Float32 | None]:
    """Return a record of GenePT: a text or a vector by symbol."""
    symbol = text_field(key, 100)
    if not isinstance(value, str):
        return LegacyEntry(key, symbol, group=group), _vector(value)
    text, provenance = clean_summary(value)
    if not text:
        raise _UnusableError("its text is empty")
    # A newer symbol than the key's, which may have become ambiguous (QARS is QARS1 or EPRS1).
    named = _NAMED.match(text)
    ids = (named[1],) if named else ()
    return LegacyEntry(key, symbol, ids, group=group, text=text, provenance=provenance), None


def _page(key: str, value: Any) -> tuple[LegacyEntry, Float32 | None]:
    """Return a record of scInterpreter: fields of a page, or a vector with the name of its gene."""
    if not isinstance(value, dict) or not value:
        raise _UnusableError("it is empty" if isinstance(value, dict) else "it is not a record with fields")
    fields = {_field(k): v for k, v in value.items()}
    symbol = next((s for n in _SYMBOLS if (s := text_field(fields.get(n), 100))), "")
    organism = text_field(fields.get("organism", fields.get("species")), 200).lower()
    species = next((s for s, starts in _SPECIES.items() if organism.startswith(starts)), None)
    if organism and species is None:
        raise _UnusableError("it is of another species than human or mouse")
    links = " ".join(text_field(fields.get(n), 4000) for n in ("primary_source", "see_related", "ensembl_id"))
    numbers = (text_field(fields.get(n), 20) for n in _ENTREZ)
    ids = [*_IDS.findall(links), *(f"entrez:{n}" for n in numbers if n.isascii() and n.isdigit())]
    facts: dict[str, Any] = {n: text_field(fields[n], 2000) for n in FACTS if n in fields and n != "summary"}
    aliases = fields.get("also_known_as", fields.get("aliases"))
    facts["aliases"] = list(
        texts_field(re.split(r"[;|]\s*", aliases) if isinstance(aliases, str) else aliases)
    )
    symbol = re.sub(r"(?is)\s*provided\s*by.*$", "", symbol)
    entry = LegacyEntry(key, symbol, tuple(dict.fromkeys(ids)), species, facts=facts_of(**facts))
    for name in _VECTORS:
        if fields.get(name) is not None:
            return entry, _vector(fields[name])
    for name in ("summary", "gpt_summary"):
        text, provenance = clean_summary(fields.get(name))
        if text:
            return replace(entry, text=text, provenance=provenance, by_model=name != "summary"), None
    raise _UnusableError("it has no summary")


def _vector(value: Any) -> Float32:
    """Return a value as (dim,) float32."""
    if isinstance(value, list | tuple):
        if not value or not set(map(type, value)) <= {int, float}:
            raise _UnusableError("its value is neither a text nor a list of numbers")
        try:
            value = np.array(value, dtype=np.float64)
        except OverflowError:
            raise _UnusableError("its vector holds NaN or infinity") from None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise _UnusableError(f"its value is a {type(value).__name__}, neither a text nor a vector")
    value = value.ravel() if value.ndim == 2 and 1 in value.shape else value
    if value.ndim != 1 or not 2 <= len(value) <= _MAX_DIM:
        raise _UnusableError(f"its vector has the shape {value.shape}")
    with np.errstate(over="ignore"):
        vector: Float32 = value.astype(np.float32)
    if not np.isfinite(vector).all():
        raise _UnusableError("its vector holds NaN or infinity")
    if not vector.any():
        raise _UnusableError("its vector is zero")
    return vector


def _alike(
    path: Path, taken: Sequence[tuple[LegacyEntry, Float32 | None]], refused: dict[str, str]
) -> tuple[tuple[LegacyEntry, ...], Float32 | None]:
    """Return what most records are: texts, or vectors of one length. The others go to ``refused``."""
    sizes = Counter(len(vector) for _, vector in taken if vector is not None)
    texts = 2 * sizes.total() <= len(taken)
    dim = 0 if texts else sizes.most_common(1)[0][0]
    groups = sorted({entry.group for entry, vector in taken if vector is not None})
    if not texts and len(groups) > 1:
        what = f"the file holds several sets of vectors ({', '.join(groups[:5])})"
        raise InputError(what, str(path), "write each into a file of its own", code="wrong-format")
    entries: list[LegacyEntry] = []
    rows: list[Float32] = []
    for entry, vector in taken:
        if texts and vector is None:
            entries.append(entry)
        elif vector is not None and len(vector) == dim:
            entries.append(replace(entry, row=len(rows)))
            rows.append(vector)
        else:
            odd = f"its vector has {0 if vector is None else len(vector):,} numbers, most have {dim:,}"
            why = "it is a vector among texts" if texts else odd
            refused[entry.key] = "it is a text among vectors" if vector is None else why
    return tuple(entries), None if texts else np.stack(rows)


@dataclass
class LegacyMatch:
    """The gene of each record.

    Attributes
    ----------
    species
        Of the records that name none.
    genes
        Group -> gene id -> its record.
    ambiguous
        Record -> genes that its name could be.
    unknown
        Records whose gene is not known.
    contradictory
        Record -> how its names contradict each other.
    repeated
        Record -> the record that was taken for the same gene.
    """

    species: Species
    genes: dict[str, dict[str, LegacyEntry]] = field(default_factory=dict)
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    contradictory: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    @property
    def n_matched(self) -> int:
        """Number of records that were taken."""
        return sum(map(len, self.genes.values()))


def match_entries(
    entries: Sequence[LegacyEntry],
    resolver: GeneResolver,
    gene_ids: Collection[str],
    species: Species | str = "auto",
) -> LegacyMatch:
    """Find the gene of each record by its names, never by its place in the file.

    Where a record has a symbol and ids, both must mean one gene. Of two records of one gene the one with the
    official symbol is taken, then a previous symbol, then an alias; of equals the first.

    Parameters
    ----------
    gene_ids
        All genes of the knowledge base.
    species
        Of records that name none: ``human``, ``mouse``, or ``auto``: the species of most symbols.
    """
    silent = [e.symbol for e in entries if e.species is None and e.symbol]
    match = LegacyMatch(resolver.resolve(silent, species).species)
    known = frozenset(gene_ids)
    ranks: dict[tuple[str, str], int] = {}
    for one in SPECIES:
        group = [e for e in entries if (e.species or match.species) == one]
        # A number could be an Entrez id, and is a token id.
        symbols = [e.symbol for e in group if not re.fullmatch(r"[\d.\s]*", e.symbol)]
        by_symbol = _genes_of(resolver, symbols, one, frozenset())
        by_id = _genes_of(resolver, [i for e in group for i in e.ids], one, known)
        for entry in group:
            genes, rank = by_symbol.get(entry.symbol, ((), 1))
            gene_id = _decide(match, entry, genes, {g for i in entry.ids for g in by_id.get(i, ((), 0))[0]})
            if gene_id is None:
                continue
            taken = match.genes.setdefault(entry.group, {})
            at, rank = (entry.group, gene_id), rank if gene_id in genes else 1
            first, last = taken.get(gene_id, entry), entry
            if rank < ranks.get(at, 99):
                first, last, ranks[at] = entry, first, rank
            taken[gene_id] = first
            if first is not last:
                match.repeated[last.shown] = first.shown
    return match


def _genes_of(
    resolver: GeneResolver, names: Iterable[str], species: Species, known: Collection[str]
) -> dict[str, tuple[tuple[str, ...], int]]:
    """Return name -> genes and rank of the match; names that are ``known`` gene ids stand for themselves."""
    names = list(dict.fromkeys(names))
    found = resolver.resolve(names, species)
    genes: dict[str, tuple[tuple[str, ...], int]] = {}
    for name, gene_id, how in zip(names, found.gene_ids, found.how, strict=True):
        if name in known:
            genes[name] = (name,), 1
        elif how == "ambiguous" and not known:
            genes[name] = found.ambiguous[name], 1
        elif gene_id is not None and how in _RANK:
            genes[name] = (gene_id,), _RANK[how]
    return genes


def _decide(
    match: LegacyMatch, entry: LegacyEntry, by_symbol: tuple[str, ...], by_id: set[str]
) -> str | None:
    """Return the gene of a record, or note why there is none."""
    if len(by_id) > 1:
        match.contradictory[entry.shown] = f"its names are of several genes ({', '.join(sorted(by_id))})"
    elif by_id and by_symbol and not by_id & {*by_symbol}:
        named = f"{entry.symbol} is {' or '.join(by_symbol)}, {' and '.join(entry.ids)} is {min(by_id)}"
        match.contradictory[entry.shown] = named
    elif by_id:
        return min(by_id)
    elif len(by_symbol) == 1:
        return by_symbol[0]
    elif by_symbol:
        match.ambiguous[entry.shown] = by_symbol
    else:
        match.unknown.append(entry.shown)
    return None

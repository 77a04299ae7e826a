"""``scvec import-legacy``: import texts and vectors of genes from scInterpreter, scReader and GenePT."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError, _Unpickler
from types import SimpleNamespace
from typing import Any

import numpy as np

from scvec.base.errors import InputError, ResourceError, unreadable
from scvec.base.resources import parse_memory
from scvec.base.results import IN_EARNEST, NextStep, Record, Report, human_bytes
from scvec.base.species import known_species, species_key
from scvec.base.types import Description, Float32, Progress, Space, Species, no_progress, text_sha256
from scvec.ingest.sources.facts import (
    clean_summary,
    provenance_json,
    text_field,
)
from scvec.model.resolvers import GeneResolver, ensure_knowledge, resolver_of
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.stores.store.transaction import Transaction

__all__ = [
    "LegacyEntry",
    "LegacyMatch",
    "LegacyReport",
    "import_legacy",
    "load_plain",
    "match_entries",
    "read_legacy",
]

_ALLOWED = b".(012NIJKMLFGSTUVXBCt)]}adelsughjpqrcRb" + bytes([0x80, *range(0x85, 0x92), *range(0x93, 0x97)])
_PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict, np.ndarray)
_FLOATS, _FLOAT = re.compile(rb"(?:G.{8})++", re.DOTALL), np.dtype([("code", "u1"), ("value", ">f8")])
_DTYPE = re.compile(r"\?|bool|b1|[iu][1248]|f[248]|[US]\d{1,5}")


class _Reader(_Unpickler):
    """Unpickler for plain values only. It calls no function of a pickle and limits memory.

    It derives from the Python implementation, because the C implementation cannot drop instructions.
    """

    def __init__(self, data: bytes, memory: int) -> None:
        super().__init__(self, encoding="latin1")
        self.data, self.at, self.left, self.stack = data, 0, memory, list[Any]()
        self.names: dict[str, Any] = {
            "numpy.ndarray": ...,
            "numpy.dtype": self.dtype,
            "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0, "u1"),
            "numpy.core.multiarray.scalar": lambda kind, x: self.array((1,), kind, False, x).tolist()[0],
            "numpy.core.numeric._frombuffer": lambda x, kind, shape, o: self.array(shape, kind, o == "F", x),
            "collections.OrderedDict": lambda: {},
            "_codecs.encode": self.raw,
            "builtins.bytes": self.raw,
            "builtins.set": lambda x: set(self.keys(x)),
            "builtins.frozenset": lambda x: frozenset(self.keys(x)),
        }

    def spend(self, n_bytes: int) -> None:
        self.left -= n_bytes
        if self.left < 0:
            raise MemoryError

    def read(self, n: int) -> bytes:
        if not 0 <= n <= len(self.data) - self.at:
            raise ValueError("it is truncated, or states a wrong length")
        self.spend(256 + 2 * n)  # 256 bytes: an empty set, the largest object of a one-byte instruction
        self.at += n
        return self.data[self.at - n : self.at]

    def readline(self) -> bytes:
        return self.read(self.data.index(b"\n", self.at, self.at + 2**20) + 1 - self.at)

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in self.names:
            raise UnpicklingError(f"it asks for {module[:99]}.{name[:99]}, which scvec does not run")
        return self.names[known]

    def keys(self, items: Any) -> Any:
        # Other keys may collide by the million, or nest so deeply that hashing them crashes Python.
        self.spend(128 * len(items))
        if not all(type(k) is str or (type(k) is int and abs(k) < 2**60) for k in items):
            raise UnpicklingError("it has a key that is neither a text nor a small number")
        return items

    def load_binfloat(self) -> None:  # reads all floats of a vector at once, which saves minutes
        numbers = np.frombuffer(_FLOATS.match(self.data, self.at - 1)[0], _FLOAT)["value"]  # type: ignore[index]
        self.spend(64 * len(numbers))
        self.at += 9 * len(numbers) - 1
        self.stack += numbers.tolist()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is SimpleNamespace and state[1] in ("<", ">", "=", "|"):
            target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is np.ndarray:
            target.__setstate__(self.array(*state[1:]).__reduce__()[2])  # a state from numpy, not the file
        else:
            raise UnpicklingError("it sets the state of an object that is not an array")

    def raw(self, data: Any = b"", encoding: Any = "latin1") -> bytes:
        if type(data) not in (str, bytes) or encoding not in ("latin1", "latin-1"):
            raise UnpicklingError("it makes bytes of another type or encoding than plain text")
        self.spend(3 * len(data))
        return data.encode("latin1") if type(data) is str else bytes(data)

    def dtype(self, code: Any, *_: Any) -> SimpleNamespace:
        # numpy.dtype would trust any state, even one that declares bytes to be pointers to objects.
        if not _DTYPE.fullmatch(code := self.raw(code).decode()):
            raise UnpicklingError(f"it asks for numpy.dtype({code[:40]})")
        return SimpleNamespace(dtype=np.dtype(code))

    def array(self, shape: Any, kind: SimpleNamespace, fortran: Any, data: Any) -> Any:
        data = self.raw(data)
        if len(shape) > 8 or math.prod(map(int.__index__, shape)) * kind.dtype.itemsize != len(data):
            raise ValueError("an array states a wrong size")
        found = np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="), copy=False)
        return found.reshape(shape, order="F" if fortran else "C")

    def check(self, item: Any, depth: int = 0) -> None:
        self.left -= 1 + (getattr(item, "nbytes", 0) or (len(item) if hasattr(item, "__len__") else 0))
        if type(item) not in _PLAIN or (type(item) is int and item.bit_length() > 1024):
            raise UnpicklingError(f"it contains a {type(item).__name__} that is not a plain value")
        if self.left < 0 or depth > 32 or self.at < len(self.data):
            raise UnpicklingError("it expands too much, nests too deeply, or has data after its end")
        if type(item) in (list, tuple, dict) and set(map(type, item)) != {float}:
            for value in item.values() if type(item) is dict else item:
                self.check(value, depth + 1)


_base: dict[int, Any] = _Unpickler.dispatch
_loads: dict[int, Any] = {c: getattr(_Reader, _base[c].__name__) for c in _ALLOWED}
# A bytearray is read as bytes. Frame lengths are skipped, because the whole file is in memory.
_loads |= {0x96: _base[0x8E], 0x95: lambda reader: reader.read(8)}
for _codes, _keys in ((b"s", slice(-2, -1)), (b"ud", slice(0, None, 2)), (b"\x90\x91", slice(None))):
    _loads |= {c: lambda r, f=_base[c], k=_keys: (r.keys(r.stack[k]), f(r)) for c in _codes}
_Reader.dispatch = _loads


def load_plain(path: Path, *, memory: str | int | None = None) -> Any:
    """Return the contents of a pickle of any protocol, if it has only plain values. No code is run.

    Plain values are None, bool, int, float, str, bytes; list, tuple, set and dict (keys: str or int) of plain
    values; and arrays of numbers, booleans or texts. Numpy scalars become Python numbers, and ordered
    dictionaries become dict.

    Raises
    ------
    InputError
        If the file is not a pickle of plain values.
    ResourceError
        If it needs more than ``memory``.
    """
    allowed = parse_memory(memory)
    data = path.read_bytes() if path.stat().st_size <= allowed else b""
    try:
        reader = _Reader(data, allowed - path.stat().st_size)
        reader.spend(0)
        value = reader.load()
        reader.left = 16 * len(data) + 2**16  # one byte may expand to several characters
        reader.check(value)
        return value
    except MemoryError as error:
        what = f"the pickle needs more than {human_bytes(allowed)} of memory"
        raise ResourceError(what, str(path), "raise --memory, or use a larger machine") from error
    except Exception as error:  # refused above, or any error from damaged instructions
        what = f"this is not a pickle of plain values, or it is damaged: {error or type(error).__name__}"
        fix = "json.dump({k: list(map(float, v)) for k, v in TABLE.items()}, open('x.json', 'w'))"
        raise InputError(
            what, str(path), f"copy it again, or convert it on its machine: {fix}", code="wrong-format"
        ) from error


_FIX = "give JSON or CSV (also .gz) or a pickle, of texts or vectors by gene; see docs/genes.md"
#: Memory per byte of JSON or CSV after parsing, in bytes, and largest dimension of a vector.
_PER_BYTE, _MAX_DIM = 8, 65_536
# Field names, in lower case with "_" for spaces.
_SYMBOLS = ("official_symbol", "gene_symbol", "gene_name", "symbol")
_VECTORS = ("embedding", "gpt_embedding", "vector")
_ENTREZ = ("entrez_id", "gene_id", "geneid", "ncbi_id", "_id")
_FIELDS = {*_SYMBOLS, *_VECTORS, "organism", "species", "summary", "gpt_summary", "error"}
_IDS = re.compile(r"\b(?:HGNC:\d+|MGI:\d+|ENS(?:MUS)?G\d{11})(?!\d)")
_NAMED = re.compile(r"Gene Symbol ([A-Za-z][\w.-]{1,30}) ")
_SPECIES: dict[Species, tuple[str, str]] = {
    key: (one.scientific.lower(), key) for key, one in known_species().items() if one.default
}
#: Rank of each kind of match; a lower rank identifies a gene better. Other matches are guesses, not used
#: here.
_WAYS = (("symbol",), ("id", "ensembl", "entrez"), ("previous",), ("alias",), ("composite",), ("case",))
_RANK = {way: rank for rank, ways in enumerate(_WAYS) for way in ways}


@dataclass(frozen=True, slots=True)
class LegacyEntry:
    """A record of a file: a text, or a (dim,) float32 vector.

    ``symbol`` and ``ids`` name its gene. Ids are ``HGNC:n``, ``MGI:n``, Ensembl, ``entrez:n``, or the symbol
    at the start of the text. ``group`` is the part of the file, if it has several.
    """

    key: str
    symbol: str
    ids: tuple[str, ...] = ()
    species: Species | None = None
    group: str = ""
    text: str = ""
    by_model: bool = False
    vector: Float32 | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Group and symbol, and also the key if it differs."""
        name = self.key if self.symbol in ("", self.key) else f"{self.symbol} ({self.key})"
        return f"{self.group}/{name}" if self.group else name


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """The records of a file: all texts, or all vectors of one dimension.

    Attributes
    ----------
    kind
        ``scinterpreter`` (records with fields) or ``genept`` (by symbol).
    sha256
        SHA-256 of the file.
    dim
        Dimension of the vectors; 0 for texts.
    refused
        Key -> reason why its record cannot be used.
    """

    path: Path
    kind: str
    sha256: str
    dim: int
    entries: tuple[LegacyEntry, ...]
    refused: dict[str, str]

    @property
    def n_records(self) -> int:
        """Number of records read, including refused records."""
        return len(self.entries) + len(self.refused)


class _UnusableError(ValueError):
    """A record cannot be used; the message is the reason."""


def read_legacy(path: Path | str, *, memory: str | int | None = None) -> LegacyFile:
    """Read and check the records of a JSON, CSV (also .gz) or pickle file.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another format, or has neither texts nor vectors of genes.
    ResourceError
        If it needs more than ``memory``.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        values = _values(path, memory)
    except (EOFError, OSError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        raise unreadable(error, path, "the file", "check the path, or get the file again") from error
    if not isinstance(values, dict):
        what = f"the file contains a {type(values).__name__} instead of a table by gene"
        raise InputError(what, str(path), _FIX, code="wrong-format")
    records = [v for v in values.values() if isinstance(v, dict) and v]
    with_fields = sum(any(_field(k) in _FIELDS for k in v) for v in records)
    pages = 2 * with_fields > len(records)
    # A file of GenePT may have several named sets of texts.
    grouped = {} if pages else {k: v for k, v in values.items() if isinstance(v, dict)}
    flat = [("", k, v) for k, v in values.items() if k not in grouped]
    flat += [(str(g), k, v) for g, inner in grouped.items() for k, v in inner.items()]
    taken: list[LegacyEntry] = []
    refused: dict[str, str] = {}
    for group, key, value in ((g, str(k), v) for g, k, v in flat):
        try:
            taken.append(_page(key, value) if pages else _plain(group, key, value))
        except _UnusableError as error:
            refused[f"{group}/{key}" if group else key] = str(error)
    entries, dim = _alike(path, taken, refused)
    if not entries:
        key, why = next(iter(refused.items()), ("", ""))
        what = "neither texts nor vectors of genes" if refused else "no records of genes"
        where = f"{path}, record {key!r}: {why}" if refused else str(path)
        raise InputError(
            f"the file contains {what}", where, "docs/genes.md describes the formats", code="wrong-format"
        )
    return LegacyFile(path, "scinterpreter" if pages else "genept", sha256, dim, tuple(entries), refused)


def _values(path: Path, memory: str | int | None) -> Any:
    """Return the values of a file; of a key that stands there twice, the last."""
    name = path.name.lower().removesuffix(".gz")
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(512)
        if name.endswith((".pkl", ".pickle", ".p")) or head.startswith(b"\x80"):
            if packed:
                fix = f"unpack it: gunzip {path.name}"
                raise InputError("the pickle is in a gzip file", str(path), fix, code="wrong-format")
            return load_plain(path, memory=memory)
        limit = parse_memory(memory) // _PER_BYTE
        content = head + file.read(limit)
    if len(content) > limit:
        size, needed = human_bytes(limit), human_bytes(limit * _PER_BYTE)
        what = f"the file is larger than {size} and may need {needed} of memory"
        raise ResourceError(what, str(path), "raise --memory, or split the file")
    is_json = name.endswith(".json") or head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{")
    if not is_json and not name.endswith((".csv", ".tsv", ".txt")):
        raise InputError("scvec does not read files of this format", str(path), _FIX, code="wrong-format")
    text = content.decode("utf-8-sig")
    return json.loads(text) if is_json else _csv(text, path)


def _csv(text: str, path: Path) -> dict[str, Any]:
    """Return key -> vector; None for a row without a vector."""
    values: dict[str, Any] = {}
    first = text.partition("\n")[0]
    delimiter = "\t" if first.count("\t") > first.count(",") else ","
    for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1):
        if number == 1 and len(cells) < 3:
            raise InputError("the table has no numeric columns", f"{path}, line 1", _FIX, code="wrong-format")
        vector = None
        try:
            vector = np.array(cells[1:], dtype=np.float32)
        except ValueError:
            if number == 1:
                continue  # a header of column names
        if number == 1 and np.array_equal(vector, np.arange(len(cells) - 1)):  # type: ignore[arg-type]
            continue  # a header of column numbers, as pandas writes
        if cells:
            values[cells[0]] = vector if len(cells) > 2 else None
    return values


def _field(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_")


def _plain(group: str, key: str, value: Any) -> LegacyEntry:
    """Return a record of GenePT: a text or a vector under a symbol."""
    symbol = text_field(key, 100)
    if not isinstance(value, str):
        return LegacyEntry(key, symbol, group=group, vector=_vector(value))
    text, provenance = clean_summary(value)
    if not text:
        raise _UnusableError("its text is empty")
    # The symbol in the text is newer than the key, which may be ambiguous by now (QARS is QARS1 or EPRS1).
    named = _NAMED.match(text)
    ids = (named[1],) if named else ()
    return LegacyEntry(key, symbol, ids, group=group, text=text, provenance=provenance)


def _page(key: str, value: Any) -> LegacyEntry:
    """Return a record of scInterpreter: the fields of a page, or a vector with the name of its gene."""
    if not isinstance(value, dict) or not value:
        raise _UnusableError("it is empty" if isinstance(value, dict) else "it is not a record with fields")
    fields = {_field(k): v for k, v in value.items()}
    symbol = next((s for n in _SYMBOLS if (s := text_field(fields.get(n), 100))), "")
    organism = text_field(fields.get("organism", fields.get("species")), 200).lower()
    species = next((s for s, starts in _SPECIES.items() if organism.startswith(starts)), None)
    if organism and species is None:
        raise _UnusableError("its species is not known")
    links = " ".join(text_field(fields.get(n), 4000) for n in ("primary_source", "see_related", "ensembl_id"))
    numbers = (text_field(fields.get(n), 20) for n in _ENTREZ)
    ids = [*_IDS.findall(links), *(f"entrez:{n}" for n in numbers if n.isascii() and n.isdigit())]
    symbol = re.sub(r"(?is)\s*provided\s*by.*$", "", symbol)
    entry = LegacyEntry(key, symbol, tuple(dict.fromkeys(ids)), species)
    for name in _VECTORS:
        if fields.get(name) is not None:
            return replace(entry, vector=_vector(fields[name]))
    for name in ("summary", "gpt_summary"):
        text, provenance = clean_summary(fields.get(name))
        if text:
            return replace(entry, text=text, provenance=provenance, by_model=name != "summary")
    raise _UnusableError("it has no summary")


def _vector(value: Any) -> Float32:
    """Return a value as (dim,) float32."""
    if isinstance(value, list | tuple):
        if not value or not set(map(type, value)) <= {int, float}:
            raise _UnusableError("its value is neither a text nor a list of numbers")
        try:
            value = np.array(value, dtype=np.float64)
        except OverflowError:
            raise _UnusableError("its vector contains NaN or infinity") from None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise _UnusableError(f"its value is a {type(value).__name__}, neither a text nor a vector")
    value = value.ravel() if value.ndim == 2 and 1 in value.shape else value
    if value.ndim != 1 or not 2 <= len(value) <= _MAX_DIM:
        raise _UnusableError(f"its vector has the shape {value.shape}")
    with np.errstate(over="ignore"):
        vector: Float32 = value.astype(np.float32)
    if not np.isfinite(vector).all():
        raise _UnusableError("its vector contains NaN or infinity")
    if not vector.any():
        raise _UnusableError("its vector is zero")
    return vector


def _alike(
    path: Path, taken: Sequence[LegacyEntry], refused: dict[str, str]
) -> tuple[list[LegacyEntry], int]:
    """Return the majority of the records, and the length of their vectors. Others go to ``refused``."""
    sizes = Counter(len(entry.vector) for entry in taken if entry.vector is not None)
    dim = 0 if 2 * sizes.total() <= len(taken) else sizes.most_common(1)[0][0]
    groups = sorted({entry.group for entry in taken if entry.vector is not None})
    if dim and len(groups) > 1:
        what = f"the file contains several sets of vectors ({', '.join(groups[:5])})"
        raise InputError(what, str(path), "write each set into its own file", code="wrong-format")
    entries: list[LegacyEntry] = []
    for entry in taken:
        length = 0 if entry.vector is None else len(entry.vector)
        if length == dim:
            entries.append(entry)
        elif not length or not dim:
            refused[entry.key] = "it is a text among vectors" if dim else "it is a vector among texts"
        else:
            refused[entry.key] = f"its vector has {length:,} dimensions, most have {dim:,}"
    return entries, dim


@dataclass
class LegacyMatch:
    """Genes of the records of a file.

    Attributes
    ----------
    species
        Species of the records that name none.
    genes
        Group -> gene id -> record.
    left
        Record -> the reason why it was not used (``unknown``, ``ambiguous``, ``refused`` or ``repeated``),
        and more about it.
    """

    species: Species
    genes: dict[str, dict[str, LegacyEntry]] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def n_matched(self) -> int:
        """Number of records with a gene."""
        return sum(map(len, self.genes.values()))

    def why(self, reason: str) -> dict[str, str]:
        """Return the records that were not used for one reason, and more about each."""
        return {record: more for record, (why, more) in self.left.items() if why == reason}


def match_entries(
    entries: Sequence[LegacyEntry],
    resolver: GeneResolver,
    gene_ids: Collection[str],
    species: Species | str = "auto",
) -> LegacyMatch:
    """Find the gene of each record by its names, never by its position in the file.

    If a record has a symbol and ids, both must name the same gene. If several records name one gene, the
    record with the official symbol is used, then one with a previous symbol, then one with an alias. Ties go
    to the first record.

    Parameters
    ----------
    gene_ids
        All genes of the knowledge base.
    species
        Species of records that name none: ``human``, ``mouse``, or ``auto`` for the species of most symbols.
    """
    silent = [e.symbol for e in entries if e.species is None and e.symbol]
    match = LegacyMatch(resolver.resolve(silent, species).species)
    known = frozenset(gene_ids)
    ranks: dict[tuple[str, str], int] = {}
    for one in dict.fromkeys(e.species or match.species for e in entries):
        group = [e for e in entries if (e.species or match.species) == one]
        if one not in resolver.species:  # its genes are not loaded, so none is known
            match.left |= {e.shown: ("unknown", "") for e in group}
            continue
        # Numbers look like Entrez ids, but are token ids.
        symbols = [e.symbol for e in group if not re.fullmatch(r"[\d.\s]*", e.symbol)]
        by_symbol = _genes_of(resolver, symbols, one, frozenset())
        by_id = _genes_of(resolver, [i for e in group for i in e.ids], one, known)
        for entry in group:
            genes, rank = by_symbol.get(entry.symbol, ((), 1))
            gene_id, left = _decided(entry, genes, {g for i in entry.ids for g in by_id.get(i, ((), 0))[0]})
            if gene_id is None:
                match.left[entry.shown] = left
                continue
            taken = match.genes.setdefault(entry.group, {})
            at, rank = (entry.group, gene_id), rank if gene_id in genes else 1
            first, last = taken.get(gene_id, entry), entry
            if rank < ranks.get(at, 99):
                first, last, ranks[at] = entry, first, rank
            taken[gene_id] = first
            if first is not last:
                match.left[last.shown] = "repeated", f"as {first.shown}"
    return match


def _genes_of(
    resolver: GeneResolver, names: Iterable[str], species: Species, known: Collection[str]
) -> dict[str, tuple[tuple[str, ...], int]]:
    """Return name -> (genes, rank of the match). ``known`` gene ids match themselves."""
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


def _decided(
    entry: LegacyEntry, by_symbol: tuple[str, ...], by_id: set[str]
) -> tuple[str | None, tuple[str, str]]:
    """Return the gene of a record; None and why there is none."""
    if len(by_id) > 1:
        return None, ("refused", f"its names belong to several genes ({', '.join(sorted(by_id))})")
    if by_id and by_symbol and not by_id & {*by_symbol}:
        named = f"{entry.symbol} is {' or '.join(by_symbol)}, {' and '.join(entry.ids)} is {min(by_id)}"
        return None, ("refused", named)
    if not by_id and len(by_symbol) > 1:
        return None, ("ambiguous", " or ".join(by_symbol))
    if not by_id and not by_symbol:
        return None, ("unknown", "")
    return min(by_id or by_symbol), ("", "")


#: Number of records of each kind that the report lists.
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class LegacyFileReport(Record):
    """Result of the import of one file.

    Attributes
    ----------
    kind, holds
        ``scinterpreter`` or ``genept``; ``texts`` or ``vectors``.
    read, matched, ambiguous, unknown, refused, repeated
        Number of records read; imported; with an ambiguous name; without a known gene; damaged or with
        contradictory names; and for a gene of an earlier record.
    examples
        The first few records of each kind, with the reason.
    space, dim
        Fingerprint and dimension of the new space of vectors.
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
        """Return the report as lines of text."""
        size = f" of {self.dim:,} dimensions" if self.dim else ""
        lines = [
            f"{self.file}: {self.holds}{size} ({self.kind}), {self.matched:,} of {self.read:,} imported; "
            f"{self.unknown:,} unknown, {self.ambiguous:,} ambiguous, {self.refused:,} refused, "
            f"{self.repeated:,} repeated"
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
    """Result of ``import-legacy``."""

    files: list[LegacyFileReport]
    seconds: float
    generation: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [line for file in self.files for line in file.lines()]
        lines += ["nothing was changed (--dry-run)"] if self.dry_run else []
        return [*lines, f"took {self.seconds:.1f} s"]

    @property
    def next_step(self) -> NextStep | None:
        """The import after a dry run."""
        return IN_EARNEST if self.dry_run else None


def import_legacy(
    store: Path | str,
    files: Sequence[Path | str],
    *,
    name: str | None = None,
    species: str = "auto",
    memory: str | int | None = None,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> LegacyReport:
    """Import gene texts and vectors of scInterpreter, scReader or GenePT.

    Texts become descriptions with provenance; texts of a language model are marked. Vectors become a space
    with the backbone ``legacy:NAME``. No vectors can be added to it, because its texts and model are unknown.

    Parameters
    ----------
    store
        Folder of the store.
    files
        JSON or CSV files (also .gz), or pickles, which are read without running code.
    name
        Name of the texts or the space; None for the name of the file.
    species
        Species of records that name none: ``human``, ``mouse`` or ``auto``.
    memory
        Memory limit for reading a file, in bytes or as text such as ``4G``.
    dry_run
        Read, match and count without changing the store.

    Raises
    ------
    InputError
        If a file is damaged, of another format, or a pickle with code.
    ResourceError
        If a file needs more than ``memory``.
    """
    started = time.monotonic()
    species = species if species == "auto" else species_key(species)
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
            file = read_legacy(path, memory=memory)
            match = match_entries(file.entries, resolver, gene_ids, species)
            space = None
            if not match.n_matched:
                known = "no gene is known, so nothing was imported; check --species"
                notes.append(f"warning: {file.path.name}: {known}")
            elif not file.dim:
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
        raise InputError("no file was given", "FILE", "give at least one file", code="usage")
    if name is not None and len(files) > 1:
        what = "several files cannot have one name"
        raise InputError(what, "--name", "import them one at a time", code="usage")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fix = "use letters, digits, dots, dashes and underscores"
        raise InputError(f"{name!r} is not a valid name", "--name", fix, code="bad-name")
    stems = [Path(file).name.lower().removesuffix(".gz").rsplit(".", 1)[0] for file in files]
    names = [name or re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-.")[:100] or "file" for stem in stems]
    if len(set(names)) < len(names):
        fix = "import them one at a time, with --name"
        raise InputError("two files would get the same name", ", ".join(names), fix, code="bad-name")
    return names


def _put_vectors(
    txn: Transaction, kb: KnowledgeBase, file: LegacyFile, match: LegacyMatch, name: str
) -> Space:
    """Store the vectors of a file as a new space and return it."""
    (genes,) = match.genes.values()
    ids = sorted(genes)
    vectors = np.stack([np.asarray(genes[g].vector, np.float32) for g in ids])
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
    # The text is unknown, so a hash of the record replaces the hash of the text.
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
            retrieved_at="",  # unknown, so any text with a date counts as newer
            kind="llm" if entry.by_model else "human",
            model="unknown" if entry.by_model else "",
            provenance=provenance_json({**entry.provenance, **origin, "key": entry.key}),
        )
        for group, genes in match.genes.items()
        for gene_id, entry in genes.items()
    ]


def _report(file: LegacyFile, match: LegacyMatch, name: str, space: Space | None) -> LegacyFileReport:
    left = {why: match.why(why) for why in ("unknown", "ambiguous", "refused", "repeated")}
    left["refused"] = {**file.refused, **left["refused"]}
    counts: dict[str, Any] = {why: len(records) for why, records in left.items()}
    species = {e.species or match.species for group in match.genes.values() for e in group.values()}
    return LegacyFileReport(
        name=name,
        file=file.path.name,
        kind=file.kind,
        holds="vectors" if file.dim else "texts",
        species=" and ".join(sorted(species)) or match.species,
        read=file.n_records,
        matched=match.n_matched,
        examples={
            why: [f"{key}: {more}" if more else key for key, more in list(records.items())[:EXAMPLES]]
            for why, records in left.items()
            if records
        },
        space=space.fingerprint if space else "",
        dim=file.dim,
        **counts,
    )

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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError, _Unpickler
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from scvec.base.errors import InputError, ResourceError, unreadable
from scvec.base.resources import parse_memory
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Record, Report, human_bytes
from scvec.base.species import species_key, species_named
from scvec.base.types import Description, Float32, Progress, Space, Species, no_progress, text_sha256
from scvec.ingest.sources.facts import clean_summary, provenance_json, text_field
from scvec.model.resolvers import GeneResolver, ensure_knowledge, resolver_of
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.stores.store.transaction import Transaction

__all__ = ["LegacyRecord", "LegacyReport", "import_legacy", "load_plain", "match_records", "read_legacy"]

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


# Memory per byte of JSON or CSV after parsing, in bytes, and largest dimension of a vector.
_PER_BYTE, _MAX_DIM = 8, 65_536
# Field names, in lower case with "_" for spaces.
_SYMBOLS = ("official_symbol", "gene_symbol", "gene_name", "symbol")
_VECTORS = ("embedding", "gpt_embedding", "vector")
_ENTREZ = ("entrez_id", "gene_id", "geneid", "ncbi_id", "_id")
_FIELDS = {*_SYMBOLS, *_VECTORS, "organism", "species", "summary", "gpt_summary", "error"}
_IDS = re.compile(r"\b(?:HGNC:\d+|MGI:\d+|ENS(?:MUS)?G\d{11})(?!\d)")
_NAMED = re.compile(r"Gene Symbol ([A-Za-z][\w.-]{1,30}) ")
#: Kinds of matches, the best first. Other matches are guesses, not used here.
_KINDS = ("symbol", "id", "ensembl", "entrez", "previous", "alias", "composite", "case")
#: Number of skipped records of each kind that the report lists.
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class LegacyRecord:
    """A text, or a (dim,) float32 vector, with the symbol and ids of its gene.

    ``group`` is the part of the file, if it has several.
    """

    symbol: str
    value: str | Float32
    ids: tuple[str, ...] = ()
    species: Species | None = None
    group: str = ""
    by_model: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimension of the vector; 0 for a text."""
        return 0 if isinstance(self.value, str) else len(self.value)


class _UnusableError(ValueError):
    """A record cannot be used; the message is the reason."""


def read_legacy(path: Path | str, *, memory: str | int | None = None) -> dict[str, LegacyRecord | str]:
    """Return key -> record of a JSON, CSV (also .gz) or pickle file, or the reason why it cannot be used.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another format, or has neither texts nor vectors of genes.
    ResourceError
        If it needs more than ``memory``.
    """
    path = Path(path)
    try:
        values = _values(path, memory)
    except (EOFError, OSError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        raise unreadable(error, path, "the file", "check the path, or get the file again") from error
    inner = list(values.values()) if isinstance(values, dict) else []
    # A file of GenePT may have several named sets of texts.
    grouped = all(isinstance(v, dict) and not _FIELDS & {*map(_field, v)} for v in inner)
    records: dict[str, LegacyRecord | str] = {}
    for group, items in values.items() if inner and grouped else [("", values if inner else {})]:
        for key, value in items.items():
            shown = f"{group}/{key}" if group else str(key)
            try:
                records[shown] = _record(str(group), str(key), value)
            except _UnusableError as error:
                records[shown] = str(error)
    usable = [r for r in records.values() if isinstance(r, LegacyRecord)]
    dim = Counter(r.dim for r in usable).most_common(1)[0][0] if usable else 0
    for what, wrong in (
        ("the file has neither texts nor vectors of genes", not usable),
        ("the file has several sets of vectors", dim and len({r.group for r in usable}) > 1),
    ):
        if wrong:
            key, why = next(((k, v) for k, v in records.items() if isinstance(v, str)), ("", ""))
            where = f"{path}, record {key!r}: {why}" if key else str(path)
            raise InputError(what, where, "docs/genes.md describes the formats", code="wrong-format")
    for key, record in records.items():
        if isinstance(record, LegacyRecord) and record.dim != dim:
            records[key] = f"it has {record.dim:,} dimensions, most have {dim:,} (0: a text)"
    return records


def _values(path: Path, memory: str | int | None) -> Any:
    """Return the values of a file; the last value of a repeated key."""
    name = path.name.lower().removesuffix(".gz")
    limit = parse_memory(memory) // _PER_BYTE
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(512)
        is_pickle = name.endswith((".pkl", ".pickle", ".p")) or head.startswith(b"\x80")
        content = b"" if is_pickle else head + file.read(limit)
    if is_pickle and not packed:
        return load_plain(path, memory=memory)
    if len(content) > limit:
        what = f"the file is larger than {human_bytes(limit)}"
        raise ResourceError(what, str(path), "raise --memory, or split the file")
    if name.endswith(".json") or head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return json.loads(content.decode("utf-8-sig"))
    if is_pickle or not name.endswith((".csv", ".tsv", ".txt")):
        what, fix = "scvec does not read files of this format", "give JSON, CSV (also .gz) or a pickle"
        raise InputError(what, str(path), f"{fix}; see docs/genes.md", code="wrong-format")
    text = content.decode("utf-8-sig")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text else ",")
    values: dict[str, Any] = {}
    for key, *cells in filter(None, rows):
        try:
            values[key] = np.array(cells, dtype=np.float32)
        except ValueError:
            values |= {key: None} if values else {}  # the first row may be a header
    values.pop("", None)  # a header of column numbers, as pandas writes
    return values


def _field(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_")


def _record(group: str, key: str, value: Any) -> LegacyRecord:
    """Return a record: the fields of a page (scInterpreter), or a value under a symbol (GenePT)."""
    plain = {"symbol": key, "summary" if isinstance(value, str) else "vector": value}
    fields = {_field(k): v for k, v in value.items()} if isinstance(value, dict) else plain
    symbol = next((s for n in _SYMBOLS if (s := text_field(fields.get(n), 100))), "")
    symbol = re.sub(r"(?is)\s*provided\s*by.*$", "", symbol)
    organism = text_field(fields.get("organism", fields.get("species")), 200)
    species = species_named(organism.partition("(")[0])
    if organism and species is None:
        raise _UnusableError("its species is not known")
    links = " ".join(text_field(fields.get(n), 4000) for n in ("primary_source", "see_related", "ensembl_id"))
    numbers = (text_field(fields.get(n), 20) for n in _ENTREZ)
    ids = [*_IDS.findall(links), *(f"entrez:{n}" for n in numbers if n.isascii() and n.isdigit())]
    for name in (n for n in _VECTORS if fields.get(n) is not None):
        return LegacyRecord(symbol, _vector(fields[name]), tuple(dict.fromkeys(ids)), species, group)
    for name in ("summary", "gpt_summary"):
        text, provenance = clean_summary(fields.get(name))
        # The symbol in a text is newer than its key, which may be ambiguous by now (QARS is QARS1 or EPRS1).
        ids += _NAMED.findall(text)[:1]
        if text:
            by_model = name != "summary"
            return LegacyRecord(symbol, text, (*dict.fromkeys(ids),), species, group, by_model, provenance)
    raise _UnusableError("it has neither a text nor a vector")


def _vector(value: Any) -> Float32:
    """Return a value as (dim,) float32."""
    if isinstance(value, list | tuple) and value and set(map(type, value)) <= {int, float}:
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
    if not np.isfinite(vector).all() or not vector.any():
        raise _UnusableError("its vector is zero, or contains NaN or infinity")
    return vector


#: Group of a file -> gene id -> key and record.
_Genes: TypeAlias = dict[str, dict[str, tuple[str, LegacyRecord]]]


def match_records(
    records: Mapping[str, LegacyRecord | str],
    resolver: GeneResolver,
    gene_ids: Collection[str],
    species: str = "auto",
) -> tuple[_Genes, dict[str, tuple[str, str]]]:
    """Find the gene of each record by its names, never by its position in the file.

    Symbol and ids must name one gene. If several records name it, the one with the official symbol is used,
    then one with a previous symbol, then one with an alias. ``species`` is that of records that name none.

    Returns
    -------
    genes
        Group -> gene id -> key and record.
    skipped
        Key -> ``unknown``, ``ambiguous``, ``refused`` or ``repeated``, and why.
    """
    skipped = {key: ("refused", why) for key, why in records.items() if isinstance(why, str)}
    usable = {key: record for key, record in records.items() if isinstance(record, LegacyRecord)}
    silent = [r.symbol for r in usable.values() if r.species is None and r.symbol]
    default = resolver.resolve(silent, species).species
    matched = []
    for one in dict.fromkeys(r.species or default for r in usable.values()):
        group = {key: r for key, r in usable.items() if (r.species or default) == one}
        if one not in resolver.species:  # its genes are not loaded
            skipped |= dict.fromkeys(group, ("unknown", ""))
            continue
        found = resolver.resolve([name for r in group.values() for name in (r.symbol, *r.ids)], one)
        kinds = dict(zip(found.names, found.how, strict=True))
        pairs = zip(found.names, found.gene_ids, strict=True)
        unique = {name: gene for name, gene in pairs if gene is not None and kinds[name] in _KINDS}
        for key, record in group.items():
            # Numbers look like Entrez ids, but are token ids.
            name = "" if re.fullmatch(r"[\d.\s]*", record.symbol) else record.symbol
            symbol = {unique[name]} if name in unique else {*found.ambiguous.get(name, ())}
            ids = {i if i in gene_ids else unique[i] for i in record.ids if i in gene_ids or i in unique}
            genes = ids or symbol
            if len(ids) > 1 or (ids and symbol and not ids & symbol):
                named = f"{record.symbol}: {', '.join(sorted(symbol)) or '?'}; ids: {', '.join(sorted(ids))}"
                skipped[key] = "refused", f"its names belong to several genes ({named})"
            elif len(genes) > 1:
                skipped[key] = "ambiguous", " or ".join(sorted(genes))
            elif not genes:
                skipped[key] = "unknown", ""
            else:
                rank = _KINDS.index(kinds[name]) if name in unique else 1
                matched.append((rank, min(genes), key, record))
    genes_of: _Genes = {}
    for _, gene, key, record in sorted(matched, key=lambda one: one[0]):
        first, _ = genes_of.setdefault(record.group, {}).setdefault(gene, (key, record))
        if first != key:
            skipped[key] = "repeated", f"as {first}"
    return genes_of, skipped


@dataclass(frozen=True, kw_only=True)
class LegacyFileReport(Record):
    """Result of the import of one file.

    Attributes
    ----------
    read, matched, skipped
        Number of records read, imported, and skipped: ``unknown`` genes, ``ambiguous`` names, ``refused``
        (damaged, or names of several genes), and ``repeated`` genes.
    examples
        The first skipped records of each kind, with reasons.
    space, dim
        Fingerprint and dimension of the new space of vectors; empty and 0 for texts.
    """

    name: str
    file: str
    read: int
    matched: int
    skipped: dict[str, int]
    examples: dict[str, list[str]]
    space: str = ""
    dim: int = 0

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        what = f"vectors of {self.dim:,} dimensions" if self.dim else "texts"
        counts = ", ".join(f"{n:,} {kind}" for kind, n in self.skipped.items())
        lines = [f"{self.file}: {what}, {self.matched:,} of {self.read:,} imported; {counts}"]
        for kind, shown in self.examples.items():
            more = self.skipped[kind] - len(shown)
            lines.append(f"  {kind}: {'; '.join(shown)}{f'; and {more:,} more' if more > 0 else ''}")
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
        return WITHOUT_DRY_RUN if self.dry_run else None


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
        for number, (path, called) in enumerate(zip(map(Path, files), names, strict=True)):
            progress("reading files", number, len(files))
            records = read_legacy(path, memory=memory)
            genes, skipped = match_records(records, resolver, gene_ids, species)
            with path.open("rb") as raw:
                sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
            dim = max(r.dim for r in records.values() if isinstance(r, LegacyRecord))
            space = ""
            if not genes:
                notes.append(
                    f"warning: {path.name}: no gene is known, so nothing was imported; check --species"
                )
            elif dim:
                space = _put_vectors(txn, kb, genes[""], called, sha256)
            else:
                kb.upsert_descriptions(
                    _descriptions(genes, called, {"file": path.name, "file_sha256": sha256})
                )
            shown: dict[str, list[str]] = {
                kind: [] for kind in ("unknown", "ambiguous", "refused", "repeated")
            }
            for key, (kind, why) in skipped.items():
                shown[kind].append(f"{key}: {why}" if why else key)
            reports.append(
                LegacyFileReport(
                    name=called,
                    file=path.name,
                    read=len(records),
                    matched=len(records) - len(skipped),
                    skipped={kind: len(keys) for kind, keys in shown.items()},
                    examples={kind: keys[:EXAMPLES] for kind, keys in shown.items() if keys},
                    space=space,
                    dim=dim,
                )
            )
        progress("reading files", len(files), len(files))
        generation = "" if dry_run else str(txn.commit().number)
        notes += txn.notes
    seconds = time.monotonic() - started
    return LegacyReport(files=reports, seconds=seconds, generation=generation, dry_run=dry_run, notes=notes)


def _names(files: Sequence[Path | str], name: str | None) -> list[str]:
    """Return the name of each file: a part of a backbone's name, so it must be plain."""
    stems = [Path(file).name.lower().removesuffix(".gz").rsplit(".", 1)[0] for file in files]
    names = [name or re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-.")[:100] or "file" for stem in stems]
    if len(set(names)) < len(names):
        fix = "import them one at a time, with --name"
        raise InputError("two files would get the same name", ", ".join(names), fix, code="bad-name")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fix = "use letters, digits, dots, dashes and underscores"
        raise InputError(f"{name!r} is not a valid name", "--name", fix, code="bad-name")
    return names


def _put_vectors(
    txn: Transaction, kb: KnowledgeBase, genes: dict[str, tuple[str, LegacyRecord]], name: str, sha256: str
) -> str:
    """Store vectors as a new space and return its fingerprint."""
    ids = sorted(genes)
    vectors = np.stack([np.asarray(genes[g][1].value, np.float32) for g in ids])
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    space = Space(
        backbone=f"legacy:{name}",
        revision="unknown",
        weights_sha256=sha256,
        template="unknown",
        pooling="unknown",
        dim=vectors.shape[1],
        normalized=bool(np.abs(norms - 1).max() < 1e-3),
    )
    table = kb.genes().set_index("gene_id").loc[ids, ["species", "symbol"]].reset_index()
    # The text is unknown, so a hash of the record replaces the hash of the text.
    table["text_sha256"] = [text_sha256(f"legacy:{sha256}:{g}") for g in ids]
    txn.put_space(space, table, vectors)
    return space.fingerprint


def _descriptions(genes: _Genes, name: str, origin: dict[str, str]) -> list[Description]:
    return [
        Description(
            gene_id=gene_id,
            text=str(record.value),
            source=f"legacy:{name}/{group}" if group else f"legacy:{name}",
            source_version=str(record.provenance.get("provided_at", "")) or origin["file"],
            retrieved_at="",  # unknown, so any text with a date counts as newer
            kind="llm" if record.by_model else "human",
            model="unknown" if record.by_model else "",
            provenance=provenance_json({**record.provenance, **origin, "key": key.removeprefix(f"{group}/")}),
        )
        for group, found in genes.items()
        for gene_id, (key, record) in found.items()
    ]

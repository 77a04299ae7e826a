"""Genes and their descriptions from a file: jsonl, csv, tsv (each also .gz), parquet, or a known table."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO, cast

from scvec.base.errors import InputError
from scvec.base.types import SPECIES, Description, Gene, Species
from scvec.ingest.genes.compose import GoFact, choose, compose
from scvec.ingest.genes.gene_tables import (
    EXPECTED,
    MAX_NAME,
    SPECIES_NAMES,
    Skipped,
    TableFormat,
    cell_items,
    cell_text,
    entrez_number,
    is_date,
    read_lines,
    recognise,
)

__all__ = ["COLUMNS", "GeneRecord", "read_gene_file"]

#: A gene and its descriptions.
GeneRecord = tuple[Gene, list[Description]]

#: Columns that are read; ``symbol`` and one of ``entrez_id`` and ``authority_id`` must be there.
COLUMNS = (
    "entrez_id",
    "authority_id",
    "symbol",
    "species",
    "name",
    "gene_type",
    "ensembl_id",
    "ensembl_ids",
    "aliases",
    "previous_symbols",
    "summary",
    "go_terms",
    "source",
)

_MAX_TEXT = 20_000
_AUTHORITY = re.compile(r"(HGNC|MGI):\d+")
_ENSEMBL = re.compile(r"ENS(MUS)?G\d{11}")
_CREDIT = re.compile(r"\s*\[provided by ([A-Za-z][\w ]{0,40}?)(?:, (\w{3} \d{4}))?\.?\]\s*$")
_HEAD, _PIECE = 1 << 16, 1 << 12


def read_gene_file(
    path: Path | str,
    *,
    species: Species | str | None = None,
    batch_size: int = 20_000,
    retrieved_at: str | None = None,
    notes: list[str] | None = None,
) -> Iterator[list[GeneRecord]]:
    """Yield batches of genes with their descriptions.

    A ``summary`` becomes a description of kind ``human``; a gene without one whose ``go_terms`` are given
    gets a composed one. Lists are arrays in parquet and jsonl, and split by ``|`` in csv; ``-`` and empty
    cells are missing values. Tables of NCBI, HGNC and MGI (:mod:`scvec.ingest.genes.gene_tables`) are
    recognised by their content and have names, no descriptions.

    Parameters
    ----------
    path
        The file. Its ending names the format, where its content does not.
    species
        Species of rows without a ``species`` column, ``authority_id`` or Ensembl id; by default the species
        of most rows at the start of the file.
    batch_size
        Rows per batch.
    retrieved_at
        ISO date for the descriptions; today by default.
    notes
        Gets lines about the kind of file and the rows left out, at the end.

    Raises
    ------
    InputError
        The file is missing, unreadable, of another format, lacks a column, or has an impossible value; the
        message names the row (the first row of data is row 1).
    """
    path = Path(path)
    if species is not None and species not in SPECIES:
        raise InputError(f"unknown species {species!r}", str(path), f"use {' or '.join(SPECIES)}")
    if not path.is_file():
        raise InputError("the gene file does not exist", str(path), "check the path", code="file-not-found")
    date = retrieved_at or datetime.now(UTC).date().isoformat()
    said: list[str] = [] if notes is None else notes
    try:
        table = _known_table(path)
        if table is None:
            yield from _batches(path, species, batch_size, date, said)
        else:
            with _opened(path) as lines:
                for genes in table.genes(lines, path, batch_size, said):
                    yield [(gene, []) for gene in genes]
    except UnicodeDecodeError as err:
        raise InputError(
            "the gene file is not UTF-8 text", f"{path}: {err}", "save it as UTF-8", code="wrong-format"
        ) from err
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise InputError(
            "the gene file is truncated or damaged", f"{path}: {err}", "get it again", code="damaged-file"
        ) from err
    except OSError as err:
        raise InputError(
            "the gene file cannot be read", f"{path}: {err}", "check the file", code="damaged-file"
        ) from err


def _known_table(path: Path) -> TableFormat | None:
    with path.open("rb") as raw:
        if raw.read(4) == b"PAR1":
            return None
    head = ""
    # In small pieces: the start of a truncated file still shows its format.
    with suppress(EOFError, zlib.error, gzip.BadGzipFile), _opened(path, errors="replace") as file:
        while len(head) < _HEAD and (piece := file.read(_PIECE)):
            head += piece
    return recognise(head, path)


def _opened(path: Path, errors: str = "strict") -> TextIO:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    if packed:
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8-sig", errors=errors, newline=""))
    return path.open("rt", encoding="utf-8-sig", errors=errors, newline="")


def _batches(
    path: Path, species: Species | None, size: int, date: str, notes: list[str]
) -> Iterator[list[GeneRecord]]:
    number = 0
    skipped = Skipped()
    for rows in _read(path, size):
        if not rows:
            continue
        if species is None:
            species = _majority(rows, path)
        batch: list[GeneRecord] = []
        facts: dict[int, list[GoFact]] = {}
        for row in rows:
            number += 1
            where = f"{path}, row {number}"
            gene = _gene(row, species, where)
            if is_date(gene.symbol):
                skipped.add("whose symbol a spreadsheet turned into a date", gene.symbol)
                continue
            texts = _summary(row, gene, path, date)
            if not texts:
                found = _go_facts(row.get("go_terms"))
                if found:
                    facts[len(batch)] = found
            batch.append((gene, texts))
        _add_composed(batch, facts, path, date)
        yield batch
    if number == 0:
        raise InputError("the gene file has no rows", str(path), "give one row per gene", code="empty-file")
    notes += skipped.notes(path.name)


def _read(path: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    suffixes = [s.lower() for s in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if kind == ".parquet" and not packed:
        yield from _read_parquet(path, size)
        return
    if kind not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        fix = (
            "for files of scInterpreter or GenePT: scvec import-legacy FILE" if kind == ".json" else EXPECTED
        )
        raise InputError("this is not a format of gene files", str(path), fix, code="wrong-format")
    opened: Any = gzip.open if packed else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        lines = read_lines(file, path)
        rows = _rows_jsonl(lines, path) if kind in (".jsonl", ".ndjson") else _rows_csv(lines, path, kind)
        while batch := list(islice(rows, size)):
            yield batch


def _read_parquet(path: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path)
            present = [c for c in COLUMNS if c in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=size, columns=present):
                columns = [batch.column(name).to_pylist() for name in batch.schema.names]
                yield [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    except (pa.ArrowException, UnicodeDecodeError) as err:
        raise InputError(
            "the parquet file cannot be read", f"{path}: {err}", "write it again", code="damaged-file"
        ) from err


def _rows_jsonl(lines: Iterator[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise InputError(
                f"this line is not JSON: {err}",
                f"{path}, line {number}",
                "one object a line",
                code="wrong-format",
            ) from err
        if not isinstance(row, dict):
            raise InputError(
                "this line is not a JSON object",
                f"{path}, line {number}",
                "one object a line",
                code="wrong-format",
            )
        _check_columns(list(row), path, f", line {number}")
        yield row


def _rows_csv(lines: Iterator[str], path: Path, kind: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(lines, delimiter="\t" if kind == ".tsv" else ",")
    try:
        header = [name.strip().lstrip("#") for name in next(reader, [])]
        _check_columns(header, path)
        for number, cells in enumerate(reader, 1):
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"a row has {len(cells)} cells, the header {len(header)}",
                    f"{path}, row {number}",
                    "quote cells that contain the separator",
                    code="damaged-file",
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as err:
        raise InputError(
            f"the csv cannot be read: {err}",
            f"{path}, line {reader.line_num}",
            "quote its cells",
            code="damaged-file",
        ) from err


def _check_columns(names: Sequence[str], path: Path, where: str = "") -> None:
    if "symbol" in names and ("entrez_id" in names or "authority_id" in names):
        return
    missing = "symbol" if "symbol" not in names else "entrez_id"
    shown = ", ".join(str(n) for n in list(names)[:12]) or "none"
    raise InputError(
        f"the gene file has no column {missing!r}",
        f"{path}{where}; columns: {shown}",
        "give at least symbol, and entrez_id or authority_id (HGNC:n, MGI:n)",
        code="wrong-format",
    )


def _gene(row: Mapping[str, Any], species: Species, where: str) -> Gene:
    symbol = cell_text(row.get("symbol"), MAX_NAME)
    if not symbol:
        raise InputError("a gene has no symbol", where, "fill in the column symbol", code="damaged-file")
    entrez = entrez_number(row.get("entrez_id"), where)
    authority = cell_text(row.get("authority_id"), MAX_NAME)
    if authority and not _AUTHORITY.fullmatch(authority):
        raise InputError(
            f"{authority!r} is not an authority id",
            f"{where}, column authority_id",
            "write HGNC:n or MGI:n",
            code="damaged-file",
        )
    if entrez is None and not authority:
        raise InputError(
            "a gene has neither entrez_id nor authority_id", where, "fill in one of them", code="damaged-file"
        )
    ensembl = [
        e.split(".")[0] for e in (*cell_items(row.get("ensembl_ids")), *cell_items(row.get("ensembl_id")))
    ]
    own = _row_species(row, authority, ensembl, where) or species
    return Gene(
        gene_id=authority or f"entrez:{entrez}",
        species=own,
        symbol=symbol,
        entrez_id=entrez,
        name=cell_text(row.get("name"), MAX_NAME),
        gene_type=cell_text(row.get("gene_type"), MAX_NAME),
        ensembl_ids=tuple(dict.fromkeys(ensembl)),
        aliases=tuple(cell_items(row.get("aliases"))),
        previous=tuple(cell_items(row.get("previous_symbols"))),
    )


def _row_species(
    row: Mapping[str, Any], authority: str, ensembl: Sequence[str], where: str
) -> Species | None:
    said = cell_text(row.get("species"), MAX_NAME)
    if said:
        known = SPECIES_NAMES.get(said.lower())
        if known is None:
            raise InputError(f"unknown species {said!r}", f"{where}, column species", "write human or mouse")
        return cast("Species", known)
    if authority:
        return "human" if authority.startswith("HGNC") else "mouse"
    for gene_id in ensembl:
        found = _ENSEMBL.fullmatch(gene_id)
        if found:
            return "mouse" if found[1] else "human"
    return None


def _majority(rows: Sequence[Mapping[str, Any]], path: Path) -> Species:
    votes: Counter[Species] = Counter()
    for row in rows:
        authority = cell_text(row.get("authority_id"), MAX_NAME)
        ids = (*cell_items(row.get("ensembl_id")), *cell_items(row.get("ensembl_ids")))
        found = _row_species(row, authority, ids, str(path))
        if found:
            votes[found] += 1
    if not votes:
        raise InputError(
            "the gene file does not say the species",
            str(path),
            "name one species, or add a column species",
            code="wrong-format",
        )
    return votes.most_common(1)[0][0]


def _summary(row: Mapping[str, Any], gene: Gene, path: Path, date: str) -> list[Description]:
    text = cell_text(row.get("summary"), _MAX_TEXT)
    if not text:
        return []
    source, version = "refseq", _source_version(row, path)
    credit = _CREDIT.search(text)
    if credit:
        text = text[: credit.start()].rstrip()
        source = credit[1].split()[0].lower()
        version = credit[2] or version
    return [Description(gene.gene_id, text, source, version, date, "human")] if text else []


def _source_version(row: Mapping[str, Any], path: Path) -> str:
    """Return the part of the column ``source`` that names RefSeq, else all of it, else the file's name."""
    parts = [part.strip() for part in cell_text(row.get("source"), 1000).split(";")]
    for part in parts:
        if "refseq" in part.lower():
            return part
    return "; ".join(p for p in parts if p) or path.name


def _go_facts(value: Any) -> list[GoFact]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, list):
        return []
    facts = []
    for term in value:
        if not isinstance(term, dict):
            continue
        evidence = tuple(e for e in cell_items(term.get("evidence")) if e != "ND")
        go_id, name = cell_text(term.get("id"), 20), cell_text(term.get("name"), MAX_NAME)
        if go_id and name and (evidence or not term.get("evidence")):
            facts.append(GoFact(go_id, name, cell_text(term.get("aspect"), 3), evidence))
    return facts


def _add_composed(
    batch: Sequence[GeneRecord], facts: Mapping[int, list[GoFact]], path: Path, date: str
) -> None:
    """Compose texts for the genes that have terms and no summary; term frequencies are the batch's own."""
    n_genes = Counter(chain.from_iterable({f.go_id for f in own} for own in facts.values()))
    for i, own in facts.items():
        gene, texts = batch[i]
        text = compose(gene.symbol, gene.species, gene.gene_type, gene.name, choose(own, n_genes, len(facts)))
        texts.append(Description(gene.gene_id, text, "composed-from-file", path.name, date, "composed"))

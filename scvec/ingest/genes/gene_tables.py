"""Gene tables as NCBI, HGNC and MGI offer them for download.

The content, not the name, identifies them: NCBI gene_info
(https://ftp.ncbi.nlm.nih.gov/gene/DATA/GENE_INFO), HGNC's complete set as text or JSON
(https://www.genenames.org/download), and MGI's reports MGI_EntrezGene.rpt, MRK_List1.rpt, MRK_List2.rpt,
MRK_ENSEMBL.rpt, MGI_Gene_Model_Coord.rpt and HGNC_AllianceHomology.rpt
(https://www.informatics.jax.org/downloads/reports). They name genes and do not describe them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from scvec.base.errors import InputError
from scvec.base.types import Gene, Species

__all__ = [
    "EXPECTED",
    "MAX_NAME",
    "SPECIES_NAMES",
    "Skipped",
    "TableFormat",
    "cell_items",
    "cell_text",
    "entrez_number",
    "is_date",
    "read_lines",
    "recognise",
]

MAX_NAME = 300
_MAX_LINE = 4_000_000
SPECIES_NAMES = {
    "human": "human",
    "homo sapiens": "human",
    "9606": "human",
    "mouse": "mouse",
    "mus musculus": "mouse",
    "10090": "mouse",
}

_MISSING = frozenset(["", "-", "nan", "none", "null", "<na>"])
_LONGEST_MISSING = max(map(len, _MISSING))
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DATE = re.compile(rf"\d{{1,2}}-{_MONTH}|{_MONTH}-\d{{1,2}}|\d{{4}}-\d\d-\d\d(?: 00:00:00)?")


def cell_text(value: Any, limit: int) -> str:
    """Return a cell as text of one line; empty for missing values (``-``, ``nan``)."""
    if value is None:
        return ""
    if not isinstance(value, str):
        if isinstance(value, list | dict):
            return ""
        value = str(value)
    if not value.isprintable():
        # Line breaks and escape codes would end up in messages, prompts and reports.
        value = "".join(c if c.isprintable() else " " for c in value)
    found: str = value.strip()
    if len(found) <= _LONGEST_MISSING and found.lower() in _MISSING:
        return ""
    return found[:limit]


def cell_items(value: Any, separator: str = "|") -> list[str]:
    """Return a cell that holds a list: an array, or text with parts separated by ``separator``."""
    if not value and value != 0:
        return []
    if isinstance(value, str):
        # The first is what pandas writes for an array: ['A1B' 'ABG'] or ["A1B", "ABG"].
        quoted = value.startswith("[")
        value = [a or b for a, b in _QUOTED.findall(value)] if quoted else value.split(separator)
    elif not isinstance(value, list | tuple):
        value = [value]
    return [t for v in value if (t := cell_text(v, MAX_NAME))]


def entrez_number(value: Any, where: str, column: str = "entrez_id") -> int | None:
    """Return an Entrez id as a number, None where there is none; InputError where it cannot be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        said = cell_text(value, 40)
        if not said:
            return None
        # A spreadsheet or a column with gaps writes 3630 as 3630.0.
        said = said.removesuffix(".0")
        if not (said.isascii() and said.isdigit()):
            what = f"{said!r} is not an Entrez id"
            raise InputError(what, f"{where}, column {column}", "write a whole number", code="damaged-file")
        number = int(said)
    if not 0 < number < 2**53:
        what = f"{number} is not an Entrez id"
        raise InputError(
            what, f"{where}, column {column}", "write a whole number above 0", code="damaged-file"
        )
    return number


def read_lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a table; InputError where one is too long to be a gene."""
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) >= _MAX_LINE:
            raise InputError(
                "a line is longer than 4 MB",
                f"{path}, line {number}",
                "give one gene per line",
                code="damaged-file",
            )
        yield line


def is_date(symbol: str) -> bool:
    """Return whether a symbol is a date, as spreadsheets make of MARCH1 or SEPT2: 1-Mar, 2024-03-01."""
    return symbol[-1:].isalnum() and _DATE.fullmatch(symbol) is not None


class Skipped:
    """Rows that were left out, by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str = "") -> None:
        """Count a row."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        shown = self._examples.setdefault(reason, [])
        if example and len(shown) < 3 and example not in shown:
            shown.append(example)

    def notes(self, file: str) -> list[str]:
        """Return a line for people for each reason."""
        lines = []
        for reason, n in self._counts.items():
            shown = ", ".join(self._examples[reason])
            rows = "1 row" if n == 1 else f"{n:,} rows"
            lines.append(f"{file}: left out {rows} {reason}{f', such as {shown}' if shown else ''}")
        return lines


#: Formats, for messages.
EXPECTED = (
    "give .jsonl, .csv or .tsv (also .gz), .parquet, or a table of NCBI (gene_info), HGNC (complete set) "
    "or MGI"
)

_AUTHORITY = re.compile(r"(?:(?:HGNC|MGI):)?(HGNC|MGI):(\d+)")
_NUMBERED = re.compile(r"^\d+\.\s*")
_MGI_ROW = re.compile(r"MGI:\d+\t")
_PIECE = 1 << 16
_LONGEST_DOC = 1 << 20

_HGNC_TYPES = {
    "gene with protein product": "protein-coding",
    "RNA, long non-coding": "lncRNA",
    "RNA, micro": "miRNA",
    "RNA, transfer": "tRNA",
    "RNA, ribosomal": "rRNA",
    "RNA, small nuclear": "snRNA",
    "RNA, small nucleolar": "snoRNA",
    "immunoglobulin gene": "IG",
    "T cell receptor gene": "TR",
    "readthrough": "readthrough",
}
_MGI_TYPES = re.compile(r"lncRNA|lincRNA|miRNA|snoRNA|snRNA|tRNA|rRNA|scRNA", re.IGNORECASE)
_MGI_GENES = frozenset(["gene", "pseudogene", "microrna", ""])
# Columns of the two MGI reports that have no header line.
_MGI_ENTREZ = (
    "mgi accession id", "marker symbol", "status", "marker name", "cm position", "chromosome", "marker type",
    "secondary accession ids", "entrez gene id", "marker synonyms", "feature type",
)  # fmt: skip
_MGI_ENSEMBL = (
    "mgi accession id", "marker symbol", "marker name", "cm position", "chromosome", "ensembl gene id",
    "ensembl transcript id", "ensembl protein id", "feature type",
)  # fmt: skip
# HGNC's own download and its "custom download" call the same columns differently.
_HGNC_NAMES = {
    "hgnc id": "hgnc_id",
    "approved symbol": "symbol",
    "approved name": "name",
    "locus type": "locus_type",
    "alias symbols": "alias_symbol",
    "previous symbols": "prev_symbol",
    "ncbi gene id": "entrez_id",
    "entrez gene id": "entrez_id",
    "ncbi gene id(supplied by ncbi)": "entrez_id",
    "ensembl gene id": "ensembl_gene_id",
    "ensembl id(supplied by ensembl)": "ensembl_gene_id",
}

#: A row as a mapping and its place -> a gene, or the reason why there is none.
_Row = Callable[[Mapping[str, Any], str], Gene | str]


@dataclass(frozen=True)
class TableFormat:
    """A kind of table; ``what`` is its name for messages."""

    what: str
    columns: tuple[str, ...]
    header: bool
    row: _Row

    def genes(self, file: TextIO, path: Path, size: int, notes: list[str]) -> Iterator[list[Gene]]:
        """Yield batches of ``size`` rows at most; at the end ``notes`` gets the rows left out.

        Raises
        ------
        InputError
            The table is cut off, has an impossible id, or names no human or mouse gene.
        """
        skipped = Skipped()
        total = 0
        batch: list[Gene] = []
        rows = self._json(file, path) if not self.columns else self._lines(file, path)
        for number, row in enumerate(rows, 1):
            found = self.row(row, f"{path}, row {number}")
            if isinstance(found, str):
                skipped.add(found)
            elif is_date(found.symbol):
                skipped.add("whose symbol a spreadsheet turned into a date", found.symbol)
            else:
                batch.append(found)
            if len(batch) == size:
                total += size
                yield batch
                batch = []
        if batch:
            yield batch
        if not total + len(batch):
            raise InputError(
                f"this {self.what} names no human or mouse gene",
                str(path),
                "give one of human or mouse",
                code="wrong-format",
            )
        notes.append(f"{path.name} is a table of {self.what}")
        notes += skipped.notes(path.name)

    def _lines(self, file: TextIO, path: Path) -> Iterator[dict[str, str]]:
        for number, line in enumerate(read_lines(file, path), 1):
            if number == 1 and self.header:
                continue
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) < min(len(self.columns), 3) and not line.strip():
                continue
            if len(cells) < len(self.columns) - (0 if self.header else 2):
                what = f"a row has {len(cells)} cells instead of {len(self.columns)}: the table is cut off"
                raise InputError(what, f"{path}, line {number}", "download it again", code="damaged-file")
            yield dict(zip(self.columns, map(_unquoted, cells), strict=False))

    def _json(self, file: TextIO, path: Path) -> Iterator[dict[str, Any]]:
        decoder = json.JSONDecoder()
        buffer = ""
        while '"docs"' not in buffer:
            piece = file.read(_PIECE)
            if not piece or len(buffer) > _LONGEST_DOC:
                raise InputError(
                    "the JSON has no list of genes", str(path), "download it again", code="wrong-format"
                )
            buffer += piece
        buffer = buffer[buffer.index('"docs"') + 6 :]
        ended = False
        while not ended:
            start = len(buffer) - len(buffer.lstrip(" \r\n\t,:["))
            buffer = buffer[start:]
            if buffer.startswith("]"):
                return
            try:
                row, end = decoder.raw_decode(buffer)
            except (ValueError, RecursionError) as error:
                piece = file.read(_PIECE)
                if not piece or len(buffer) > _LONGEST_DOC:
                    what = "the JSON is cut off or damaged"
                    raise InputError(
                        what, f"{path}, near {buffer[:40]!r}", "download it again", code="damaged-file"
                    ) from error
                buffer += piece
                continue
            if not isinstance(row, dict):
                raise InputError(
                    "the JSON lists something else than genes",
                    str(path),
                    "download it again",
                    code="wrong-format",
                )
            buffer = buffer[end:]
            yield row


def recognise(head: str, path: Path) -> TableFormat | None:
    """Return the format of a table from its first lines, else None; InputError for other tables of these."""
    line = head.lstrip("\ufeff").split("\n", 1)[0].rstrip("\r")
    if line.startswith(("#tax_id\t", "#Format: tax_id GeneID")):
        return _gene_info(line, path)
    if line.lstrip().startswith("{") and '"docs"' in head and '"hgnc_id"' in head:
        return TableFormat("HGNC (JSON)", (), False, _hgnc)
    if _MGI_ROW.match(line):
        return _mgi_without_header(line, path)
    cells = [_NUMBERED.sub("", _unquoted(c)).strip().lower() for c in line.split("\t")]
    if len(cells) < 3:
        return None
    names = tuple(_HGNC_NAMES.get(c, c) for c in cells)
    if "hgnc_id" in names and "mgi accession id" not in names:
        if "symbol" not in names:
            raise _other("HGNC", path, "hgnc_complete_set.txt")
        return TableFormat("HGNC", names, True, _hgnc)
    if any(c.startswith("mgi") and "accession id" in c for c in cells):
        names = tuple(_mgi_name(c) for c in cells)
        if not {"mgi accession id", "marker symbol"} <= set(names):
            raise _other("MGI", path, "MGI_EntrezGene.rpt or MRK_List2.rpt")
        return TableFormat("MGI", names, True, _mgi)
    return None


def _other(who: str, path: Path, wanted: str) -> InputError:
    what = f"this table of {who} does not list genes with their symbols"
    return InputError(what, str(path), f"give {wanted}", code="wrong-format")


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell


# NCBI


def _gene_info(line: str, path: Path) -> TableFormat:
    if line.startswith("#Format:"):  # as it was written until 2016
        line = line.removeprefix("#Format: ").split(" (tab", 1)[0].replace(" ", "\t")
    names = tuple(line.lstrip("#").split("\t"))
    if not {"GeneID", "Symbol", "Synonyms", "dbXrefs"} <= set(names):
        raise _other("NCBI", path, "gene_info, such as Homo_sapiens.gene_info.gz")
    return TableFormat("NCBI gene_info", names, True, _ncbi)


def _ncbi(row: Mapping[str, Any], where: str) -> Gene | str:
    species: Species | None = {"9606": "human", "10090": "mouse"}.get(row["tax_id"])  # type: ignore[assignment]
    if species is None:
        return "of other species"
    kind = row.get("type_of_gene", "")
    if kind == "biological-region" or row["Symbol"] == "NEWENTRY":
        return "of something else than a gene"
    number = entrez_number(row["GeneID"], where, "GeneID")
    given = cell_text(row["Symbol"], MAX_NAME)
    symbol = cell_text(row.get("Symbol_from_nomenclature_authority"), MAX_NAME) or given
    if not symbol or number is None:
        raise InputError(
            "a gene has no symbol or no id", where, "download the table again", code="damaged-file"
        )
    links = cell_items(row["dbXrefs"])
    authority = next((f"{m[1]}:{m[2]}" for link in links if (m := _AUTHORITY.fullmatch(link))), "")
    # A human gene that MGI numbers, or a mouse gene of HGNC, would become a gene of the other species.
    if not authority.startswith("HGNC:" if species == "human" else "MGI:"):
        authority = ""
    aliases = [a for a in (given, *cell_items(row["Synonyms"])) if a != symbol]
    return Gene(
        gene_id=authority or f"entrez:{number}",
        species=species,
        symbol=symbol,
        entrez_id=number,
        name=cell_text(row.get("Full_name_from_nomenclature_authority"), MAX_NAME)
        or cell_text(row.get("description"), MAX_NAME),
        gene_type={"pseudo": "pseudogene", "unknown": ""}.get(kind, cell_text(kind, MAX_NAME)),
        ensembl_ids=_unique(link[8:] for link in links if link.startswith("Ensembl:ENS")),
        aliases=_unique(aliases),
    )


# HGNC


def _hgnc(row: Mapping[str, Any], where: str) -> Gene | str:
    status = cell_text(row.get("status"), MAX_NAME)
    if status and status.lower() != "approved":
        return "that HGNC has withdrawn"
    symbol, hgnc_id = cell_text(row.get("symbol"), MAX_NAME), cell_text(row.get("hgnc_id"), 40)
    found = _AUTHORITY.fullmatch(hgnc_id if hgnc_id.startswith("HGNC:") else f"HGNC:{hgnc_id}")
    if not symbol or found is None:
        raise InputError(
            "a gene has no symbol or no HGNC id", where, "download the table again", code="damaged-file"
        )
    kind = cell_text(row.get("locus_type"), MAX_NAME)
    other = "pseudogene" if "pseudogene" in kind else "ncRNA" if kind.startswith("RNA,") else "other"
    ensembl = [*_listed(row.get("ensembl_gene_id")), *_listed(row.get("ensembl id"))]
    return Gene(
        gene_id=f"HGNC:{found[2]}",
        species="human",
        symbol=symbol,
        entrez_id=entrez_number(row.get("entrez_id"), where),
        name=cell_text(row.get("name"), MAX_NAME),
        gene_type=_HGNC_TYPES.get(kind, other) if kind else "",
        ensembl_ids=_unique(ensembl),
        aliases=_unique(a for a in _listed(row.get("alias_symbol")) if a != symbol),
        previous=_unique(p for p in _listed(row.get("prev_symbol")) if p != symbol),
    )


def _listed(value: Any) -> list[str]:
    # The complete set separates by |, the custom download by commas. No symbol has either.
    comma = isinstance(value, str) and "|" not in value and ", " in value
    return cell_items(value, ", " if comma else "|")


# MGI


def _mgi_name(cell: str) -> str:
    if "synonym" in cell:
        return "marker synonyms"
    if "accession id" in cell and cell.startswith("mgi"):
        return "mgi accession id"
    return {"entrezgene id": "entrez gene id", "type": "marker type"}.get(cell, cell)


def _mgi_without_header(line: str, path: Path) -> TableFormat:
    cells = line.split("\t")
    if len(cells) >= 9 and cells[2] in ("O", "W"):
        return TableFormat("MGI with Entrez ids", _MGI_ENTREZ, False, _mgi)
    if len(cells) >= 6 and cells[5].startswith("ENSMUSG"):
        return TableFormat("MGI with Ensembl ids", _MGI_ENSEMBL, False, _mgi)
    raise _other("MGI", path, "MGI_EntrezGene.rpt, MRK_List2.rpt or MRK_ENSEMBL.rpt")


def _mgi(row: Mapping[str, Any], where: str) -> Gene | str:
    if row.get("status", "").startswith("W"):
        return "of withdrawn markers"
    kind = cell_text(row.get("marker type"), MAX_NAME).lower()
    feature = cell_text(row.get("feature type"), MAX_NAME)
    if kind not in _MGI_GENES:
        return "of something else than a gene"
    symbol, mgi_id = cell_text(row["marker symbol"], MAX_NAME), cell_text(row["mgi accession id"], 40)
    if not symbol or _AUTHORITY.fullmatch(mgi_id) is None:
        raise InputError(
            "a gene has no symbol or no MGI id", where, "download the table again", code="damaged-file"
        )
    return Gene(
        gene_id=mgi_id,
        species="mouse",
        symbol=symbol,
        entrez_id=entrez_number(row.get("entrez gene id"), where, "Entrez gene id"),
        name=cell_text(row.get("marker name"), MAX_NAME),
        gene_type=_mgi_type(kind, feature),
        ensembl_ids=_unique(e for e in cell_items(row.get("ensembl gene id")) if e.startswith("ENSMUSG")),
        aliases=_unique(a for a in cell_items(row.get("marker synonyms")) if a != symbol),
    )


def _mgi_type(kind: str, feature: str) -> str:
    said = feature.lower().replace("_", "-")
    if kind == "pseudogene" or "pseudogen" in said:
        return "pseudogene"
    if "protein coding" in said or "protein-coding" in said:
        return "protein-coding"
    found = _MGI_TYPES.search(feature)
    if found:
        return "lncRNA" if found[0].lower() == "lincrna" else found[0]
    return "segment" if "gene segment" in said else "ncRNA" if "non-coding" in said else ""


def _unique(values: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(v.strip() for v in values if v.strip()))

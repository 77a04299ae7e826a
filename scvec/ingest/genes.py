"""Read genes and their descriptions from a file: jsonl, csv, tsv (also .gz), parquet, or a known table."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from scvec.base.errors import InputError
from scvec.base.species import id_species, known_species, species_key, species_named
from scvec.base.types import Description, Gene, Species

__all__ = [
    "MAX_NAME",
    "GeneRecord",
    "GoFact",
    "borrow",
    "cell_text",
    "choose",
    "compose",
    "is_date",
    "opened",
    "read_gene_file",
    "read_lines",
]

#: Most GO terms of each aspect in a description.
LIMITS = {"BP": 6, "MF": 4, "CC": 4}

#: Longest composed text: below about 90 word pieces of the MiniLM tokenizer for 95% of protein-coding genes.
MAX_CHARS = 300

_EXPERIMENT = frozenset("EXP IDA IPI IMP IGI IEP HTP HDA HMP HGI HEP".split())
_CURATED = frozenset("TAS NAS IC".split())
# A term above this information content has fewer than one gene in 150, so it says little about what the gene
# shares with other genes.
_IC_CAP = 5.0
# Number of terms of each aspect that a shortened text keeps.
_KEEP = {"BP": 3, "MF": 2, "CC": 1}
# Terms without information about a gene.
_EMPTY = frozenset(
    ["biological_process", "molecular_function", "cellular_component", "protein binding", "binding"]
)

_TYPES = {
    "protein-coding": "a protein-coding {} gene",
    "lncRNA": "a {} long non-coding RNA gene",
    "miRNA": "a {} microRNA gene",
    "rRNA": "a {} ribosomal RNA gene",
    "tRNA": "a {} transfer RNA gene",
    "snRNA": "a {} small nuclear RNA gene",
    "snoRNA": "a {} small nucleolar RNA gene",
    "ncRNA": "a {} non-coding RNA gene",
    "IG": "a {} immunoglobulin gene",
    "TR": "a {} T cell receptor gene",
    "pseudogene": "a {} pseudogene",
    "pseudo": "a {} pseudogene",
}


@dataclass(frozen=True, slots=True)
class GoFact:
    """One Gene Ontology term of a gene. ``aspect`` is ``BP``, ``MF`` or ``CC``."""

    go_id: str
    name: str
    aspect: str
    evidence: tuple[str, ...] = ()


def choose(
    facts: Iterable[GoFact],
    n_genes: Mapping[str, int] | None = None,
    total: int = 20_000,
    ancestors: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, list[GoFact]]:
    """Choose the most informative terms of each aspect, best first.

    The score of a term is its information content (capped, because a term with two genes says little) times
    the weight of its evidence: experiments before curators' statements before inference. A term is
    dropped if a better one is its descendant or ancestor.

    Parameters
    ----------
    facts
        The terms of one gene, in any order.
    n_genes
        Number of genes annotated to each term or its descendants; 1 for missing terms.
    total
        Number of genes with annotations.
    ancestors
        All ancestors of each term.
    """
    ranked = sorted(facts, key=lambda fact: (-_score(fact, n_genes, total), fact.name))
    chosen: dict[str, list[GoFact]] = {aspect: [] for aspect in LIMITS}
    for fact in ranked:
        kept = chosen.get(fact.aspect)
        if kept is None or len(kept) == LIMITS[fact.aspect] or fact.name in _EMPTY or not fact.name:
            continue
        if any(_related(fact.go_id, other.go_id, ancestors) for other in kept):
            continue
        kept.append(fact)
    return chosen


def _score(fact: GoFact, n_genes: Mapping[str, int] | None, total: int) -> float:
    evidence = set(fact.evidence)
    trust = 1.0 if evidence & _EXPERIMENT else 0.9 if evidence & _CURATED else 0.75
    if n_genes is None:
        return trust
    n = max(1, n_genes.get(fact.go_id, 1))
    content = math.log(max(total, n + 1) / n)
    return trust * (content if content <= _IC_CAP else _IC_CAP - 0.5 * (content - _IC_CAP))


def _related(a: str, b: str, ancestors: Mapping[str, frozenset[str]] | None) -> bool:
    if a == b:
        return True
    if ancestors is None:
        return False
    return a in ancestors.get(b, ()) or b in ancestors.get(a, ())


def compose(
    symbol: str,
    species: str,
    gene_type: str = "",
    name: str = "",
    terms: Mapping[str, Sequence[GoFact]] | None = None,
    *,
    max_chars: int = MAX_CHARS,
) -> str:
    """Return a description of a gene in one or two sentences.

    ``"INS (insulin), a protein-coding human gene. It takes part in glucose metabolic process, ...; acts
    through hormone activity; found in extracellular space."`` Terms that do not fit in ``max_chars``
    are dropped, the least informative first.
    """
    head = _head(symbol, name, species, gene_type) + "."
    return head + _facts(terms, max_chars - len(head))


def borrow(
    symbol: str,
    species: str,
    gene_type: str,
    partner: tuple[str, str, str],
    terms: Mapping[str, Sequence[GoFact]] | None = None,
    *,
    name: str = "",
    max_chars: int = MAX_CHARS,
) -> str:
    """Return a description of a gene from the GO terms of its ortholog.

    Parameters
    ----------
    partner
        Species, symbol and name of the ortholog.
    terms
        The ortholog's terms, from :func:`choose`.

    Examples
    --------
    >>> borrow("Ins1", "mouse", "protein-coding", ("human", "INS", "insulin"))
    'Ins1, a protein-coding mouse gene; ortholog of human INS (insulin).'
    """
    other_species, other_symbol, other_name = partner
    other = f"{other_symbol} ({other_name})" if other_name else other_symbol
    head = f"{_head(symbol, name, species, gene_type)}; ortholog of {other_species} {other}"
    return f"{head}.{_facts(terms, max_chars - len(head))}"


def _head(symbol: str, name: str, species: str, gene_type: str) -> str:
    label = f"{symbol} ({name})" if name and name != symbol else symbol
    return f"{label}, {_TYPES.get(gene_type, 'a {} gene').format(species)}"


def _facts(terms: Mapping[str, Sequence[GoFact]] | None, room: int) -> str:
    names = {aspect: [fact.name for fact in facts] for aspect, facts in (terms or {}).items()}
    while True:
        text = _clauses(names)
        if len(text) <= room or not any(names.values()):
            return text
        spare = [a for a in names if len(names[a]) > _KEEP.get(a, 1)] or [a for a in names if names[a]]
        # Of two aspects with equally many surplus terms, the later one is shortened.
        names[max(reversed(spare), key=lambda a: len(names[a]) - _KEEP.get(a, 1))].pop()


def _clauses(names: Mapping[str, Sequence[str]]) -> str:
    parts = []
    if names.get("BP"):
        parts.append("takes part in " + ", ".join(names["BP"]))
    if names.get("MF"):
        short = [n.removesuffix(" activity") if n.count(" ") > 1 else n for n in names["MF"]]
        parts.append("acts through " + ", ".join(short))
    if names.get("CC"):
        parts.append(("is found in " if not parts else "found in ") + ", ".join(names["CC"]))
    return f" It {'; '.join(parts)}." if parts else ""


MAX_NAME = 300
_MAX_LINE = 4_000_000

_MISSING = frozenset(["", "-", "nan", "none", "null", "<na>"])
_LONGEST_MISSING = max(map(len, _MISSING))
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DATE = re.compile(rf"\d{{1,2}}-{_MONTH}|{_MONTH}-\d{{1,2}}|\d{{4}}-\d\d-\d\d(?: 00:00:00)?")


def cell_text(value: Any, limit: int) -> str:
    """Return a table cell as one line of text; empty for missing values (``-``, ``nan``)."""
    if value is None:
        return ""
    if not isinstance(value, str):
        if isinstance(value, list | dict):
            return ""
        value = str(value)
    if not value.isprintable():
        # Line breaks and escape codes would appear in messages, prompts and reports.
        value = "".join(c if c.isprintable() else " " for c in value)
    found: str = value.strip()
    if len(found) <= _LONGEST_MISSING and found.lower() in _MISSING:
        return ""
    return found[:limit]


def cell_items(value: Any, separator: str = "|") -> list[str]:
    """Return the list in a table cell: an array, or text with parts separated by ``separator``."""
    if not value and value != 0:
        return []
    if isinstance(value, str):
        # pandas writes an array as ['A1B' 'ABG'], JSON as ["A1B", "ABG"].
        quoted = value.startswith("[")
        value = [a or b for a, b in _QUOTED.findall(value)] if quoted else value.split(separator)
    elif not isinstance(value, list | tuple):
        value = [value]
    return [t for v in value if (t := cell_text(v, MAX_NAME))]


def entrez_number(value: Any, where: str, column: str = "entrez_id") -> int | None:
    """Return an Entrez id as a number, or None if missing; raise InputError if it is not an Entrez id."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        said = cell_text(value, 40)
        if not said:
            return None
        # Spreadsheets and columns with missing values write 3630 as 3630.0.
        said = said.removesuffix(".0")
        if not (said.isascii() and said.isdigit()):
            what = f"{said!r} is not an Entrez id"
            raise InputError(what, f"{where}, column {column}", "give a whole number", code="damaged-file")
        number = int(said)
    if not 0 < number < 2**53:
        what = f"{number} is not an Entrez id"
        raise InputError(
            what, f"{where}, column {column}", "give a whole number above 0", code="damaged-file"
        )
    return number


def read_lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a table; raise InputError if a line is too long for a gene."""
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
    """Return whether a symbol is a date; spreadsheets change MARCH1 or SEPT2 to 1-Mar or 2024-03-01."""
    return symbol[-1:].isalnum() and _DATE.fullmatch(symbol) is not None


class Skipped:
    """Number of skipped rows by reason, with the first examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str = "") -> None:
        """Add a row."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        shown = self._examples.setdefault(reason, [])
        if example and len(shown) < 3 and example not in shown:
            shown.append(example)

    def notes(self, file: str) -> list[str]:
        """Return one note for each reason."""
        lines = []
        for reason, n in self._counts.items():
            shown = ", ".join(self._examples[reason])
            rows = "1 row" if n == 1 else f"{n:,} rows"
            lines.append(f"{file}: skipped {rows} {reason}{f', such as {shown}' if shown else ''}")
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
# Columns of the two MGI reports without a header line.
_MGI_ENTREZ = (
    "mgi accession id", "marker symbol", "status", "marker name", "cm position", "chromosome", "marker type",
    "secondary accession ids", "entrez gene id", "marker synonyms", "feature type",
)  # fmt: skip
_MGI_ENSEMBL = (
    "mgi accession id", "marker symbol", "marker name", "cm position", "chromosome", "ensembl gene id",
    "ensembl transcript id", "ensembl protein id", "feature type",
)  # fmt: skip
# HGNC's complete set and its "custom download" have different names for the same columns.
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

#: A function from a row and its place in the file to a gene, or to the reason why the row is skipped.
_Row = Callable[[Mapping[str, Any], str], Gene | str]


@dataclass(frozen=True)
class TableFormat:
    """A known format of a table of genes; ``what`` is its name for messages."""

    what: str
    columns: tuple[str, ...]
    header: bool
    row: _Row

    def genes(self, file: TextIO, path: Path, size: int, notes: list[str]) -> Iterator[list[Gene]]:
        """Yield batches of at most ``size`` rows; at the end, add notes about skipped rows to ``notes``.

        Raises
        ------
        InputError
            The table is truncated, has an invalid id, or has no gene of a known species.
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
                skipped.add("whose symbol a spreadsheet changed to a date", found.symbol)
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
                f"this {self.what} has no gene of a known species",
                str(path),
                "give a table of genes",
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
                what = (
                    f"a row has {len(cells)} columns instead of {len(self.columns)}: the table is truncated"
                )
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
                    what = "the JSON is truncated or damaged"
                    raise InputError(
                        what, f"{path}, near {buffer[:40]!r}", "download it again", code="damaged-file"
                    ) from error
                buffer += piece
                continue
            if not isinstance(row, dict):
                raise InputError(
                    "the JSON has entries that are not genes",
                    str(path),
                    "download it again",
                    code="wrong-format",
                )
            buffer = buffer[end:]
            yield row


def recognise(head: str, path: Path) -> TableFormat | None:
    """Return the format of a table from its first lines, or None.

    Raises InputError for a table of NCBI, HGNC or MGI that does not list genes.
    """
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
    what = f"this {who} table does not list genes with their symbols"
    return InputError(what, str(path), f"give {wanted}", code="wrong-format")


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"')
    return cell


# NCBI


def _gene_info(line: str, path: Path) -> TableFormat:
    if line.startswith("#Format:"):  # the header until 2016
        line = line.removeprefix("#Format: ").split(" (tab", 1)[0].replace(" ", "\t")
    names = tuple(line.lstrip("#").split("\t"))
    if not {"GeneID", "Symbol", "Synonyms", "dbXrefs"} <= set(names):
        raise _other("NCBI", path, "gene_info, such as Homo_sapiens.gene_info.gz")
    return TableFormat("NCBI gene_info", names, True, _ncbi)


_STABLE = re.compile(r"ENS[A-Z]*G\d{11}|FBgn\d{7}|WBGene\d{8}")


def authority_id(link: str, species: Species) -> str:
    """Return the id of a species' authority in a database link, in scvec's form; else empty.

    Examples
    --------
    >>> authority_id("HGNC:HGNC:5", "human"), authority_id("FLYBASE:FBgn0000003", "fruit fly")
    ('HGNC:5', 'FB:FBgn0000003')
    """
    known = known_species().get(species)
    if known is None or not known.prefix:
        return ""
    name, _, rest = link.partition(":")
    databases = {known.prefix.rstrip(":").lower(), known.authority.lower()}
    if name.lower() not in databases or id_species(known.prefix + rest.rpartition(":")[2]) != species:
        return ""
    return known.prefix + rest.rpartition(":")[2]


def _ncbi(row: Mapping[str, Any], where: str) -> Gene | str:
    species = species_named(row["tax_id"])
    if species is None:
        return "of unknown species"
    kind = row.get("type_of_gene", "")
    if kind == "biological-region" or row["Symbol"] == "NEWENTRY":
        return "of features that are not genes"
    number = entrez_number(row["GeneID"], where, "GeneID")
    given = cell_text(row["Symbol"], MAX_NAME)
    symbol = cell_text(row.get("Symbol_from_nomenclature_authority"), MAX_NAME) or given
    if not symbol or number is None:
        raise InputError(
            "a gene has no symbol or no id", where, "download the table again", code="damaged-file"
        )
    links = cell_items(row["dbXrefs"])
    # Use the authority of the gene's own species: a human gene may have an MGI id too.
    authority = next((a for link in links if (a := authority_id(link, species))), "")
    aliases = [a for a in (given, *cell_items(row["Synonyms"])) if a != symbol]
    return Gene(
        gene_id=authority or f"entrez:{number}",
        species=species,
        symbol=symbol,
        entrez_id=number,
        name=cell_text(row.get("Full_name_from_nomenclature_authority"), MAX_NAME)
        or cell_text(row.get("description"), MAX_NAME),
        gene_type={"pseudo": "pseudogene", "unknown": ""}.get(kind, cell_text(kind, MAX_NAME)),
        ensembl_ids=_unique(
            stable for link in links if (stable := link.partition(":")[2]) and _STABLE.fullmatch(stable)
        ),
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
    # The complete set separates by |, the custom download by commas. Symbols have neither.
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
        return "of features that are not genes"
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


#: A gene and its descriptions.
GeneRecord = tuple[Gene, list[Description]]

#: Columns that are read; ``symbol`` and either ``entrez_id`` or ``authority_id`` are required.
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

    A ``summary`` becomes a description of kind ``human``. A gene with ``go_terms`` but no summary
    gets a composed one. Lists are arrays in parquet and jsonl, and split by ``|`` in csv; ``-`` and empty
    cells are missing values. Tables of NCBI, HGNC and MGI are recognised by their content; they have
    names but no descriptions.

    Parameters
    ----------
    path
        The file. Its suffix gives the format if its content does not.
    species
        Species of rows without a ``species`` column, ``authority_id`` or Ensembl id; by default the species
        of most rows at the start of the file.
    batch_size
        Rows per batch.
    retrieved_at
        ISO date for the descriptions; today by default.
    notes
        Notes about the format and the skipped rows are added to it at the end.

    Raises
    ------
    InputError
        The file is missing, unreadable or of another format, or has a missing column or an invalid value; the
        message gives the row (the first row of data is row 1).
    """
    path = Path(path)
    species = None if species is None else species_key(species, str(path))
    if not path.is_file():
        raise InputError("the gene file does not exist", str(path), "check the path", code="file-not-found")
    date = retrieved_at or datetime.now(UTC).date().isoformat()
    said: list[str] = [] if notes is None else notes
    try:
        table = _known_table(path)
        if table is None:
            yield from _batches(path, species, batch_size, date, said)
        else:
            with opened(path) as lines:
                for genes in table.genes(lines, path, batch_size, said):
                    yield [(gene, []) for gene in genes]
    except UnicodeDecodeError as err:
        raise InputError(
            "the gene file is not UTF-8 text", f"{path}: {err}", "save it as UTF-8", code="wrong-format"
        ) from err
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise InputError(
            "the gene file is truncated or damaged",
            f"{path}: {err}",
            "download it again",
            code="damaged-file",
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
    # Read in small pieces, so that the start of a truncated file is still usable.
    with suppress(EOFError, zlib.error, gzip.BadGzipFile), opened(path, errors="replace") as file:
        while len(head) < _HEAD and (piece := file.read(_PIECE)):
            head += piece
    return recognise(head, path)


def opened(path: Path, errors: str = "strict") -> TextIO:
    """Open a text file in UTF-8 or UTF-16 (with a byte order mark), plain, gzip, or the only file of a zip.

    Raises
    ------
    InputError
        A zip holds several files.
    """
    with path.open("rb") as raw:
        start = raw.read(4)
    if start == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as packed:
                names = packed.namelist()
                inside = [one for one in names if not one.endswith("/") and "__MACOSX" not in one]
                file: Any = packed.open(inside[0]) if len(inside) == 1 else None
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as err:
            what, fix = "the zip cannot be unpacked", "unpack it, and give the file in it"
            raise InputError(what, f"{path}: {err}", fix, code="damaged-file") from err
        if file is None:
            what, fix = f"the zip holds {len(inside)} files", "unpack it, and give one of them"
            raise InputError(what, str(path), fix, code="wrong-format")
    elif start[:2] == b"\x1f\x8b":
        file = gzip.GzipFile(path)
    else:
        file = path.open("rb")
    # Excel calls this "Unicode text".
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


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
                skipped.add("whose symbol a spreadsheet changed to a date", gene.symbol)
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
        raise InputError("unknown format of a gene file", str(path), fix, code="wrong-format")
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
                "write one object per line",
                code="wrong-format",
            ) from err
        if not isinstance(row, dict):
            raise InputError(
                "this line is not a JSON object",
                f"{path}, line {number}",
                "write one object per line",
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
                    f"a row has {len(cells)} columns, but the header has {len(header)}",
                    f"{path}, row {number}",
                    "quote values that contain the separator",
                    code="damaged-file",
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as err:
        raise InputError(
            f"the csv cannot be read: {err}",
            f"{path}, line {reader.line_num}",
            "quote the values of this line",
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
    if authority and id_species(authority) is None:
        raise InputError(
            f"{authority!r} is not an authority id",
            f"{where}, column authority_id",
            "give an id such as HGNC:n, MGI:n, RGD:n or ZFIN:ZDB-GENE-n",
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
        return species_key(said, f"{where}, column species")
    return next((found for one in (authority, *ensembl) if one and (found := id_species(one))), None)


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
            "give --species, or add a column species",
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
    """Return the RefSeq part of the column ``source``, else the whole column, else the name of the file."""
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
    """Compose texts for genes with terms and no summary; term frequencies are counted in the batch."""
    n_genes = Counter(chain.from_iterable({f.go_id for f in own} for own in facts.values()))
    for i, own in facts.items():
        gene, texts = batch[i]
        text = compose(gene.symbol, gene.species, gene.gene_type, gene.name, choose(own, n_genes, len(facts)))
        texts.append(Description(gene.gene_id, text, "composed-from-file", path.name, date, "composed"))

"""Marker genes of cell types: tables as people publish them, and published lists of groups."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scvec.base.errors import InputError
from scvec.base.records import Marker
from scvec.base.species import SPECIES, species_named
from scvec.celltypes.terms import TermMatcher

__all__ = ["COLUMNS", "MarkerFile", "MarkerList", "read_marker_lists", "read_markers"]

#: Columns of a table, and the names that published tables give them (CellMarker 2.0, PanglaoDB, ScType,
#: HuBMAP ASCT+B, CellMarkerAccordion and plain tables), folded: letters and digits only, small.
COLUMNS: dict[str, tuple[str, ...]] = {
    "gene": ("gene", "marker", "symbol", "officialgenesymbol", "genesymbol", "genesymbolmore1", "genes",
             "markers", "cellmarker", "genename", "bgene1label"),
    "cell_type": ("celltype", "cellname", "clcelltype", "cellontologyname", "label", "name", "type"),
    "cl_id": ("clid", "cellontologyid", "cellontologyterm", "ctid", "cl"),
    "tissue": ("tissue", "uberontissue", "organ", "tissuetype", "tissueclass"),
    "species": ("species", "organism"),
    "direction": ("direction", "markertype", "sign"),
    "weight": ("weight", "score"),
    "source": ("source", "resource", "database"),
    "negative": ("genesymbolmore2",),
}  # fmt: skip
#: Columns of marker lists, and the names that papers and programs (scanpy, Seurat) give them, folded.
LIST_COLUMNS: dict[str, tuple[str, ...]] = {
    "group": ("group", "cluster", "clusters", "clusterid", *COLUMNS["cell_type"]),
    "genes": ("genes", "gene", *COLUMNS["gene"], "symbols", "markergenes", "topgenes", "names", "features"),
    "tissue": COLUMNS["tissue"],
    "species": COLUMNS["species"],
    "change": ("avglog2fc", "avglogfc", "logfoldchanges", "log2foldchange", "log2fc", "logfc"),
}  # fmt: skip
#: Bounds on a table, before it is read whole.
MAX_BYTES, MAX_LINE = 200 << 20, 1 << 20
_CL = re.compile(r"CL[:_](\d{7})")
#: What tables of markers call species beside their names.
_SHORT = {
    "h": "human", "m": "mouse", "homosapiens": "human", "musmusculus": "mouse", "murine": "mouse",
    "hg19": "human", "hg38": "human", "grch38": "human", "mm10": "mouse", "mm39": "mouse", "grcm38": "mouse",
}  # fmt: skip
_NOT_SAID = frozenset({"", "-", "auto", "n/a", "na", "nan", "none", "unknown"})
_GENE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,39}")
#: What papers write behind a gene: CD19+, CD3-, CD14hi, CD45RAlow.
_SIGN = re.compile(r"(\+{1,3}|(?<=[A-Z0-9])-?(?:pos|hi|high|int|bright))$")
_ABSENT = re.compile(r"(-|(?<=[A-Z0-9])-?(?:neg|lo|low|dim))$")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f]")
#: Letters and signs of word processors, as programs write them; those that cannot be seen are left out.
_PLAIN = str.maketrans(
    "\u03b1\u03b2\u03b3\u03b4\u03b5\u03ba\u03b6\u2010\u2011\u2012\u2013\u2014\u2212\uff0c\u3001\uff1b\uff1a\uff08\uff09\u2022\u00b7",
    "abgdekz------,,;:()  ",
    "\u200b\u200c\u200d\u2060\ufeff\u00ad*",
)
#: The score behind a gene: CD3D:5.2, CD3D = 5.2, CD3D (5.2).
_SCORE = re.compile(r"(?<=[A-Za-z0-9])\s?(?:[:=]\s?|\()-?\d+(?:\.\d+)?(?:e-?\d+)?\)?(?![\w-])")
#: Words between genes.
_BETWEEN = frozenset({"and", "or", "plus"})


@dataclass(frozen=True)
class MarkerFile:
    """What a table of markers holds.

    Attributes
    ----------
    columns
        What each column of the table was taken for.
    unmapped
        Names of cell types that stand for no term of the Cell Ontology, with their rows.
    """

    markers: list[Marker]
    columns: dict[str, str]
    unmapped: dict[str, int] = field(default_factory=dict)


def read_markers(
    path: Path, matcher: TermMatcher, *, columns: Mapping[str, str] | None = None, species: str = SPECIES[0]
) -> MarkerFile:
    """Read a table of markers, or a GMT file of gene sets named by cell types.

    Parameters
    ----------
    columns
        What columns mean, where their names do not say it: ``{"gene": "Symbol"}``.
    species
        Of rows that name none.

    Raises
    ------
    InputError
        The file cannot be read, or has no columns of genes and cell types.
    """
    text = _text(path)
    if path.name.lower().removesuffix(".gz").endswith(".gmt"):
        return _gmt(text, path, matcher, species)
    rows = _table(text, path)
    header = next(rows, None)
    found = _columns(header or [], columns or {}, path)
    markers: dict[Marker, None] = {}
    unmapped: dict[str, int] = {}
    names: dict[tuple[str, str], str] = {}
    for row in rows:
        cells = {what: row[at].strip() for what, at in found.items() if at < len(row)}
        tissue = cells.get("tissue", "").lower()
        cl_id = _term(cells, tissue, matcher, names)
        if not cl_id:
            name = cells.get("cell_type") or cells.get("cl_id") or ""
            unmapped[name[:80]] = unmapped.get(name[:80], 0) + 1
            continue
        said = cells.get("direction", "").lower()
        for what, sign in (("gene", "positive"), ("negative", "negative")):
            down = "negative" if sign == "negative" or said.startswith(("neg", "-")) else "positive"
            for gene in _genes(cells.get(what, "")):
                for kind in _kinds(cells.get("species", ""), species):
                    weight = _weight(cells.get("weight", ""))
                    source = cells.get("source") or path.name
                    markers[Marker(cl_id, tissue, kind, gene, down, weight, source[:60])] = None
    named = {what: (header or [])[at] for what, at in found.items()}
    return MarkerFile(list(markers), named, unmapped)


class MarkerList(NamedTuple):
    """A published list: genes in order; tissue and species are empty where not given.

    ``species`` stands as written where no species is called so. ``absent`` are genes with a minus: CD3-.
    """

    group: str
    genes: list[str]
    tissue: str = ""
    species: str = ""
    absent: tuple[str, ...] = ()


def read_marker_lists(path: Path) -> list[MarkerList]:
    """Read published marker lists: rows of ``group, genes`` and, optional, ``tissue, species``.

    A table with one gene in each row, such as the markers of scanpy or Seurat, gives one list for each group;
    its genes that are lower in the group are left out.
    """
    rows = _table(_text(path), path, strict=True)
    header = [_folded(name) for name in next(rows, [])]
    at: dict[str, int] = {}
    for what, names in LIST_COLUMNS.items():
        for name in names:
            if name in header and header.index(name) not in at.values():
                at[what] = header.index(name)
                break
    if "group" not in at or "genes" not in at:
        raise InputError(
            "the table has no columns group and genes",
            str(path),
            "its first line names the columns: group,genes,tissue,species",
            code="unknown-column",
        )
    lists = []
    for row in rows:
        more = len(row) - len(header)
        if more > 0 and re.fullmatch(r"\S+", row[at["genes"]].strip()):  # commas between genes, unquoted
            first, stop = at["genes"], at["genes"] + more + 1
            row = [*row[:first], " ".join(row[first:stop]), *row[stop:]]
        cells = {name: row[i].strip() if i < len(row) else "" for name, i in at.items()}
        if not any(cells.values()) or cells.get("change", "").startswith("-"):
            continue
        said = cells.get("species", "")
        kinds = _kinds(said, "" if said.lower() in _NOT_SAID else said)
        genes = list(dict.fromkeys(_genes(cells["genes"])))
        absent = tuple(dict.fromkeys(_genes(cells["genes"], absent=True)))
        kind = kinds[0] if kinds else ""
        lists.append(MarkerList(cells["group"], genes, cells.get("tissue", ""), kind, absent))
    if not lists:
        raise InputError("the table has no groups", str(path), "give a line for each group")
    return _joined(lists)


def _joined(lists: list[MarkerList]) -> list[MarkerList]:
    """Return one list for each group, if each has one gene in a row; else the lists as they are."""
    by: dict[tuple[str, str, str], list[MarkerList]] = {}
    for each in lists:
        by.setdefault((each.group, each.tissue, each.species), []).append(each)
    if len(by) == len(lists) or any(len(each.genes) + len(each.absent) > 1 for each in lists):
        return lists
    return [
        MarkerList(
            group,
            list(dict.fromkeys(g for each in rows for g in each.genes)),
            tissue,
            species,
            tuple(dict.fromkeys(g for each in rows for g in each.absent)),
        )
        for (group, tissue, species), rows in by.items()
    ]


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as raw:
            head = raw.read(2)
        with gzip.open(path) if head == b"\x1f\x8b" else open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"the table cannot be read ({reason})", str(path), "check the path", code="damaged-file"
        ) from error
    if len(data) > MAX_BYTES:
        raise InputError("the table is larger than 200 MB", str(path), "split it", code="wrong-format")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # what Excel calls Unicode text
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise InputError("the file is not a text", str(path), "give csv or tsv", code="wrong-format")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _table(text: str, path: Path, strict: bool = False) -> Iterator[list[str]]:
    """Yield the rows of a table; ``strict`` refuses a quote that does not end, which would hide rows."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    # Comments, and the first line of Excel, which may say what separates: sep=;
    text = re.sub(r"\A(?:##?\s[^\n]*\n+)*(?:\"?sep=.\"?\n)?", "", text)
    first = text.split("\n", 1)[0]
    separator = max(("\t", ",", ";", "|"), key=first.count)
    try:
        yield from csv.reader(io.StringIO(text), delimiter=separator, strict=strict)
    except csv.Error as error:
        raise InputError(
            f"the table cannot be read: {error}", str(path), "save it as csv again", code="damaged-file"
        ) from error


def _columns(header: Sequence[str], given: Mapping[str, str], path: Path) -> dict[str, int]:
    """Return what -> number of the column."""
    folded = [_folded(name) for name in header]
    found: dict[str, int] = {}
    for what, names in COLUMNS.items():
        if what in given:
            if given[what] not in header:
                raise InputError(
                    f"the table has no column {given[what]!r}",
                    str(path),
                    f"it has: {', '.join(header[:12])}",
                    code="unknown-column",
                )
            found[what] = list(header).index(given[what])
            continue
        for name in names:
            if name in folded and folded.index(name) not in found.values():
                found[what] = folded.index(name)
                break
    if "gene" not in found or not {"cell_type", "cl_id"} & set(found):
        raise InputError(
            "no columns of genes and cell types were found",
            f"{path}: {', '.join(header[:12])}",
            "name them: --column gene=NAME --column cell_type=NAME",
            code="unknown-column",
        )
    return found


def _term(
    cells: Mapping[str, str], tissue: str, matcher: TermMatcher, names: dict[tuple[str, str], str]
) -> str:
    if match := _CL.search(cells.get("cl_id", "")):
        cl_id = f"CL:{match[1]}"
        return cl_id if cl_id in matcher.label_of else ""
    name = cells.get("cell_type", "")
    if (name, tissue) not in names:
        names[name, tissue] = matcher.match_all([name], [tissue])[name].cl_id if name else ""
    return names[name, tissue]


def _gmt(text: str, path: Path, matcher: TermMatcher, species: str) -> MarkerFile:
    markers: dict[Marker, None] = {}
    unmapped: dict[str, int] = {}
    for line in text.splitlines():
        name, *rest = line.split("\t")
        spoken = re.sub(r"[_.]+", " ", name).strip()
        cl_id = matcher.match_all([spoken], [])[spoken].cl_id if spoken else ""
        if not cl_id and spoken:
            unmapped[spoken[:80]] = unmapped.get(spoken[:80], 0) + 1
            continue
        for gene in rest[1:]:
            if cl_id and _GENE.fullmatch(gene.strip()):
                markers[Marker(cl_id, "", species, gene.strip(), source=path.name[:60])] = None
    if not markers:
        raise InputError("no gene set is named as a cell type", str(path), "check its first column")
    return MarkerFile(list(markers), {"cell_type": "name of the set", "gene": "its genes"}, unmapped)


def _genes(text: str, absent: bool = False) -> list[str]:
    """Return the genes of a cell of a table without their signs; or, with ``absent``, those with a minus."""
    plain = _SCORE.sub(" ", _CONTROL.sub("", text).translate(_PLAIN))
    plain = re.sub(r"\+(?=[A-Za-z])", "+ ", re.sub(r"['\"()\[\]{}]", "", plain))  # CD4+CD25+
    said = [word for word in re.split(r"[,;|&\s]+", plain) if word.lower() not in _BETWEEN]
    found = [_ABSENT.sub("", g) for g in said if bool(_ABSENT.search(g)) == absent]
    return [g for g in (_SIGN.sub("", g) for g in found) if _GENE.fullmatch(g)]


def _kinds(text: str, default: str) -> list[str]:
    """Return the species that a cell of a table names; PanglaoDB writes "Mm Hs"."""
    words = [_SHORT.get(word) or species_named(word) for word in re.split(r"[\s,;|/]+", text.lower())]
    whole = species_named(text) or species_named(_folded(text))
    found = [whole] if whole else list(dict.fromkeys(w for w in words if w))
    return [f for f in found if f] or ([default] if default else [])


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 1.0
    return value if 0 < value < 1e6 else 1.0


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

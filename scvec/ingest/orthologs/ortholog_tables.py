"""Read genes and orthologs from tables of BioMart, NCBI, Alliance, HCOP, RGD and others; detect columns.

A table has sides; a side is the set of columns with the names of one gene of a pair. The species of a side
comes from its header (``human_symbol``), a column of taxon ids, the form of its ids, or the user.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from pathlib import Path

from scvec.base.errors import InputError
from scvec.base.species import id_species, known_species, species_named
from scvec.base.types import Gene
from scvec.ingest.genes import MAX_NAME, cell_text, is_date, opened, read_lines

__all__ = ["Names", "OrthologTable", "Pair", "gene_of", "is_ortholog_table", "read_ortholog_table"]

#: Rows that are read to detect the columns.
N_PROBED = 2000
#: Fraction of the values of a column that must be of one kind.
MOST = 0.6
#: A pair is kept if its score is at least this fraction of the best score of one of its genes.
NEAR_BEST = 0.5
#: Kinds of gene names in a column, the most reliable first.
KINDS = ("authority", "ensembl", "entrez", "symbol", "name", "synonym")
_IDS = ("authority", "ensembl", "entrez", "symbol")

#: The names of a gene in a table: kind of name -> name. ``synonym`` may hold several, separated by |.
Names = dict[str, str]


@dataclass
class Side:
    """The columns with the names of one gene of a pair.

    Attributes
    ----------
    columns
        Kind of name -> number of the column.
    taxon
        Number of the column with the species of each row; None if all rows are of ``species``.
    """

    species: str = ""
    columns: dict[str, int] = field(default_factory=dict)
    taxon: int | None = None

    def names(self, row: Sequence[str]) -> tuple[str, Names]:
        """Return the species of a row, and the names of its gene."""
        species = self.species
        if self.taxon is not None:
            species = species_named(_cell(row, self.taxon)) or ""
        found = {kind: _cell(row, at) for kind, at in self.columns.items()}
        return species, {kind: name for kind, name in found.items() if name}


@dataclass(frozen=True)
class Pair:
    """Two orthologous genes.

    Attributes
    ----------
    species, names, other_species, other
        The two genes.
    kind
        ``one2one``, ``one2many`` or ``many2many``, or empty if the table does not give it.
    score
        Confidence on the table's own scale; None if the table has no score.
    """

    species: str
    names: Names
    other_species: str
    other: Names
    kind: str = ""
    score: float | None = None


@dataclass
class OrthologTable:
    """The genes and pairs of a table.

    Attributes
    ----------
    columns
        Header of each column used -> its detected meaning.
    genes
        Genes of the requested species.
    pairs
        Pairs with at least one gene of these species.
    """

    columns: dict[str, str]
    genes: list[Gene] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_ortholog_table(
    path: Path,
    species: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    known: Callable[[Sequence[str]], str] | None = None,
) -> OrthologTable:
    """Read the genes and orthologs of some species.

    Parameters
    ----------
    species
        Keys of the requested species.
    columns
        Species -> header (or number from 1) of the column with its genes, to correct a wrong detection;
        also ``kind`` and ``score``.
    known
        Function that returns the species with most of the given names, or empty; for columns of symbols.

    Raises
    ------
    InputError
        The file cannot be read, or no column has genes of these species.
    """
    try:
        with opened(path) as file:
            lines = (line for line in read_lines(file, path) if line.strip())
            start = list(islice(lines, N_PROBED))
            if any(line.rstrip("\r\n") == "=" for line in start):
                return _wormbase(chain(start, lines), species)
            header, rows = _rows(chain(start, lines), start, path)
            probe = list(islice(rows, N_PROBED))
            sides, extra = _sides(header, probe, species, columns or {}, known, path)
            return _read(header, sides, extra, chain(probe, rows), species, path)
    except UnicodeDecodeError as err:
        what = "the table is not UTF-8 text"
        raise InputError(what, f"{path}: {err}", "save it as UTF-8", code="wrong-format") from err
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error, OSError) as err:
        what = "the table is truncated or damaged"
        raise InputError(what, f"{path}: {err}", "download it again", code="damaged-file") from err


def _cell(row: Sequence[str], at: int) -> str:
    return cell_text(row[at], MAX_NAME) if at < len(row) else ""


def _rows(lines: Iterable[str], start: Sequence[str], path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Return the header of a table (empty if it has none) and its rows. Comments begin with #."""
    comments = 0
    while comments < len(start) and start[comments].startswith("#"):
        comments += 1
    body = start[comments:]
    if not body:
        raise InputError(
            "the table has no rows", str(path), "give one pair of genes per row", code="empty-file"
        )
    if _whole(body[-1]):  # a spreadsheet put each row into one cell, in quotes
        lines, body = (_whole(line) or line for line in lines), [_whole(line) or line for line in body]
    if body[0].startswith("Date:"):  # of ZFIN
        comments, body = comments + 1, body[1:] or body
    mark = next((mark for mark in "\t,;" if mark in body[0]), "\t")
    # Of NCBI and FlyBase the header is the last comment.
    head = start[comments - 1].lstrip("#").strip("\r\n ") if comments else ""
    skipped: Iterable[str] = islice(lines, comments, None)
    if mark not in body[0] and len({len(line.split()) for line in body}) == 1:
        skipped = ("\t".join(line.split()) for line in skipped)
    rows = (row for row in csv.reader(skipped, delimiter=mark) if any(row))
    if head.count(mark) and head.count(mark) >= body[0].count(mark) - 2:
        return [cell.strip() for cell in next(csv.reader([head], delimiter=mark))], rows
    first = next(rows)
    if _PANTHER.match(first[0]):
        return list(_PANTHER_HEADER), (_panther(row) for row in chain([first], rows))
    if _is_header(first):
        return [cell.strip().lstrip("#") for cell in first], rows
    return [], chain([first], rows)


def _whole(line: str) -> str:
    """Return the row that a line holds in the quotes of its only cell; empty for other lines."""
    cells = next(csv.reader([line]), [])
    return cells[0] if len(cells) == 1 and line.startswith('"') and re.search("[\t,;]", cells[0]) else ""


def _is_header(cells: Sequence[str]) -> bool:
    """Return whether the first row of a table names its columns: with words, or with two species."""
    if _is_protein(cells) or any(id_species(cell.strip()) is not None for cell in cells):
        return False
    if any(cell.strip().isdigit() for cell in cells):
        return len({species_named(cell) for cell in cells} - {None}) > 1
    return any(_role(cell)[1] for cell in cells) or not any(map(_looks_like_gene, cells))


#: A gene of PANTHER: HUMAN|HGNC=6081|UniProtKB=P01308, of a species as UniProt abbreviates it.
_PANTHER = re.compile(r"(\w{3,5})\|(\w+)=([^|]+)")
_PANTHER_HEADER = ("taxon id 1", "gene id 1", "taxon id 2", "gene id 2")
#: As UniProt writes species: three letters of the genus and two of the species, or a word.
_UNIPROT = {
    "HUMAN": "human",
    "MOUSE": "mouse",
    "RAT": "rat",
    "CHICK": "chicken",
    "BOVIN": "cow",
    "PIG": "pig",
}


def _panther(row: Sequence[str]) -> list[str]:
    """Return the taxon and the gene of both sides of a row of PANTHER; empty if they are missing."""
    found: list[str] = []
    for cell in row[:2]:
        match = _PANTHER.match(cell)
        code, _, name = match.groups() if match else ("", "", "")
        key = _UNIPROT.get(code) or next(
            (
                one.key
                for one in known_species().values()
                if (words := one.scientific.upper().split()) and code == words[0][:3] + words[1][:2]
            ),
            "",
        )
        one = known_species().get(key)
        prefix = one.prefix if one is not None and "Ensembl" not in cell else ""
        found += [key, prefix + name.rpartition("=")[2].rpartition(":")[2]]
    return found


def _looks_like_gene(cell: str) -> bool:
    return id_species(cell.strip()) is not None or bool(
        re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*\d\w*", cell.strip())
    )


# Headers

_SCORES = ("diopt score", "algorithms match", "support", "score", "confidence", "orthology confidence")
_TAXA = re.compile(
    r"tax(on)? ?id|^((ortholog|query|target|source|other) )?(species|organism)( ?[12ab])?( name)?$"
)
#: Ends of two headers that differ only in the side: gene_1, Gene A.
_NUMBERED = re.compile(r"(?<=[a-z])(?: ?[12]| [ab])$")
#: Ids of proteins and of their groups: of Ensembl (and eggNOG), OrthoDB, UniProt.
_PROTEIN = re.compile(
    r"(\d+\.)?ENS[A-Z]*P\d{11}.*|\d+_\d+:[0-9a-f]{6}|[OPQ]\d[A-Z0-9]{3}\d|[A-NR-Z]\d([A-Z][A-Z0-9]{2}\d){1,2}"
)
_NOT_NAMES = re.compile(
    r"omim|chr|assert|location|strand|coordinates|position|phenotype|refseq|protein|transcript|swiss|uniprot|"
    r"paralog|pub id|species name|organism name|source|version|ancestor|conservation|coverage|identical|"
    r"evidence|start|end \(bp\)"
)


def _plain(header: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", header.strip().lstrip("#"))
    plain = " ".join(re.sub(r"[_\s]+", " ", words).lower().split())
    return re.sub(r"\b(fly|worm|pom) base\b", r"\1base", plain)


def _role(header: str) -> tuple[str, str]:
    """Return the side of a header, and the kind of names, or both empty.

    A side is the key of a species, or ``1`` or ``2`` for the first or second gene of a row.
    """
    plain = _plain(header)
    if not plain or re.search(r"homology type|orthology type|relationship", plain):
        return ("", "type") if plain else ("", "")
    score = re.sub(r"\[.*", "", plain).strip()
    if score.endswith(_SCORES) and "best" not in score:
        return "", "score"
    side = _side_of(plain)
    if side in ("1", "2"):
        plain = _NUMBERED.sub("", plain)
    if _TAXA.search(plain):
        return side or "1", "taxon"
    if _NOT_NAMES.search(plain):
        return "", ""
    authority = next((k for k, one in known_species().items() if _authority(one.authority, plain)), "")
    if authority and side in ("", "1", "2", authority):
        kind = "symbol" if "symbol" in plain else "name" if plain.endswith("name") else "authority"
        return authority, kind
    if authority:  # an authority's ids of genes of another species
        return "", ""
    for pattern, kind in (
        (r"symbol|gene name$|external gene name|locus$|associated gene name", "symbol"),
        (r"ensembl|stable id|fbgn|wbgene", "ensembl"),
        (r"entrez|ncbi gene|gene ?[12]? ?id$", "entrez"),
        (r"synonym|alias|old symbol|previous", "synonym"),
        (r"name$|description", "name"),
        (r"^gene$|gene$", "symbol"),
    ):
        if re.search(pattern, plain):
            return side or "1", kind
    return (side, "symbol") if side not in ("", "1", "2") and species_named(plain) else ("", "")


def _authority(authority: str, plain: str) -> bool:
    return authority not in ("Ensembl",) and re.search(rf"\b{authority.lower()}\b", plain) is not None


def _side_of(plain: str) -> str:
    found = re.match(r"gene ?([12])", plain)
    if found:
        return found[1]
    if plain.startswith(("other ", "ortholog species", "ortholog ", "target ", "homolog ")):
        return "2"
    words = plain.split()
    for n in (3, 2, 1):
        key = species_named(" ".join(words[:n]))
        if key is not None and n <= len(words):
            return key
    end = _NUMBERED.search(plain)
    return "2" if end and end[0].strip() in "2b" else "1" if end or words[0] in ("query", "source") else ""


def _sides(
    header: list[str],
    probe: list[list[str]],
    species: Sequence[str],
    given: Mapping[str, str],
    known: Callable[[Sequence[str]], str] | None,
    path: Path,
) -> tuple[list[Side], dict[str, int]]:
    """Return the sides of a table, the first gene of the rows first, and the columns of kind and score."""
    sides: dict[str, Side] = defaultdict(Side)
    extra: dict[str, int] = {}
    if given:
        for what, name in given.items():
            at = _column(name, header, probe, path)
            if what in ("kind", "score"):
                extra["type" if what == "kind" else what] = at
            else:
                sides[what].columns[_kind_of(probe, at)] = at
    else:
        for at, name in enumerate(header):
            side, kind = _role(name)
            if kind in ("type", "score"):
                extra.setdefault(kind, at)
            elif kind == "taxon":
                if sides[side].taxon is None or _is_taxon(probe, at):
                    sides[side].taxon = at
            elif kind:
                sides[side].columns.setdefault(kind, at)
        named = [side for side in sides.values() if set(side.columns) & set(_IDS)]
        grouped = len(named) == 1 and named[0].taxon is not None and _group(probe, named[0].taxon) is not None
        if len(named) < 2 and not grouped and not _is_listed(header):
            used = {at for side in sides.values() for at in side.columns.values()} | set(extra.values())
            width = range(max((len(row) for row in probe), default=0))
            taxa = [at for at in width if _is_taxon(probe, at)] if not header else []
            if len(taxa) == 1 and (group := _group(probe, taxa[0])) is not None:
                sides["1"].taxon = taxa[0]
                used |= {taxa[0], group}
            for at in width:
                if at not in used and _distinct(probe, at) and (kind := _kind_of(probe, at)) != "name":
                    to = sides["1"] if sides["1"].taxon is not None else sides[f"column {at}"]
                    to.columns.setdefault(kind, at)
    for key, one in sides.items():
        if one.taxon is None:
            one.species = key if species_named(key) == key else _species_of(one, probe, known)
        _settle(one, probe)
    found = _merged([side for side in sides.values() if set(side.columns) & set(_IDS)])
    unknown = [side for side in found if not side.species and side.taxon is None]
    missing = [s for s in species if all(side.species != s for side in found)]
    if len(unknown) == len(missing) == 1 and (header or len(found) > 1):
        unknown[0].species = missing[0]
    found = [side for side in found if side.species or side.taxon is not None]
    if not any(side.taxon is not None or side.species in species for side in found):
        listed = ", ".join(header[:8]) or "none"
        proteins = any(map(_is_protein, probe))
        raise InputError(
            f"no column names genes of {' or '.join(species)}" + (", only proteins" if proteins else ""),
            f"{path}, columns: {listed}",
            "give a table of gene ids or symbols, as BioMart, HCOP or the Alliance export it"
            if proteins
            else "say which columns they are: --column SPECIES=NAME (or its number), once for each species",
            code="wrong-format",
        )
    return found, extra


def _is_protein(row: Sequence[str]) -> bool:
    return any(_PROTEIN.fullmatch(cell.strip()) for cell in row)


def _is_taxon(probe: Sequence[Sequence[str]], at: int) -> bool:
    """Return whether most cells of a column name a species, and not all the same."""
    values = _values(probe, at)
    keys = [key for value in values if (key := species_named(value)) is not None]
    return len(keys) > MOST * len(values) and len(set(keys)) > 1


def _group(probe: Sequence[Sequence[str]], taxon: int) -> int | None:
    """Return the column with genes of several species in one value; None if no column has them."""
    best: tuple[int, int] | None = None
    for at in range(max((len(row) for row in probe), default=0)):
        members: dict[str, set[str]] = defaultdict(set)
        for row in probe:
            members[_cell(row, at)].add(_cell(row, taxon))
        shared = sum(len(some) > 1 for value, some in members.items() if value)
        few = len(members) < len(probe) / 20  # kinds of genes, not groups
        if at != taxon and not few and shared >= MOST * len(members) and shared > (best[0] if best else 0):
            best = shared, at
    return None if best is None else best[1]


def _merged(sides: Sequence[Side]) -> list[Side]:
    """Return the sides; columns with other names of the genes of one species are joined."""
    found: list[Side] = []
    for side in sides:
        same = [one for one in found if side.species and one.species == side.species and one.taxon is None]
        if same and side.taxon is None and not set(same[0].columns) & set(side.columns):
            same[0].columns |= side.columns
        else:
            found.append(side)
    return found


def _is_listed(header: Sequence[str]) -> bool:
    """Return whether a table is a list of genes of BioMart, RGD or ZFIN, perhaps of one species only."""
    return bool({_plain(name) for name in header} & {"gene stable id", "gene rgd id", "zfin id"})


def _column(name: str, header: Sequence[str], probe: Sequence[Sequence[str]], path: Path) -> int:
    if name in header:
        return header.index(name)
    if name.isdigit() and 0 < int(name) <= max(map(len, probe), default=0):
        return int(name) - 1
    what = f"the table has no column {name!r}"
    raise InputError(
        what, str(path), f"it has: {', '.join(header[:12]) or 'no header'}", code="unknown-column"
    )


def _values(probe: Sequence[Sequence[str]], at: int) -> list[str]:
    return [value for row in probe if (value := _cell(row, at))]


def _distinct(probe: Sequence[Sequence[str]], at: int) -> bool:
    values = _values(probe, at)
    return len(set(values)) > max(1, 0.3 * len(values))


def _kind_of(probe: Sequence[Sequence[str]], at: int) -> str:
    """Return the kind of names in a column."""
    values = _values(probe, at)
    for kind, pattern in (
        ("ensembl", r"(ENS[A-Z]*G\d{11}|FBgn\d{7}|WBGene\d{8})(\.\d+)?"),
        ("authority", r"[A-Za-z]+:\S+|ZDB-[A-Z]+-\d+-\d+"),
        ("entrez", r"\d+"),
        ("name", _PROTEIN),
        ("symbol", r"\S{1,40}"),
    ):
        if sum(re.fullmatch(pattern, v) is not None for v in values) >= MOST * max(1, len(values)):
            return kind
    return "name"


def _species_of(
    side: Side, probe: Sequence[Sequence[str]], known: Callable[[Sequence[str]], str] | None
) -> str:
    """Return the species of a side from the form of its ids, else from its symbols; else empty."""
    for kind in ("ensembl", "authority"):
        if kind in side.columns:
            found = Counter(filter(None, (id_species(v) for v in _values(probe, side.columns[kind]))))
            if found:
                return found.most_common(1)[0][0]
    asked = next((side.columns[kind] for kind in ("symbol", "entrez") if kind in side.columns), None)
    return known(_values(probe, asked)) if known is not None and asked is not None else ""


def _settle(side: Side, probe: Sequence[Sequence[str]]) -> None:
    """Set the kind of a side's id columns from their values: a column ``Gene1ID`` may hold authority ids."""
    for kind in ("entrez", "ensembl", "authority"):
        at = side.columns.get(kind)
        if at is None:
            continue
        actual = _kind_of(probe, at)
        if actual in ("symbol", "name"):
            # Of a few rows all may be missing; a column of other things is none of ids.
            if values := _values(probe, at):
                del side.columns[kind]
                if (kind, actual) == ("entrez", "symbol") and not _is_protein(values[:1]):
                    side.columns.setdefault(actual, at)
        elif actual != kind and not (kind == "authority" and actual == "entrez"):
            del side.columns[kind]
            side.columns.setdefault(actual, at)


# Rows


def _read(
    header: Sequence[str],
    sides: Sequence[Side],
    extra: Mapping[str, int],
    rows: Iterable[Sequence[str]],
    species: Sequence[str],
    path: Path,
) -> OrthologTable:
    wanted = set(species)
    found = OrthologTable(_shown(header, sides, extra))
    genes: dict[tuple[str, str], Gene] = {}
    best = {
        at
        for at, name in enumerate(header)
        if _plain(name).replace(" ", "") in ("isbestscore", "isbestrevscore")
    }
    plain = [_plain(name) for name in header]
    group = next((at for at, name in enumerate(plain) if name in ("db class key", "homologene id")), None)
    rows = iter(rows)
    if group is None and len(sides) == 1 and sides[0].taxon is not None:
        probe = list(islice(rows, N_PROBED))
        group, rows = _group(probe, sides[0].taxon), chain(probe, rows)
    members: dict[str, list[tuple[str, Names]]] = defaultdict(list)
    dates = 0
    for row in rows:
        named: list[tuple[str, Names]] = []
        for key, names in (side.names(row) for side in sides):
            same = (
                next((there for other, there in named if other == key), None) if group is not None else None
            )
            if same is not None:
                same |= names
            elif key and set(names) & set(_IDS):
                named.append((key, names))
        if group is not None:
            named = named[:1]  # a row of a homology class is one gene: other columns are its other ids
        for key, names in named:
            if key in wanted and set(names) & {"authority", "ensembl", "symbol"}:
                if is_date(names.get("symbol", "")):
                    dates += 1
                else:
                    _add_gene(genes, key, names)
        if group is not None:
            if named:
                members[_cell(row, group)].append(named[0])
            continue
        if best and not any(_cell(row, at).lower().startswith("yes") for at in best):
            continue
        kind, score = _kind(_cell(row, extra["type"])) if "type" in extra else "", _score(row, extra)
        found.pairs += _paired(named, wanted, kind, score)
    for some in members.values():
        for a, b in combinations(some, 2):
            found.pairs += _paired([a, b], wanted, "", None)
    found.genes = list(genes.values())
    # Ensembl's confidence is yes or no; only numbers of sources are compared.
    if "score" in extra and "confidence" not in _plain(_header(header, extra["score"])):
        found.pairs = _near_best(found.pairs)
    if dates:
        found.notes.append(f"{path.name}: skipped {dates:,} symbols that a spreadsheet changed to dates")
    if not found.genes and not found.pairs:
        what = f"the table has no gene of {' or '.join(species)}"
        raise InputError(what, str(path), "give --species, and check --column", code="wrong-format")
    return found


def _shown(header: Sequence[str], sides: Sequence[Side], extra: Mapping[str, int]) -> dict[str, str]:
    shown = {}
    for side in sides:
        of = side.species or "the species of the row"
        if side.taxon is not None:
            shown[_header(header, side.taxon)] = "species"
        shown |= {_header(header, at): f"{kind} of {of}" for kind, at in side.columns.items()}
    return shown | {_header(header, at): kind for kind, at in extra.items()}


def _header(header: Sequence[str], at: int) -> str:
    return header[at] if at < len(header) else f"column {at + 1}"


def _paired(
    named: Sequence[tuple[str, Names]], wanted: set[str], kind: str, score: float | None
) -> list[Pair]:
    """Return the pairs of a row: its first gene with each of the others."""
    if len(named) < 2:
        return []
    (first, names), *others = named
    return [
        Pair(first, names, key, other, kind, score)
        for key, other in others
        if key != first and wanted & {first, key}
    ]


def _kind(text: str) -> str:
    found = re.search(r"(one|many)[ _-]?2[ _-]?(one|many)", text.lower())
    if not found:
        return ""
    return "one2one" if found[1] == found[2] == "one" else "many2many" if found[1] == found[2] else "one2many"


def _score(row: Sequence[str], extra: Mapping[str, int]) -> float | None:
    """Return the score of a row: a number, or the number of listed sources."""
    if "score" not in extra:
        return None
    text = _cell(row, extra["score"])
    try:
        return float(text)
    except ValueError:
        return float(len(re.split(r"[,|;]", text))) if text else None


def _near_best(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs with a score near the best one of either gene, and all pairs without a score."""
    best: dict[tuple[str, str], float] = {}
    ends = [(_end(p.species, p.names), _end(p.other_species, p.other)) for p in pairs]
    for pair, both in zip(pairs, ends, strict=True):
        for end in both:
            best[end] = max(best.get(end, 0.0), pair.score or 0.0)
    return [
        pair
        for pair, both in zip(pairs, ends, strict=True)
        if pair.score is None or any(pair.score >= NEAR_BEST * best[end] for end in both)
    ]


def _end(species: str, names: Names) -> tuple[str, str]:
    return species, next((names[kind] for kind in _IDS if kind in names), "")


def _add_gene(genes: dict[tuple[str, str], Gene], species: str, names: Names) -> None:
    """Add a gene, or merge its new names into the known one."""
    gene = gene_of(species, names)
    key = (species, gene.gene_id)
    there = genes.get(key)
    if there is None:
        genes[key] = gene
    elif set(gene.aliases) - set(there.aliases) or set(gene.ensembl_ids) - set(there.ensembl_ids):
        genes[key] = Gene(
            there.gene_id, species, there.symbol, there.entrez_id or gene.entrez_id, there.name,
            ensembl_ids=tuple(dict.fromkeys((*there.ensembl_ids, *gene.ensembl_ids))),
            aliases=tuple(dict.fromkeys((*there.aliases, *gene.aliases))),
        )  # fmt: skip


def gene_of(species: str, names: Names) -> Gene:
    """Return the gene of a table row; its id is that of the authority, Ensembl or NCBI, or its symbol."""
    ensembl = names.get("ensembl", "").split(".")[0]
    number = names.get("entrez", "").removesuffix(".0")
    authority = names.get("authority", "")
    one = known_species().get(species)
    if authority and one is not None and one.prefix:
        authority = one.prefix + authority.rpartition(":")[2]
    symbol = names.get("symbol") or ensembl or number or authority
    entrez = f"entrez:{number}" if number else ""
    stable = ensembl if one is None or not one.prefix or not entrez else ""
    return Gene(
        authority or stable or entrez or ensembl or f"{species}:{symbol}",
        species,
        symbol,
        int(number) if number.isdigit() else None,
        re.sub(r"\s*\[Source:.*", "", names.get("name", "")),
        ensembl_ids=(ensembl,) if ensembl else (),
        aliases=tuple(
            a.strip() for a in re.split(r"[|;]", names.get("synonym", "")) if a.strip() and a != symbol
        ),
    )


def _wormbase(lines: Iterable[str], species: Sequence[str]) -> OrthologTable:
    """Read WormBase orthologs: blocks that end with ``=``, of a gene and one line for each ortholog."""
    found = OrthologTable({"blocks between =": "a gene of WormBase and its orthologs"})
    genes: dict[tuple[str, str], Gene] = {}
    own: Names | None = None
    fresh = False
    for line in lines:
        if line.startswith("#"):
            continue
        if line.strip() == "=":
            own, fresh = None, True
            continue
        cells = [cell_text(cell, MAX_NAME) for cell in line.rstrip("\r\n").split("\t")]
        if fresh and cells[0].startswith("WBGene"):
            own, fresh = {"ensembl": cells[0], "authority": cells[0]}, False
            if len(cells) > 1 and cells[1]:
                own["symbol"] = cells[1]
            if "worm" in species:
                _add_gene(genes, "worm", own)
        elif own is not None and len(cells) > 1:
            key = species_named(cells[0])
            database, _, rest = cells[1].partition(":")
            other: Names = {}
            if id_species(rest or database):
                other["ensembl" if (rest or database).startswith("ENS") else "authority"] = rest or database
            elif id_species(cells[1]):
                other["authority"] = cells[1]
            if len(cells) > 2 and cells[2]:
                other["symbol"] = cells[2]
            if key and other and {"worm", key} & set(species):
                if key in species:
                    _add_gene(genes, key, other)
                score = float(len(cells[3].split(";"))) if len(cells) > 3 and cells[3] else None
                found.pairs.append(Pair("worm", own, key, other, score=score))
    found.genes, found.pairs = list(genes.values()), _near_best(found.pairs)
    return found


def is_ortholog_table(path: Path) -> bool:
    """Return whether a file is a table of genes of two species, or a gene list of BioMart, RGD or ZFIN."""
    try:
        with opened(path) as file:
            start = list(islice((line for line in read_lines(file, path) if line.strip()), 200))
        if any(line.rstrip("\r\n") == "=" for line in start):
            return True
        header, rows = _rows(iter(start), start, path)
        probe = list(rows)
    except (InputError, OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error, StopIteration):
        return False
    if not header and probe and _is_protein(probe[0]):
        return True  # whose reader says what is wrong
    plain = {_plain(name) for name in header}
    if _is_listed(header) or plain & {"db class key", "other gene id"}:
        return True
    taxa = [at for at in range(max(map(len, probe), default=0)) if _is_taxon(probe, at)]
    if not plain >= {"symbol", "species"} and any(_group(probe, at) is not None for at in taxa):
        return True
    if "symbol" in plain and plain & {"entrez id", "authority id", "hgnc id", "locus type"}:
        return False
    sides = {side for side, kind in map(_role, header) if kind in _IDS and side}
    if len(sides) > 1:
        return True
    width = max((len(row) for row in probe), default=0)
    kinds = [_kind_of(probe, at) for at in range(width) if _distinct(probe, at)]
    alike = [kind for kind in kinds if kind in ("ensembl", "authority", "symbol")]
    narrow = width <= 3 or not header or {"ensembl", "authority"} & set(kinds)
    return bool(narrow) and len(alike) > 1 and not sides & {"1", "2"}

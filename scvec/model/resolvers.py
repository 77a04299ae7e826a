"""Resolve gene names with the knowledge base of a store, or with the names that ship with scvec."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.results import count_text
from scvec.base.species import (
    OTHER,
    SPECIES,
    genome_species,
    id_species,
    known_species,
    species_key,
)
from scvec.base.types import Bool, Float32, GeneMatch, Progress, Species, no_progress

if TYPE_CHECKING:
    import pandas as pd

    from scvec.ingest.cells.source import CellSource
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.store import Store

__all__ = [
    "FoundGenes",
    "GeneMap",
    "GeneResolver",
    "ensure_knowledge",
    "find_genes",
    "is_chance",
    "is_row_numbers",
    "no_knowledge",
    "resolve",
    "resolver_of",
    "snapshot_resolver",
    "stored_resolver",
    "unknown",
    "unknown_names",
    "usual_expression",
]

#: Genome prefixes of all species, as one pattern.
_GENOMES = "|".join(pattern for one in known_species().values() for pattern in one.genomes)
#: If known genes have less than this fraction of the counts, other matrices of the file are tried.
WARN_SHARE = 0.5
#: If at least this fraction of names are ids of a species that is not loaded, the file is of that species.
FOREIGN_IDS = 0.05
#: Standard errors by which one of two species with the same style of symbols must have more names (p < 0.01).
ALIKE = 2.5
#: Part of the reference's genes below which a table of orthologs is called short (fruit fly 0.15, pig 0.77).
FEW_CROSSED = 0.25
#: A column of other names is tried when the names of the index leave out more than this.
GOOD_SHARE = 0.95


@dataclass(frozen=True)
class FoundGenes:
    """The genes of a file.

    Attributes
    ----------
    match
        Match of the best column of names.
    names_from
        ``"index"`` or the column of ``var`` with these names.
    share
        Fraction (0-1) of the counts in matched genes.
    """

    match: GeneMatch
    names_from: str
    share: float


def find_genes(source: CellSource, resolver: GeneResolver, species: str) -> FoundGenes:
    """Find the column of gene names whose known genes have the most counts.

    The index of ``var`` is tried first, then other columns. Row numbers are not used as names, although some
    of them are Entrez ids by chance. If few names are known, common prefixes and suffixes are removed
    (``hg19-INS``, ``INS__chr11``). After that, the other matrices of the file are tried.

    Raises
    ------
    InputError
        If all names are row numbers, or are not known more often than random names of the same form.
    """
    best = _best_match(source, resolver, species)
    if best is None or best.share < WARN_SHARE:
        best = _elsewhere(source, resolver, species, best)
    if best is None:
        rows = all(is_row_numbers(names) for names in source.gene_name_candidates().values())
        raise InputError(
            "the gene names are row numbers"
            if rows
            else "the gene names are row numbers of a subset, or ids of an unknown kind: they are not known "
            "more often than random numbers",
            f"{source.name}, names like {_shown(source.var_names)}",
            _TRANSPOSED
            if _is_transposed(source, resolver)
            else "store gene symbols, Ensembl or Entrez ids in var_names, or give --species other to use "
            "these ids unchanged",
            code="genes-not-recognised",
        )
    return best


def _best_match(source: CellSource, resolver: GeneResolver, species: str) -> FoundGenes | None:
    """Return the match of the column of names with the most counts; None if no column has names."""
    best: FoundGenes | None = None
    for column, names in source.gene_name_candidates().items():
        if is_row_numbers(names):
            continue
        match = resolver.resolve(names, species)
        found = FoundGenes(match, column, match.count_share(source.gene_totals))
        if found.share < GOOD_SHARE:
            found = _respelled(found, source.gene_totals, resolver, species)
        if species in ("auto", *resolver.species) and _by_chance(found.match, resolver):
            continue
        if best is None or found.share > best.share:
            best = found
        if best.share >= GOOD_SHARE:
            break
    return best


def _elsewhere(
    source: CellSource, resolver: GeneResolver, species: str, best: FoundGenes | None
) -> FoundGenes | None:
    """Switch a source to another matrix of its file with known genes, and return its match."""
    for place, columns in source.other_names().items():
        known = 0.0
        for names in columns.values():
            if not is_row_numbers(names):
                match = resolver.resolve(names, species)
                known = max(known, 0.0 if _by_chance(match, resolver) else match.n_matched / len(names))
        if known < max(0.5, 2 * best.share if best is not None else 0.0):
            continue
        left = source.state.where
        try:
            source.use(place, f"did not use {left}: the names of its genes are unknown; used {place}")
        except InputError:  # the matrix has no usable values
            continue
        return _best_match(source, resolver, species)
    return best


#: Fewer consecutive numbers may be Entrez ids.
_MIN_ROWS = 10
_NUMBER = re.compile(r"X?(\d+)(?:\.0)?")


def is_row_numbers(names: Sequence[str]) -> bool:
    """Return whether names are 0 to n - 1 or 1 to n, in any order, also in the form of R or of floats."""
    found = [_NUMBER.fullmatch(name) for name in names]
    if len(names) < _MIN_ROWS or not all(found):
        return False
    numbers = sorted(int(m[1]) for m in found if m is not None)
    return numbers in (list(range(len(names))), list(range(1, len(names) + 1)))


#: Names that may be known by chance, and the number of them that is compared with random names.
_SHORT, _N_COMPARED = re.compile(r"[A-Za-z]{0,2}(\d+)(?:\.0)?"), 1000


def _by_chance(match: GeneMatch, resolver: GeneResolver) -> bool:
    """Return whether names are not known more often than random names of the same form.

    A third of all numbers below 20,000 are Entrez ids, so a subset of row numbers seems to match.
    """
    numbers = [m for name in match.names if (m := _SHORT.fullmatch(name))]
    if len(numbers) < max(_MIN_ROWS, 0.9 * len(match.names)):
        return False
    known = match.n_matched / len(match.names)
    values = np.array([int(m[1][:18]) for m in numbers])
    rng = np.random.default_rng(0)
    drawn = rng.integers(values.min(), values.max() + 1, _N_COMPARED)
    heads = [m[0][: m.start(1)] for m in numbers]
    made = [f"{heads[i % len(heads)]}{number}" for i, number in enumerate(drawn)]
    chance = resolver.resolve(made, match.species).n_matched / len(made)
    # The names must exceed chance by a quarter of the remaining fraction and by three standard errors.
    luck = 3 * float(np.sqrt(chance * (1 - chance) / len(match.names)))
    return known < chance + max(0.25 * (1 - chance), luck)


#: A file is refused if known genes have less than this fraction of the counts. If few of the names are
#: known, they must have most of the counts: 15% of the symbols of worm and 36% of yeast are names of human
#: genes by chance (benchmarks/orthologs.py --chance).
REFUSE_SHARE, FEW_NAMES, MOST_COUNTS = 0.1, 0.45, 0.8


def is_chance(found: FoundGenes) -> bool:
    """Return whether so few names and counts match that the species may be wrong."""
    names = {name.strip() for name in found.match.names if not _NO_GENE.search(name)}
    known = {n.strip() for n, how in zip(found.match.names, found.match.how, strict=True) if how}
    few = len(known) < FEW_NAMES * len(names)
    return found.share < REFUSE_SHARE or (few and found.share < MOST_COUNTS)


#: Number of genes for the check of usual expression, and smallest usual rank correlation. Correct files
#: of whole genomes have 0.2 to 0.9, names on wrong columns -0.06 to 0.19 (benchmarks/species_detection.py).
N_USUAL, USUAL = 1000, 0.1


def usual_expression(match: GeneMatch, totals: npt.NDArray[np.float64], resolver: GeneResolver) -> float:
    """Return how genes rank by counts in a file, compared with cells that ship; NaN where too few are known.

    Parameters
    ----------
    totals
        (n_names,) counts of the names.

    Returns
    -------
    float
        Rank correlation (-1 to 1) over the genes that both have, of human and mouse only.
    """
    if match.n_matched < N_USUAL or min(totals) < 0:
        return float("nan")
    from scipy.stats import spearmanr

    from scvec.stores.knowledge.snapshot import Snapshot

    table = Snapshot.open().table("background").to_pydict()
    usual = {
        gene.lower(): mean
        for gene, mean, species in zip(table["gene"], table["mean"], table["species"], strict=True)
        if species == match.species
    }
    pairs = [
        (total, usual[symbol])
        for gene, total in zip(match.gene_ids, totals, strict=True)
        if gene is not None and (symbol := resolver.symbol(gene)) in usual
    ]
    if len(pairs) < N_USUAL:
        return float("nan")
    here, there = np.array(pairs, dtype=np.float64).T
    return float(spearmanr(here, there).statistic)


#: Regions of the genome, as joined files of RNA and open chromatin have them, and genes of another genome.
_NO_GENE = re.compile(rf"[:_-]\d+[:_-]\d+$|^(?:{_GENOMES})_", re.IGNORECASE)
#: Separators between the name of a gene and other text.
_SEPARATORS = ("\t", "__", "|", "_", ":", ";", ",", "/", " ", "(", "-", ".", "@", "#", "=")
#: Names in quotes, as bytes, or in a list of one.
_QUOTED = re.compile(r"[\[(]*b?(['\"])(.*)\1[\])]*")
#: A number with the letter X of R's make.names.
_R_NUMBER = re.compile(r"X(\d+)")
#: Least fraction of names with a pattern, number of names to test patterns on, and least gain of known genes.
_SHARED, _N_TRIED, _GAIN = 0.6, 300, 0.1
_Part: TypeAlias = Callable[[str], str]


def _respelled(
    found: FoundGenes, totals: npt.NDArray[np.float64], resolver: GeneResolver, species: str
) -> FoundGenes:
    """Return the match after removing common prefixes and suffixes, if it is better."""
    names = found.match.names
    tried = [names[i] for i in np.argsort(-totals, kind="stable")[:_N_TRIED]]
    parts: tuple[_Part, ...] = ()
    while len(parts) < 4:  # "hg19_INS__chr11" in quotes has three
        known = _n_genes(resolver, _applied(parts, tried), species)
        n, better = _best_parts(resolver, tried, parts, species)
        if n < known + _GAIN * len(tried):
            break
        parts = better
    spelled = _applied(parts, names)
    match = resolver.resolve(spelled, species)
    share = match.count_share(totals)
    if not parts or share <= found.share or is_row_numbers(spelled) or _by_chance(match, resolver):
        return found
    example = next(i for i in np.argsort(-totals, kind="stable") if spelled[i] != names[i])
    note = f"gene names such as '{names[example]}' were read as '{spelled[example]}'"
    return replace(found, match=replace(match, notes=(note, *match.notes)), share=share)


def _best_parts(
    resolver: GeneResolver, tried: list[str], parts: tuple[_Part, ...], species: str
) -> tuple[int, tuple[_Part, ...]]:
    """Return the number of known genes after removing one more part, or two parts if one does not help."""
    names = _applied(parts, tried)
    scored = [(_n_genes(resolver, _applied([p], names), species), (*parts, p)) for p in _parts(names)]
    best = max(scored, key=lambda pair: pair[0], default=(0, parts))
    if best[0] >= _GAIN * len(tried):
        return best
    pairs = [(*parts, p, q) for p in _parts(names) for q in _parts(_applied([p], names))]
    deeper = [(_n_genes(resolver, _applied(pair, tried), species), pair) for pair in pairs]
    return max(deeper, key=lambda pair: pair[0], default=best)


def _n_genes(resolver: GeneResolver, names: Sequence[str], species: str) -> int:
    match = resolver.resolve(names, species)
    return len({gene for gene in match.gene_ids if gene is not None})


def _applied(parts: Sequence[_Part], names: Sequence[str]) -> list[str]:
    spelled = list(names)
    for part in parts:
        spelled = [part(name).strip() for name in spelled]
    return spelled


def _parts(names: Sequence[str]) -> list[_Part]:
    """Return functions that remove a prefix or suffix that most names have."""
    if sum(_QUOTED.fullmatch(name) is not None for name in names) > _SHARED * len(names):
        return [lambda name: m[2] if (m := _QUOTED.fullmatch(name)) else name]
    if sum(_R_NUMBER.fullmatch(name) is not None for name in names) > _SHARED * len(names):
        return [lambda name: m[1] if (m := _R_NUMBER.fullmatch(name)) else name]
    found: list[_Part] = []
    for mark in _SEPARATORS:
        having = [name for name in names if mark in name]
        if len(having) < _SHARED * len(names):
            continue
        # Names without the common part keep their separators: "rna_INS", but "HLA_A".
        head, n = Counter(name.split(mark, 1)[0] for name in having).most_common(1)[0]
        if n > _SHARED * len(names):
            found.append(lambda name, head=head + mark: name.removeprefix(head))  # type: ignore[misc]
        tail, n = Counter(name.rsplit(mark, 1)[1] for name in having).most_common(1)[0]
        if n > _SHARED * len(names):
            found.append(lambda name, tail=mark + tail: name.removesuffix(tail))  # type: ignore[misc]
        found += [
            lambda name, mark=mark: name.split(mark, 1)[0],  # type: ignore[misc]
            lambda name, mark=mark: name.rsplit(mark, 1)[0],  # type: ignore[misc]
            lambda name, mark=mark: name.split(mark, 1)[-1],  # type: ignore[misc]
            lambda name, mark=mark: name.rsplit(mark, 1)[-1],  # type: ignore[misc]
        ]
    return found


#: Identifiers of microarray probes.
_PROBES = re.compile(r"ILMN_\d+|\d+(_[a-z])?_at")


def unknown_names(source: CellSource, found: FoundGenes, summary: str, resolver: GeneResolver) -> InputError:
    """Return the error for mostly unknown names, with the likely kind of these names."""
    match = found.match
    where = f"{source.name}, names like {unknown(match, source.gene_totals)}"
    if match.looks_like:
        return _not_loaded(match, where)
    what = f"almost no gene is known: {summary}"
    fix = (
        _TRANSPOSED
        if _is_transposed(source, resolver)
        else _kind_of_ids(match.names)
        or "store gene symbols, Ensembl or Entrez ids in var_names; or give --species (other: use the names "
        "unchanged), or --force to continue"
    )
    return InputError(what, where, fix, code="genes-not-recognised")


def _not_loaded(match: GeneMatch, where: str) -> InputError:
    """Return the error for gene names of a species that is not in the store."""
    key = match.looks_like
    fit = f"{match.n_matched:,} of {len(match.names):,} fit {match.species}"
    what = f"the gene names look like {key}, whose genes are not loaded ({fit})"
    # The shipped genes of chicken and pig have symbols, but no Ensembl ids.
    ours = {name.lower() for name in _shipped_names().get(key, set()) | _shipped_ids(key)}
    prefix = known_species()[key].prefix.lower() if key in known_species() else ""
    names = [(part[1] if (part := _STABLE_PART.search(n)) else n).strip().lower() for n in match.names]
    known = sum(not ours.isdisjoint((n, n.split(".")[0], prefix + n)) for n in names)
    source = "" if known > FOREIGN_IDS * len(match.names) else " --source FILE (docs/species.md)"
    fix = f"run: scvec ingest genes --species {_quoted(key)}{source}; or give --species NAME"
    return InputError(what, where, fix, code="species-not-loaded")


def no_knowledge(species: Species, where: str, fix: str) -> InputError:
    """Return the error of a function that needs gene texts or names, for a species without them."""
    what = f"the store has no gene texts and no other gene names of {species}"
    return InputError(what, where, fix, code="species-not-loaded")


def _quoted(key: str) -> str:
    return f"'{key}'" if " " in key else key


def _kind_of_ids(names: Sequence[str]) -> str:
    """Return a description of the names if most of them are not genes; else empty."""
    most = 0.5 * len(names)
    if sum(_PROBES.fullmatch(name) is not None for name in names) > most:
        return "the names are probes of a microarray"
    for one in known_species().values():
        if sum(one.product_id.fullmatch(name) is not None for name in names) > most:
            return f"the names are transcripts or proteins of {one.key}; sum them to genes first (tximport)"
    return ""


_TRANSPOSED = "the names of the cells are genes: the matrix is transposed; give adata.T"


def _is_transposed(source: CellSource, resolver: GeneResolver) -> bool:
    cells = source.obs_names[:_N_TRIED]
    if cells in ([str(i) for i in range(len(cells))], [str(i + 1) for i in range(len(cells))]):
        return False  # small numbers are Entrez ids, too
    return bool(cells) and _n_genes(resolver, cells, "auto") > 0.5 * len(cells)


def unknown(match: GeneMatch, totals: npt.NDArray[np.float64]) -> str:
    """Return the unknown names with the most counts, for messages; ``totals`` (n,) are their counts."""
    order = np.argsort(-totals, kind="stable")
    return _shown([match.names[i] for i in order if match.gene_ids[i] is None])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3])


# Ensembl ids of genes of all species, including those of FlyBase and WormBase.
_STABLE = r"ENS(?:[A-Z]{3,4})?G\d{11}|FBgn\d{7}|WBGene\d{8}"
_STABLE_ANY = re.compile(_STABLE)
_STABLE_FULL = re.compile(rf"({_STABLE})(?:\.\d+)?(?:_PAR_Y)?", re.IGNORECASE)
_STABLE_PART = re.compile(rf"({_STABLE})(?:\.\d+)?(?:_PAR_Y)?(?![0-9A-Za-z])", re.IGNORECASE)


def _plain(name: str) -> str:
    """Return a name without what spreadsheets and web pages add: spaces, a leading ``'``, marks unseen."""
    if not name.isascii():
        seen = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        name = "".join(seen)
    return name.strip().lstrip("'")


def _species_within(name: str) -> str | None:
    """Return the species of an id, or of a stable id within a name of any case (``gene:ENSRNOG00000...``)."""
    found = id_species(name) or None
    if found is None and (part := _STABLE_PART.search(name)) is not None:
        stable = part[1].upper()
        found = id_species(stable.replace("FBGN", "FBgn").replace("WBGENE", "WBGene"))
    return found


_ENTREZ = re.compile(r"(?:entrez:|GeneID:|LOC)?(\d+)", re.IGNORECASE)
#: Name of a gene of any species that has no symbol yet.
_LOCUS = re.compile(r"LOC\d+", re.IGNORECASE)
_PREFIX = re.compile(rf"({_GENOMES})(?:-2020-A)?_+(?=.)", re.IGNORECASE)
_SUFFIX = re.compile(r"(.+)[-.](\d{1,3})")
#: Suffix that makes a repeated id unique, as in ENSG00000121410-1; it is not the Entrez id of A1BG.
_COUNTER = re.compile(r"\d{1,3}")
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE = re.compile(rf"\d{{1,2}}-(?:{_MONTHS})|(?:{_MONTHS})-\d{{1,2}}", re.IGNORECASE)
_EDGES = "_|-:;,./ \t()[]"

# Kinds of names in the aliases table, the most reliable first.
_EXACT = ("symbol", "ensembl", "entrez", "previous", "alias")
#: Name of unknown kinds of gene names.
OWN_IDS = "ids of their own kind"
_ID_TYPES = {"ensembl": "Ensembl ids", "entrez": "Entrez ids", "authority": "nomenclature ids"}

#: The genes of a name (several if it is ambiguous), and the kind of match.
_Hit = tuple[tuple[str, ...], str]
_MISS: _Hit = ((), "")


@dataclass(frozen=True, slots=True, eq=False)
class GeneMap:
    """The map from the columns of a data set to the genes of a reference.

    Attributes
    ----------
    weights
        (n_names, n_target) scipy CSR float32: ``counts @ weights`` are counts over the target genes.
    measured
        (n_target,) bool: target genes with at least one name.
    notes
        Notes for users.
    crossed
        For names of another species: the number of genes with orthologs among the targets, and of which
        kind. ``path`` (species), ``genes``, ``crossed``, ``one_to_one``, ``several``, ``symbol_alone``,
        ``reference_genes`` that they map to, ``confidence`` (0-1, if tables give it).
    """

    weights: Any
    measured: Bool
    notes: tuple[str, ...] = ()
    crossed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def used(self) -> Bool:
        """(n_names,) bool: names with a target gene."""
        used: Bool = np.diff(self.weights.indptr) > 0
        return used

    def select(self, targets: npt.NDArray[np.int64]) -> GeneMap:
        """Return the map onto some of the target genes."""
        return replace(self, weights=self.weights[:, targets], measured=self.measured[targets])

    def scaled(self, factors: Float32) -> GeneMap:
        """Return the map with each target gene's counts multiplied by its factor, (n_target,)."""
        weights = self.weights.copy()
        weights.data = weights.data * factors[weights.indices]
        return replace(self, weights=weights)


class _Names:
    """The gene names of one species by kind of name, exact and without case."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.exact: dict[str, dict[str, tuple[str, ...]]] = {kind: {} for kind in _EXACT}
        self.folded: dict[str, dict[str, tuple[str, ...]]] = {"symbol": {}, "other": {}}

    def add(self, kind: str, names: Iterable[str], gene_ids: Iterable[str]) -> None:
        table = self.exact.get(kind)
        if table is None:
            return
        folded = self.folded["symbol" if kind == "symbol" else "other"]
        fold = kind in ("symbol", "previous", "alias")
        for name, gene_id in zip(names, gene_ids, strict=True):
            if kind == "ensembl":
                name = name.upper()
            for key, into in ((name, table), (name.lower(), folded)) if fold else ((name, table),):
                old = into.get(key)
                if old is None:
                    into[key] = (gene_id,)
                elif gene_id not in old:
                    into[key] = tuple(sorted((*old, gene_id)))

    def plain(self, name: str, fold: bool = False) -> _Hit:
        """Return the genes of an unchanged name, by the most reliable kind of name that matches.

        With ``fold``, an official symbol in any case comes before the other kinds of names.
        """
        hit = self.exact["symbol"].get(name)
        if hit:
            return hit, "symbol"
        if fold:
            hit = self.folded["symbol"].get(name.lower())
            if hit:
                return hit, "case"
        if "." in name:
            # R's make.names writes NKX6-1 as NKX6.1, which is also an old name of NKX6-2.
            hit = self.exact["symbol"].get(name.replace(".", "-"))
            if hit:
                return hit, "composite"
        ensembl = _STABLE_FULL.fullmatch(name)
        if ensembl:
            hit = self.exact["ensembl"].get(ensembl[1].upper())
            return (hit, "ensembl") if hit else _MISS
        for spelled in (name, name.upper()):
            if spelled in self.ids:
                return (spelled,), "authority"
        entrez = _ENTREZ.fullmatch(name)
        if entrez:
            hit = self.exact["entrez"].get(entrez[1].lstrip("0"))
            if hit:
                return hit, "entrez"
        for kind in ("previous", "alias"):
            hit = self.exact[kind].get(name)
            if hit:
                return hit, kind
        key = name.lower()
        for table in self.folded.values():
            hit = table.get(key)
            if hit:
                return hit, "case"
        return _MISS


#: Orthologs of the genes of one species in another: gene -> partner -> (kind, confidence).
_Links: TypeAlias = dict[str, dict[str, tuple[str, float]]]


class GeneResolver:
    """Finds the genes of names.

    Parameters
    ----------
    aliases
        Columns ``gene_id``, ``species``, ``name`` and ``kind`` (``symbol``, ``previous``, ``alias``,
        ``ensembl`` or ``entrez``).
    orthologs
        Columns ``gene_id``, ``species``, ``other_id``, ``other_species``, ``kind`` (``one2one``, ...) and
        ``confidence`` (0-1).
    many
        Counts of a gene with several orthologs: divided equally (``mean``), all to each of them (``sum``), or
        all to the one with the highest confidence (``best``).
    """

    def __init__(self, aliases: pd.DataFrame, orthologs: pd.DataFrame, *, many: str = "mean") -> None:
        # Object arrays are faster for the loop in Python.
        kinds, species = (aliases[c].to_numpy(dtype=object) for c in ("kind", "species"))
        names, ids = (aliases[c].to_numpy(dtype=object) for c in ("name", "gene_id"))
        more = sorted(set(species) - set(SPECIES))
        self._names: dict[str, _Names] = {one: _Names() for one in (*SPECIES, *more)}
        for one in self._names:
            for kind in _EXACT:
                mask = (kinds == kind) & (species == one)
                self._names[one].add(kind, names[mask], ids[mask])
            self._names[one].ids = set(ids[species == one])
        official = kinds == "symbol"
        self._symbol = dict(zip(ids[official], (n.lower() for n in names[official]), strict=True))
        self._many = many
        self._links: dict[tuple[str, str], _Links] = {}
        self._best: dict[Species, dict[str, str]] = {}  # what partners() returned
        columns = ("gene_id", "species", "other_id", "other_species", "kind", "confidence")
        for gene, own, partner, other, kind, confidence in zip(
            *(orthologs[c].to_numpy(dtype=object) for c in columns), strict=True
        ):
            pair = (kind, confidence)
            self._links.setdefault((own, other), {}).setdefault(gene, {})[partner] = pair
            self._links.setdefault((other, own), {}).setdefault(partner, {})[gene] = pair

    @property
    def species(self) -> tuple[str, ...]:
        """The loaded species, human and mouse first."""
        return tuple(one for one, table in self._names.items() if table.ids)

    def symbol(self, gene_id: str) -> str:
        """Return the official symbol of a gene in small letters; empty without one."""
        return str(self._symbol.get(gene_id, ""))

    def resolve(self, names: Sequence[str], species: Species | str = "auto") -> GeneMatch:
        """Find the gene of each name.

        The kinds of names are tried in this order: official symbol, Ensembl id (without version), id of the
        authority, Entrez id, previous symbol, alias, any of these without case; then
        composite names (``HLA-A_ENSG00000206503``, ``GRCh38_INS``); then names made unique (``TBCE-1``). A
        name with several genes at the first matching kind is ambiguous and stays unmatched.

        Parameters
        ----------
        names
            Gene names of a data set, length n.
        species
            A species by name or taxon id, or ``auto``: the species with the most known names, ignoring case;
            if two have equally many, the one with more names in the same spelling. Names of a species that is
            not loaded are used unchanged as gene ids.

        Raises
        ------
        InputError
            ``species`` is misspelled.
        """
        given = tuple(str(name) for name in names)
        notes: list[str] = []
        if species != "auto":
            species = species_key(species, "species", self._names)
            if not self._names.get(species, _Names()).ids:
                return _as_they_are(given, species)
        chosen, note, fold, stranger = self._species(given, species)
        notes += note
        table = self._names[chosen]
        cache: dict[str, _Hit] = {}
        foreign = dates = 0
        gene_ids: list[str | None] = []
        how: list[str] = []
        ambiguous: dict[str, tuple[str, ...]] = {}
        for name in given:
            hit = cache.get(name)
            if hit is None:
                hit = cache[name] = _resolve_one(table, _plain(name), chosen, fold)
            genes, level = hit
            foreign += level == "foreign"
            dates += level == "date"
            gene_ids.append(genes[0] if len(genes) == 1 else None)
            how.append(level if len(genes) == 1 else "ambiguous" if genes else "")
            if len(genes) > 1:
                ambiguous[name] = genes
        notes += _notes(gene_ids, ambiguous, foreign, dates, chosen)
        return GeneMatch(
            names=given,
            gene_ids=tuple(gene_ids),
            how=tuple(how),
            species=chosen,
            id_type=_id_type(how),
            ambiguous=ambiguous,
            notes=tuple(notes),
            looks_like=stranger,
        )

    def _species(self, names: tuple[str, ...], species: str) -> tuple[Species, list[str], bool, str]:
        """Return the species of names, notes, whether most have another case than symbols, and a stranger.

        The stranger is a species that is not loaded and has more of the names; empty if there is none.
        """
        unique = list(dict.fromkeys(map(_plain, names)))
        loaded = (species,) if species != "auto" else self.species or SPECIES
        exact = {s: self._spelled(unique, s) for s in loaded}
        known = {s: exact[s] | self._folded(unique, s) for s in loaded}
        spelled = {s: int(found.sum()) for s, found in exact.items()}
        n = {s: int(found.sum()) for s, found in known.items()}
        if len(loaded) == 1:
            best, notes = loaded[0], list[str]()
        else:
            # The two species with the most known names; if equal, the one that was loaded first.
            pair = tuple(sorted(sorted(loaded, key=lambda s: -n[s])[:2], key=loaded.index))
            # The difference must exceed three standard errors of the names that only one species has. Most
            # names of apes and pig are also human names, so there the limit is lower.
            style = len({one.style for s in pair if (one := known_species().get(s))}) == 1
            luck = (ALIKE if style else 3) * float(np.sqrt((known[pair[0]] != known[pair[1]]).sum()))
            votes = _Votes({s: n[s] for s in pair}, {s: spelled[s] for s in pair}, luck)
            best, notes = votes.best or loaded[0], votes.notes()
        fold = spelled[best] < 0.5 * n[best]
        stranger = self._stranger(unique, known[best], fold) if species == "auto" else ""
        return best, notes, fold, stranger

    def _stranger(self, names: Sequence[str], known: Bool, fold: bool) -> str:
        """Return a species that is not loaded and knows more names than ``known`` (n,) bool; else empty.

        ``fold``: whether the names have another case than symbols.
        """
        left = [name for name, there in zip(names, known, strict=True) if not there]
        ids = Counter(key for name in left if (key := _species_within(name)) and key not in self.species)
        for key, n in ids.most_common(1):
            if n >= max(_MIN_ROWS, FOREIGN_IDS * len(names)):
                return key
        if len(left) <= ALIKE**2:
            return ""
        # Where names are unknown or all of one case, case tells nothing.
        fold |= known.mean() < 0.9 or any(
            sum(n != c(n) for n in names) < 0.01 * len(names) for c in (str.upper, str.capitalize)
        )
        least = 0.5 * sum(_LOCUS.fullmatch(name) is None for name in names)
        if fold:
            names = [name.lower() for name in names]
        # Names that were made unique: INS-1 is INS.
        bases = {name: m[1] for name in names if (m := _SUFFIX.fullmatch(name))}
        best, most = "", 0
        for key, shipped in _shipped_names().items():
            if key in self.species:
                continue
            if fold:
                shipped = _folded_names(key)
            own = np.array([name in shipped or bases.get(name) in shipped for name in names], dtype=bool)
            more, fewer = int((own & ~known).sum()), int((known & ~own).sum())
            if own.sum() > max(most, least) and more - fewer > ALIKE * np.sqrt(more + fewer):
                best, most = key, int(own.sum())
        return best

    def _folded(self, names: Sequence[str], species: Species) -> Bool:
        """Return (n,) bool: names that are symbols of a species, ignoring case and a unique suffix."""
        symbols, others = self._names[species].folded.values()

        def known(name: str) -> bool:
            if name in symbols or name in others:
                return True
            suffix = _SUFFIX.fullmatch(name)
            return suffix is not None and (suffix[1] in symbols or name.replace(".", "-") in symbols)

        return np.array([known(name.lower()) for name in names], dtype=bool)

    def _spelled(self, names: Sequence[str], species: Species) -> Bool:
        """Return (n,) bool: names that are symbols or ids of a species in exact spelling."""
        table = self._names[species]

        def spelled(name: str) -> bool:
            prefix = _PREFIX.match(name) if "_" in name else None
            if prefix:
                return genome_species(prefix[1]) == species
            if name in table.exact["symbol"] or name in table.exact["entrez"] or name in table.ids:
                return True
            found = _STABLE_ANY.search(name) if "ENS" in name or "FBgn" in name or "WBGene" in name else None
            return found is not None and id_species(found[0]) == species

        return np.array([spelled(name) for name in names], dtype=bool)

    def map_to(self, match: GeneMatch, target_gene_ids: Sequence[str], target_species: Species) -> GeneMap:
        """Map the matched names to the genes of a reference.

        Within a species, a name maps to its gene. Across species, it maps to its orthologs among the
        targets: to the one-to-one ortholog or the one with the same symbol if there is one, otherwise to all
        with equal weight. Several names of one target are summed (mouse ``Ins1`` and ``Ins2`` are human
        ``INS``). Species without a common table are joined through others (worm, human, mouse).

        Parameters
        ----------
        match
            The result of :meth:`resolve` for n names.
        target_gene_ids
            Unique gene ids of the reference.
        target_species
            Their species.

        Raises
        ------
        InputError
            If no orthologs join the two species.
        """
        from scipy import sparse

        column = {gene_id: j for j, gene_id in enumerate(target_gene_ids)}
        if len(column) != len(target_gene_ids):
            raise InputError("the target genes have a repeated id", "", "give every gene once")
        via = match.species != target_species
        path = self.path(match.species, target_species) if via else ()
        shares: dict[str, _Share] = {}
        rows: list[int] = []
        columns: list[int] = []
        weights: list[float] = []
        for i, gene_id in enumerate(match.gene_ids):
            if gene_id is None:
                continue
            share = shares.get(gene_id)
            if share is None:
                if via:
                    share = self._cross(gene_id, path, column)
                else:
                    # Unchanged ids stay valid if their species is loaded later.
                    name = gene_id if gene_id in column else match.names[i]
                    share = _Share({name: 1.0} if name in column else {})
                shares[gene_id] = share
            for partner, weight in share.weights.items():
                rows.append(i)
                columns.append(column[partner])
                weights.append(weight)
        shape = (len(match.names), len(target_gene_ids))
        csr = sparse.csr_matrix((np.array(weights, dtype=np.float32), (rows, columns)), shape=shape)
        csr.sort_indices()
        measured = np.zeros(shape[1], dtype=bool)
        measured[csr.indices] = True
        crossed = _crossed(shares, path, int(measured.sum())) if via else {}
        return GeneMap(csr, measured, _crossing_note(crossed, shape[1]), crossed)

    def path(self, species: Species, target: Species) -> tuple[Species, ...]:
        """Return the shortest path of species from one to the other, joined by orthologs.

        Of several shortest paths, the one with the most pairs is used.

        Raises
        ------
        InputError
            If no orthologs join the two.
        """
        ways: list[tuple[Species, ...]] = [(species,)]
        seen = {species}
        while ways:
            arrived = [way for way in ways if way[-1] == target]
            if arrived:
                return max(arrived, key=lambda way: min(self._n_genes(*hop) for hop in pairwise(way)))
            ways = [(*way, b) for way in ways for a, b in self._links if a == way[-1] and b not in seen]
            seen |= {way[-1] for way in ways}
        what = f"the store has no orthologs between {species} and {target}"
        keys = [s for s in (species, target) if s not in SPECIES]
        fix = (
            "genes of --species other have no orthologs: use a reference with the same gene ids"
            if OTHER in keys
            else f"run: scvec ingest genes --species {_quoted(keys[0])}"
            + ("" if keys[0] in _shipped_names() else " --source FILE (a table of orthologs)")
            if keys
            else "run: scvec ingest genes"
        )
        raise InputError(what, "", fix, code="species-not-joined")

    def _n_genes(self, species: Species, target: Species) -> int:
        return len(self._links[species, target])

    def _cross(self, gene_id: str, path: Sequence[Species], column: Container[str]) -> _Share:
        """Return the weights of a gene on the genes in ``column`` of the last species of a path."""
        link = self._links[path[0], path[1]].get(gene_id, {})
        last = len(path) == 2
        onward = {} if last else {p: self._cross(p, path[1:], column) for p in sorted(link)}
        there = [p for p in sorted(link) if (p in column if last else onward[p].weights)]
        if not there:
            return _Share({})
        symbol = self._symbol.get(gene_id)
        for best in (
            [p for p in there if link[p][0] == "one2one"],
            [p for p in there if symbol is not None and self._symbol.get(p) == symbol],
        ):
            if best:
                there = best
                break
        if self._many == "best":
            there = [max(there, key=lambda p: _sure(link[p]))]
        part = 1.0 if self._many == "sum" else 1.0 / len(there)
        confidence = sum(link[p][1] for p in there) / len(there)
        kind = {"one2one": "one2one", "symbol": "symbol"}.get(link[there[0]][0], "many")
        if last:
            return _Share(dict.fromkeys(there, part), kind, confidence)
        weights: dict[str, float] = {}
        for p in there:
            for partner, weight in onward[p].weights.items():
                weights[partner] = weights.get(partner, 0.0) + part * weight
        kinds = {kind, *(onward[p].kind for p in there)}
        kind = next((k for k in ("symbol", "many") if k in kinds), "one2one")
        return _Share(weights, kind, confidence * sum(onward[p].confidence for p in there) / len(there))

    def partners(self, target: Species) -> dict[str, str]:
        """Return gene -> its best ortholog in a species, of all that orthologs join to it directly."""
        if target not in self._best:
            self._best[target] = {
                gene: min(link, key=lambda p: (-_sure(link[p]), p))
                for (_, other), links in self._links.items()
                if other == target
                for gene, link in links.items()
            }
        return self._best[target]


def _sure(pair: tuple[str, float]) -> float:
    """Return the confidence of an ortholog pair; 0 if the table has none."""
    return pair[1] if pair[1] == pair[1] else 0.0


@dataclass(frozen=True)
class _Share:
    """The weights of a gene on its orthologs, the kind of pair, and the confidence (0-1)."""

    weights: dict[str, float]
    kind: str = ""
    confidence: float = float("nan")


def _crossed(shares: Mapping[str, _Share], path: Sequence[Species], n_targets: int) -> dict[str, Any]:
    """Return how genes became those of another species, as :attr:`GeneMap.crossed`."""
    kinds = Counter(share.kind for share in shares.values() if share.weights)
    given = (share.confidence for share in shares.values() if share.weights and share.kind != "symbol")
    known = [confidence for confidence in given if confidence == confidence]
    return {
        "path": list(path),
        "genes": len(shares),
        "crossed": sum(kinds.values()),
        "one_to_one": kinds["one2one"],
        "several": kinds["many"],
        "symbol_alone": kinds["symbol"],
        "reference_genes": n_targets,
    } | ({"confidence": round(sum(known) / len(known), 4)} if known else {})


def _crossing_note(crossed: Mapping[str, Any], n_all: int) -> tuple[str, ...]:
    if not crossed:
        return ()
    first, *between, last = crossed["path"]
    through = f" by way of {' and '.join(between)}" if between else ""
    confidence = f"; mean confidence {crossed['confidence']:.2f}" if "confidence" in crossed else ""
    asked = next((one for one in (first, last) if one not in SPECIES), first)
    fuller = f"; a fuller table may be loaded: scvec ingest genes --species {_quoted(asked)} --source FILE"
    return (
        f"{first} genes were mapped to {last} through orthologs{through}: {crossed['crossed']:,} of "
        f"{crossed['genes']:,} known genes stand for {crossed['reference_genes']:,} of {n_all:,} "
        f"({crossed['one_to_one']:,} one to one, {crossed['several']:,} among several, "
        f"{crossed['symbol_alone']:,} by symbol alone{confidence})"
        + (fuller if crossed["reference_genes"] < FEW_CROSSED * n_all else ""),
    )


def _as_they_are(names: tuple[str, ...], species: Species) -> GeneMatch:
    """Return the match of names of an unknown species, which are used unchanged as gene ids."""
    ids = tuple(name.strip() or None for name in names)
    notes = [
        f"the genes of {species} are not in the store: their names are used unchanged, without texts, "
        "other names or orthologs"
    ]
    repeated = len(ids) - len(set(ids))
    if repeated:
        notes.append(f"summed the counts of {repeated:,} repeated names")
    how = tuple("symbol" if gene_id else "" for gene_id in ids)
    return GeneMatch(names, ids, how, species, OWN_IDS, notes=tuple(notes))


def _shipped_ids(species: Species) -> set[str]:
    """Return the authority and Ensembl ids of the shipped genes of a species."""
    from scvec.stores.knowledge.snapshot import Snapshot

    found = set[str]()
    for name, column in (("more_genes", "gene_id"), ("more_aliases", "name")):
        table = Snapshot.open().table(name).select(["species", column]).to_pydict()
        found |= {n for n, one in zip(table[column], table["species"], strict=True) if one == species}
    return found


@cache
def _shipped_names() -> dict[str, set[str]]:
    """Return species -> names and ids of its shipped genes, for species that are loaded on request."""
    from scvec.stores.knowledge.snapshot import Snapshot

    return Snapshot.open().more_names()


@cache
def _folded_names(key: Species) -> set[str]:
    return {name.lower() for name in _shipped_names()[key]}


#: Least number of names of both species for the note that the names fit both.
_MANY_SHARED = 100


@dataclass(frozen=True)
class _Votes:
    """The two species with the most known names."""

    #: Species -> number of known names ignoring case, and in exact spelling.
    n: dict[Species, int]
    spelled: dict[Species, int]
    #: Difference of ``n`` that may occur by chance.
    luck: float

    @property
    def clear(self) -> bool:
        """Whether one species has more known names than by chance."""
        first, second = self.n.values()
        return abs(first - second) > self.luck

    @property
    def alike(self) -> bool:
        """Whether both species write symbols in the same style, so that case does not distinguish them."""
        known = known_species()
        styles = [known[s].style if s in known else "" for s in self.n]
        return styles[0] == styles[1]

    @property
    def by_case(self) -> Species | None:
        """The species with more names in exact spelling."""
        return None if self.alike else _more(self.spelled)

    @property
    def best(self) -> Species | None:
        """The species of the names; None if it is unclear."""
        if self.clear:
            return _more(self.n)
        return next(iter(self.n)) if self.alike else self.by_case or _more(self.n)

    def notes(self) -> list[str]:
        """Return notes about the detection of the species."""
        best, n, spelled = self.best, self.n, self.spelled
        if best is None:
            return [f"the gene names do not show the species: assumed {next(iter(n))}"]
        other = next(s for s in n if s != best)
        known = known_species()
        least = min(spelled.values())
        if not self.alike and least > 0.2 * max(spelled.values()) and least >= 10:
            return [
                f"{spelled[other]:,} gene names are of {other}, {spelled[best]:,} of {best}: "
                f"used as {best}; give --species if this is wrong"
            ]
        if self.clear and self.by_case == other:
            return [
                f"{n[best]:,} gene names are of {best}, {n[other]:,} of {other}, but in the spelling of "
                f"{other}: used as {best}"
            ]
        # Mouse symbols are often written in capitals, but human symbols rarely in lower case.
        capitals = self.by_case is None or (self.by_case in known and known[self.by_case].style == "upper")
        if not self.clear and capitals and n[other] >= _MANY_SHARED:
            return [
                f"the gene names fit {other} ({n[other]:,}) as well as {best} ({n[best]:,}): used as "
                f"{best}; give --species if this is wrong"
            ]
        return []


def _more(n: dict[Species, int]) -> Species | None:
    """Return the species with more names; None if both have equally many."""
    first, second = n
    return None if n[first] == n[second] else first if n[first] > n[second] else second


def _resolve_one(table: _Names, name: str, species: Species, fold: bool = False) -> _Hit:
    hit = table.plain(name, fold)
    if hit[0] or not name:
        return hit
    prefix = _PREFIX.match(name)
    if prefix:
        if genome_species(prefix[1]) != species:
            return (), "foreign"
        genes, _ = _resolve_one(table, name[prefix.end() :], species, fold)
        return genes, "composite"
    part = _STABLE_PART.search(name)
    if part:
        return _composite(table, part[1], (name[: part.start()] + " " + name[part.end() :]).strip(_EDGES))
    if _DATE.fullmatch(name):
        return (), "date"
    suffix = _SUFFIX.fullmatch(name)
    if suffix:
        genes, _ = table.plain(suffix[1], fold)
        if genes:
            return genes, "unique-suffix"
    return _MISS


def _composite(table: _Names, ensembl: str, rest: str) -> _Hit:
    by_id = table.exact["ensembl"].get(ensembl.upper(), ())
    if _COUNTER.fullmatch(rest):
        rest = ""
    by_name, level = table.plain(rest) if rest else _MISS
    both = tuple(g for g in by_id if g in by_name)
    if both:
        return both, "composite"
    if by_id and by_name and level == "symbol":
        # The two halves are official names of different genes, so the name is ambiguous.
        return tuple(sorted({*by_id, *by_name})), "composite"
    return (by_id or by_name), "composite"


def _id_type(how: Sequence[str]) -> str:
    kinds = Counter(_ID_TYPES.get(h, "symbols") for h in how if h not in ("", "ambiguous"))
    return kinds.most_common(1)[0][0] if kinds else "symbols"


def _notes(
    gene_ids: Sequence[str | None],
    ambiguous: dict[str, tuple[str, ...]],
    foreign: int,
    dates: int,
    species: Species,
) -> list[str]:
    notes = []
    times = Counter(g for g in gene_ids if g is not None)
    repeated = sum(n for n in times.values() if n > 1)
    if repeated:
        genes = sum(n > 1 for n in times.values())
        notes.append(f"summed the counts of {repeated:,} names that belong to {count_text(genes, 'gene')}")
    if ambiguous:
        some = ", ".join(list(ambiguous)[:3])
        notes.append(f"left out {count_text(len(ambiguous), 'name')} of several genes, such as {some}")
    if foreign:
        notes.append(f"{foreign:,} names have the genome prefix of another species than {species}")
    if dates:
        notes.append(f"left out {dates:,} names that look like dates (spreadsheets change MARCH1 to 1-Mar)")
    return notes


def ensure_knowledge(kb: KnowledgeBase, *, progress: Progress = no_progress) -> bool:
    """Load the shipped snapshot if the knowledge base is empty; return whether it was empty."""
    if kb.counts()["genes"]:
        return False
    progress("loading gene knowledge", 0, None)
    kb.load_snapshot(SPECIES)
    progress("loading gene knowledge", 1, 1)
    return True


# Digest of the last knowledge base -> its resolver. Building it takes most of the time of a small query, so
# notebooks and servers reuse it.
_last: dict[str, GeneResolver] = {}


def resolver_of(kb: KnowledgeBase, digest: str | None = None) -> GeneResolver:
    """Return the resolver for all names of a knowledge base; ``digest`` is its digest, if known."""

    if digest is not None and digest in _last:
        return _last[digest]
    resolver = GeneResolver(kb.aliases(), kb.orthologs())
    if digest is not None:
        _last.clear()
        _last[digest] = resolver
    return resolver


def stored_resolver(store: Store) -> GeneResolver:
    """Return the resolver for the knowledge base of the open version of a store."""
    entry = store.generation.manifest.knowledge
    if entry is not None and entry.digest in _last:
        return _last[entry.digest]
    with store.knowledge() as kb:
        return resolver_of(kb, None if entry is None else entry.digest)


def snapshot_resolver(kb: KnowledgeBase | None = None) -> GeneResolver:
    """Return the resolver over the gene names that ship with scvec; ``kb`` has them loaded, and no others."""
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.knowledge.snapshot import Snapshot

    snapshot = Snapshot.open()
    key = f"snapshot {snapshot.version}"
    if key in _last or kb is not None:
        return _last[key] if kb is None else resolver_of(kb, key)
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.open(Path(folder) / "genes.duckdb") as kb:
        kb.load_snapshot(snapshot=snapshot)
        return resolver_of(kb, key)


def resolve(names: Sequence[str], species: str = "auto", *, store: Path | str | None = None) -> GeneMatch:
    """Find the genes of a list of names.

    Parameters
    ----------
    names
        n symbols (including previous symbols and aliases, in any case), Ensembl or Entrez ids.
    species
        ``human``, ``mouse`` or ``auto``.
    store
        Store with the knowledge base. Default: the genes that ship with scvec.

    Returns
    -------
    GeneMatch
        The gene id of each name, or None. Ambiguous names are listed and stay unmatched.

    Raises
    ------
    InputError
        If the species is unknown, or the store does not exist.
    """
    if store is None:
        return snapshot_resolver().resolve(names, species)
    from scvec.stores.store.store import Store

    return stored_resolver(Store(store)).resolve(names, species)

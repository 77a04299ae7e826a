"""Which names of a data set are those of its genes, and what is in the way of knowing them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import GeneMatch

if TYPE_CHECKING:
    from scvec.ingest.cells.source import CellSource
    from scvec.model.resolvers import GeneResolver

__all__ = ["FoundGenes", "find_genes", "is_row_numbers", "unknown", "unknown_names"]

#: Fraction of counts below which a match is doubtful: other matrices of the file are tried.
WARN_SHARE = 0.5
#: A column of other names is tried when the names of the index leave out more than this.
GOOD_SHARE = 0.95


@dataclass(frozen=True)
class FoundGenes:
    """The genes that names stand for.

    Attributes
    ----------
    match
        Of the names that hold most of the counts.
    names_from
        ``"index"`` or the column of ``var`` that has them.
    share
        Fraction (0-1) of the counts that matched genes hold.
    """

    match: GeneMatch
    names_from: str
    share: float


def find_genes(source: CellSource, resolver: GeneResolver, species: str) -> FoundGenes:
    """Find the names of genes that hold most of the counts.

    The names in the index of ``var`` are tried first, then other columns. Row numbers are never names: some
    of them are Entrez ids by chance. Where few names are known, what most of them have in common is taken off
    (``hg19-INS``, ``INS__chr11``), and then the source is switched to another matrix of its file.

    Raises
    ------
    InputError
        If all names are row numbers, or no more often known than random names of their kind.
    """
    best = _best_match(source, resolver, species)
    if best is None or best.share < WARN_SHARE:
        best = _elsewhere(source, resolver, species, best)
    if best is None:
        raise InputError(
            "the genes are named by row numbers, which say nothing of which gene is which",
            f"{source.name}, names like {_shown(source.var_names)}",
            _TRANSPOSED
            if _is_transposed(source, resolver)
            else "put gene symbols, Ensembl or Entrez ids into var_names",
        )
    return best


def _best_match(source: CellSource, resolver: GeneResolver, species: str) -> FoundGenes | None:
    """Return the match of the names that hold most counts; None if none are names."""
    best: FoundGenes | None = None
    for column, names in source.gene_name_candidates().items():
        if is_row_numbers(names):
            continue
        match = resolver.resolve(names, species)
        found = FoundGenes(match, column, match.count_share(source.gene_totals))
        if found.share < GOOD_SHARE:
            found = _respelled(found, source.gene_totals, resolver, species)
        if _by_chance(found.match, resolver):
            continue
        if best is None or found.share > best.share:
            best = found
        if best.share >= GOOD_SHARE:
            break
    return best


def _elsewhere(
    source: CellSource, resolver: GeneResolver, species: str, best: FoundGenes | None
) -> FoundGenes | None:
    """Switch a source to another matrix of its file whose genes are known, and return the match there."""
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
            source.use(place, f"passed over {left}: the names of its genes are not known; used {place}")
        except InputError:  # no values there that could be used
            continue
        return _best_match(source, resolver, species)
    return best


#: Fewer numbers than these may be Entrez ids in a row.
_MIN_ROWS = 10
_NUMBER = re.compile(r"X?(\d+)(?:\.0)?")


def is_row_numbers(names: Sequence[str]) -> bool:
    """Return whether names are 0 to n - 1 or 1 to n, in any order, perhaps as R or floats write them."""
    found = [_NUMBER.fullmatch(name) for name in names]
    if len(names) < _MIN_ROWS or not all(found):
        return False
    numbers = sorted(int(m[1]) for m in found if m is not None)
    return numbers in (list(range(len(names))), list(range(1, len(names) + 1)))


#: Names short enough to be known by chance, and how many of them are compared with random ones.
_SHORT, _N_COMPARED = re.compile(r"[A-Za-z]{0,2}(\d+)(?:\.0)?"), 1000


def _by_chance(match: GeneMatch, resolver: GeneResolver) -> bool:
    """Return whether names are known no more often than random names of their kind.

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
    # A quarter of the way to all, and what few names may gain by luck (three standard errors).
    luck = 3 * float(np.sqrt(chance * (1 - chance) / len(match.names)))
    return known < chance + max(0.25 * (1 - chance), luck)


#: What may separate a gene's name from something else.
_SEPARATORS = ("__", "|", "_", ":", ";", ",", "/", " ", "(", "-", ".")
_QUOTED = re.compile(r"b?(['\"])(.*)\1")
#: Share of names that must have a pattern, genes that tell which patterns help, and by how much they must.
_SHARED, _N_TRIED, _GAIN = 0.6, 300, 0.1
_Part: TypeAlias = Callable[[str], str]


def _respelled(
    found: FoundGenes, totals: npt.NDArray[np.float64], resolver: GeneResolver, species: str
) -> FoundGenes:
    """Return the match of names without what most of them have in common, where that is better."""
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
    told = f"gene names such as '{names[example]}' were read as '{spelled[example]}'"
    return replace(found, match=replace(match, notes=(told, *match.notes)), share=share)


def _best_parts(
    resolver: GeneResolver, tried: list[str], parts: tuple[_Part, ...], species: str
) -> tuple[int, tuple[_Part, ...]]:
    """Return how many genes are known with one more part taken off, or two where one shows nothing."""
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
    """Return functions that take something off a name which most of the names have."""
    if sum(_QUOTED.fullmatch(name) is not None for name in names) > _SHARED * len(names):
        return [lambda name: m[2] if (m := _QUOTED.fullmatch(name)) else name]
    found: list[_Part] = []
    for mark in _SEPARATORS:
        having = [name for name in names if mark in name]
        if len(having) < _SHARED * len(names):
            continue
        # Genes that lack what most have keep their own separators: "rna_INS", "HLA_A".
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


#: Identifiers that are not genes of human or mouse, and what they are.
_FOREIGN = {
    r"ENS(MUS)?T\d{11}|[NX][MR]_\d+": "transcript ids; sum them to genes first, as tximport does",
    r"ENS(MUS)?P\d{11}|NP_\d+|[OPQ]\d[A-Z0-9]{3}\d": "ids of proteins",
    r"ENSRNOG\d{11}|RGD:?\d+": "genes of rat",
    r"ENSMMUG\d{11}": "genes of rhesus macaque",
    r"ENSMFAG\d{11}": "genes of crab-eating macaque",
    r"ENSDARG\d{11}|ZDB-GENE-.*": "genes of zebrafish",
    r"ENSSSCG\d{11}": "genes of pig",
    r"ENSGALG\d{11}": "genes of chicken",
    r"FBgn\d{7}": "genes of fruit fly",
    r"WBGene\d{8}": "genes of C. elegans",
    r"AT[1-5CM]G\d{5}": "genes of Arabidopsis",
    r"Y[A-P][LR]\d{3}[CW](-[A-Z])?": "genes of yeast",
    r"ENS[A-Z]{3,4}G\d{11}": "genes of another species than human and mouse",
    r"ILMN_\d+|\d+(_[a-z])?_at": "probes of a microarray",
}


def unknown_names(source: CellSource, found: FoundGenes, summary: str, resolver: GeneResolver) -> InputError:
    """Return the error for names that are hardly known, with what they seem to be."""
    names = found.match.names
    where = f"{source.name}, names like {unknown(found.match, source.gene_totals)}"
    what = f"almost no gene is known: {summary}"
    if _is_transposed(source, resolver):
        return InputError(what, where, _TRANSPOSED, code="genes-not-recognised")
    for pattern, kind in _FOREIGN.items():
        known = re.compile(rf"(?:{pattern})(?:\.\d+)?")
        if sum(known.fullmatch(name) is not None for name in names) > 0.5 * len(names):
            fix = f"these are {kind}" + ("" if ";" in kind else "; give human or mouse gene names")
            return InputError(what, where, fix, code="genes-not-recognised")
    fix = "put gene symbols, Ensembl or Entrez ids into var_names, give --species, or go on with --force"
    return InputError(what, where, fix, code="genes-not-recognised")


_TRANSPOSED = "the names of the cells are genes: the matrix is transposed; give adata.T"


def _is_transposed(source: CellSource, resolver: GeneResolver) -> bool:
    cells = source.obs_names[:_N_TRIED]
    return bool(cells) and _n_genes(resolver, cells, "auto") > 0.5 * len(cells)


def unknown(match: GeneMatch, totals: npt.NDArray[np.float64]) -> str:
    """Return the unknown names with most counts, for messages; ``totals`` (n,) of the names."""
    order = np.argsort(-totals, kind="stable")
    return _shown([match.names[i] for i in order if match.gene_ids[i] is None])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3])

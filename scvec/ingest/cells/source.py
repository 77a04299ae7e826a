"""Read the cells of a file, a folder or an AnnData object: checked, normalised, in chunks."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base import arrays
from scvec.base.arrays import Packed, blocks, release
from scvec.base.errors import InputError, ScvecError
from scvec.base.resources import Closes, parse_memory, read_ahead
from scvec.base.results import count_text
from scvec.base.species import known_species
from scvec.ingest.cells.expression import (
    Codes,
    ExpressionState,
    MatrixProfile,
    linearise,
    normalize,
    row_sums,
)
from scvec.ingest.cells.label_columns import labels
from scvec.ingest.cells.matrix import MatrixReader, is_only_here, open_matrix
from scvec.ingest.cells.readers import Contents, contents_of, named
from scvec.ingest.cells.readers.anndata import contents_of_adata
from scvec.ingest.cells.values import check_values, detect_state, mixed_message, odd_rows, scale_codes

if TYPE_CHECKING:
    from anndata import AnnData


__all__ = [
    "CellSource",
    "Choice",
    "FileRows",
    "RowsRecipe",
    "choose",
    "gene_name_candidates",
    "genes_of_one_genome",
    "is_gene",
    "labels",
    "parse_memory",
    "recipe_of",
]

# Values of var['feature_types'] and similar columns that are not genes. All others are kept, because
# cellxgene writes biotypes there (protein_coding, lncRNA).
_OTHER_TYPES = {
    "antibody capture",
    "antibody",
    "protein",
    "protein expression",
    "proteins",
    "adt",
    "hto",
    "crispr guide capture",
    "multiplexing capture",
    "antigen capture",
    "custom",
    "peaks",
    "spike-in",
}
_TYPE_COLUMNS = ("feature_types", "feature_type", "feature_biotype", "modality")
_OTHER_NAMES = re.compile(
    r"_?Total-?Seq-?[ABCD]?\d*$|^(ADT|HTO|CITE|AB|prot)[_-]|^(ADT|HTO|prot|protein|sgRNA|gRNA|CRISPR):|^Hash-?tag[_-]?\w*$"
    r"|([_.-](AB|ADT|HTO|prot|protein)|[ _.-]?\((ADT|HTO|AB|protein)\)|\|pAbO)$"
    r"|^ERCC-\d{5}$|^chr[\dXYM]+[:-]\d+-\d+$"
    # Summary rows of HTSeq and STAR: reads that were not assigned to a gene.
    r"|^(__)?(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)$"
    r"|^N_(unmapped|multimapping|noFeature|ambiguous)$",
    re.IGNORECASE,
)
#: Names of antibodies against surface proteins. Without a feature type, their rows follow the genes.
_ANTIBODY = re.compile(
    r"(anti[ _.-]?)?(human|mouse)?[ _.-]?"
    r"(CD\d+[A-Za-z]*|HLA[-_.]?[A-Z]+|TCR.*|Ig[GMDAK].*|.*isotype.*|PD-?L?1)([ _./-].*)?",
    re.IGNORECASE,
)
_MOST_ANTIBODIES = 400
_GENOMES = "|".join(
    [
        *(rf"{key}|{'|'.join(one.genomes) or '(?!)'}" for key, one in known_species().items()),
        r"GRC[hm]\d+|hg\d+|mm\d+",
    ]
)
#: Genome prefixes: of all names, and of names of several genomes, as R packages write them too.
_GENOME, _JOINED = (
    re.compile(rf"({_GENOMES})(?:-20\d\d-[A-Z])?[{marks}]{{1,6}}(?=\S)", re.IGNORECASE)
    for marks in ("_", "_.:|-")
)
_NAME_COLUMNS = re.compile(
    r"^(gene|feature|hgnc|mgi|ensembl|ensg|entrez|symbol)[ _.-]?"
    r"(s|ids?|names?|symbols?|gene[ _.-]?ids?|short_name)?$"
    r"|^(original_gene_symbols|gene_symbols-\d|gene_ids-\d|geneid|genename|name|names|id|ids|features)$",
    re.IGNORECASE,
)


def is_gene(names: pd.Index[str], var: pd.DataFrame) -> tuple[npt.NDArray[np.bool_], str]:
    """Return a mask (n_features,) of the features that are genes, and a note (empty if all are)."""
    keep = np.ones(len(names), dtype=bool)
    why: Counter[str] = Counter()
    for column in _TYPE_COLUMNS:
        if column in var.columns:
            types = var[column].astype(str)
            other = types.str.lower().isin(_OTHER_TYPES).to_numpy() & keep
            why.update(types[other])
            keep &= ~other
    by_name = np.fromiter((_OTHER_NAMES.search(name) is not None for name in names), bool, len(names)) & keep
    why.update({"by their names": int(by_name.sum())})
    keep &= ~by_name
    at = np.flatnonzero(keep)
    unmarked = at[_first_antibody(names[at]) :]
    why.update({"antibodies by their names": len(unmarked)})
    keep[unmarked] = False
    if keep.all():
        return keep, ""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in why.most_common(3) if n)
    example = names[int(np.flatnonzero(~keep)[0])]
    dropped = count_text(int((~keep).sum()), "non-gene feature")
    return keep, f"dropped {dropped} ({kinds}), such as {example}"


def _first_antibody(names: pd.Index[str]) -> int:
    """Return the start of the antibodies at the end of the features; the number of features if none."""
    n, first, hits = len(names), len(names), 0
    for i in range(n - 1, max(-1, n - 1 - _MOST_ANTIBODIES), -1):
        if _ANTIBODY.fullmatch(names[i]) is not None:
            hits += 1
            if hits >= 0.6 * (n - i):
                first = i
    # A panel of immune genes may consist mostly of names like these.
    return first if n - first >= 5 and n > 4 * (n - first) else n


def genes_of_one_genome(
    names: list[str], var: pd.DataFrame, totals: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], list[str], str]:
    """Keep the genes of the genome with the most counts, if genomes are mixed, and remove its prefix.

    Parameters
    ----------
    totals
        (n_features,) counts of each feature in a sample of the cells.

    Returns
    -------
    Mask (n_features,), names without a genome prefix, and a note (empty if there is one genome).
    """
    some = names[:: max(1, len(names) // 1000)]  # matching all names takes as long as a tenth of reading
    tried = names if any(map(_JOINED.match, some)) else [""] * len(names)
    parts = [_JOINED.match(name) for name in tried]
    often = Counter(match[1] for match in parts if match)
    if often and sum(n >= 0.01 * len(names) for n in often.values()) < 2:
        parts = [_GENOME.match(name) for name in names]
    prefixes = [match[1] if match else "" for match in parts]
    genome = np.array(prefixes, dtype=object)
    if not any(prefixes) and "genome" in var.columns:
        genome = var["genome"].astype(str).to_numpy(dtype=object)
    counts = {str(g): float(totals[genome == g].sum()) for g in dict.fromkeys(genome) if g and g != "nan"}
    bare = [name[match.end() :] if match else name for name, match in zip(names, parts, strict=True)]
    if not counts:
        return np.ones(len(names), dtype=bool), bare, ""
    most = max(counts, key=lambda g: counts[g])
    keep = (genome == most) | (genome == "") | (genome == "nan")
    if keep.all():
        return keep, bare, ""
    percent = 100 * counts[most] / max(sum(counts.values()), 1e-300)
    note = (
        f"the genes are from several genomes ({', '.join(sorted(counts))}): kept the genes of {most}, which "
        f"have {percent:.1f}% of the counts, and dropped {int((~keep).sum()):,} others"
    )
    return keep, bare, note


def gene_name_candidates(names: list[str], var: pd.DataFrame) -> dict[str, list[str]]:
    """Return the columns that may hold the gene names: first the index (``"index"``), then columns
    of var with a known name for genes, then other columns of text.

    Each list has one entry per gene; missing values are empty strings.
    """
    found = {"index": list(names)}
    other: dict[str, list[str]] = {}
    for column in var.columns:
        values, known = var[column], _NAME_COLUMNS.match(str(column)) is not None
        if values.dtype.kind == "b" or not (known or _is_text(values)):
            continue
        if values.dtype.kind == "f":
            whole = np.isfinite(values) & (values == np.rint(values))
            texts = [str(int(v)) if ok else "" for v, ok in zip(values, whole, strict=True)]
        else:
            texts = ["" if missing else str(v) for v, missing in zip(values, values.isna(), strict=True)]
        # Biotypes, chromosomes and flags repeat; gene names rarely do.
        if any(texts) and (known or len(set(texts)) > 0.5 * len(texts)):
            # A column itself may be called "index".
            (found if known else other)["index " if column == "index" else str(column)] = texts
    return found | other


def _is_text(values: pd.Series[Any]) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.cat.categories.to_series()
    return pd.api.types.is_string_dtype(values.dtype) or values.dtype == object


_SAMPLE_BLOCKS, _SAMPLE_ROWS = 8, 128
#: Fraction of the memory (1/16) for a block of rows. Up to four blocks exist at a time
#: (:mod:`scvec.base.resources`), each with copies several times as large.
_SHARE = 16
#: Rows with a scale unlike the others that are examined together.
_ODD_ROWS = 1024
_KIND_RANK = {
    kind: rank
    for rank, kind in enumerate(
        ("counts", "estimated_counts", "log1p_cp10k", "linear", "log", "sqrt", "arcsinh")
    )
}
#: Names of layers that hold counts, and of layers that hold only part of the counts or other values.
_KNOWN_LAYERS = re.compile(
    r"layers/(x[._-]?)?(raw|umis?|counts?|(raw|umi|gene)[._-]?counts?|counts?[._-]?raw)", re.IGNORECASE
)
_LAST_LAYERS = re.compile(
    r"ambig|ambient|anti[._-]?sense|binar|background|contam|empty|noise|mask|doublet|multi|rank|simul|shuffl"
    r"|permut",
    re.IGNORECASE,
)
_MAIN = ("raw", "X")
_SCALED_FIX = "give the file from before sc.pp.scale, or store the counts in layers['counts'] or raw"


@dataclass
class Choice:
    """The chosen matrix, after all its rows were read, restricted to the genes that are kept.

    The attributes are those of :class:`scvec.ingest.cells.source.CellSource`.
    """

    reader: MatrixReader
    state: ExpressionState
    var: pd.DataFrame
    var_names: list[str]
    feature_mask: npt.NDArray[np.bool_]
    totals: npt.NDArray[np.float64]
    n_genes_detected: npt.NDArray[np.int64]
    gene_totals: npt.NDArray[np.float64]
    codes: Codes | None = None


@dataclass
class _Look:
    """A matrix of which a sample of rows was read."""

    place: str
    reader: MatrixReader
    var: pd.DataFrame
    profile: MatrixProfile
    state: ExpressionState
    notes: tuple[str, ...]

    @property
    def usable(self) -> bool:
        return self.state.kind != "scaled" and self.profile.n_values > 0

    @property
    def is_sure(self) -> bool:
        """Whether the scale is certain, so that other layers need not be examined."""
        return self.state.kind not in ("sqrt", "arcsinh") and not self.state.candidates

    @property
    def total(self) -> float:
        """Sum of the sampled rows, which are the same cells in every matrix."""
        return float(self.profile.sample().sum())


def choose(
    contents: Contents, layer: str | None, memory: int, values: str = "auto"
) -> tuple[Choice, tuple[str, ...]]:
    """Choose the best usable matrix and read it once.

    The order is: counts, log1p CP10k, other linear values, other logarithms. A matrix with less than half
    the genes of another usable one (variable genes only) comes after it, because the depth of a cell is
    unknown if genes are missing. Layers that are not named as counts are examined only if no other matrix is
    usable with a certain scale. Among layers of counts, the one with the largest sum is used; layers of
    ambiguous, ambient or antisense reads and layers of 0 and 1 come last.

    Parameters
    ----------
    layer
        The only matrix to use, or None.
    values
        The scale, if the user gave it (:data:`scvec.ingest.cells.values.VALUES`). For scales other than
        counts, X comes first.

    Returns
    -------
    The choice, and notes about the choice.

    Raises
    ------
    InputError
        If no matrix is usable, or the best one holds NaN, infinite or impossible values, or cells on
        several scales of which one is unknown.
    """
    contents.need_values()
    looks: list[_Look] = []
    rounds = _rounds(contents, layer, values)
    for number, places in enumerate(rounds, 1):
        looks += [_look(contents, place, memory, values) for place in places]
        usable = [look for look in looks if look.usable]
        if number < len(rounds) and values == "auto" and not any(look.is_sure for look in usable):
            continue
        for look in _ranked(usable):
            choice, notes = _read_all(contents, look, look.reader.rows_within(memory // _SHARE), values)
            if choice is not None:
                if choice.codes is not None:
                    choice = _with_numbers(choice, contents)
                return choice, (*_passed_over(look, looks), choice.state.message, *look.notes, *notes)
    raise _no_usable(contents, looks, memory)


def _rounds(contents: Contents, layer: str | None, values: str) -> list[list[str]]:
    if layer is not None:
        for name in (f"layers/{layer}", layer):
            if name in contents.places:
                return [[name]]
        names = [name.removeprefix("layers/") for name in contents.places]
        near = difflib.get_close_matches(layer, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        what = f"the file has no layer '{layer}'"
        raise InputError(what, contents.name, f"{hint}it has: {', '.join(names[:12])}", code="unknown-layer")
    if values not in ("auto", "counts"):
        return [
            [place] for place in sorted(contents.places, key=lambda place: (place != "X", place != "raw"))
        ]
    known = sorted(
        (place for place in contents.places if _KNOWN_LAYERS.fullmatch(place)),
        key=lambda place: (place != "layers/counts", len(place), place),
    )
    main = [place for place in (*known, "raw", "X") if place in contents.places]
    return [main, [place for place in contents.places if place not in main]]


def _look(contents: Contents, place: str, memory: int, values: str) -> _Look:
    """Open a matrix and read a sample of its rows."""
    var, notes = contents.places[place].var()
    n_obs, n_vars = contents.n_obs, len(var)
    if n_vars == 0:
        raise InputError(
            "there are no genes", f"{contents.name} ({place})", "give a file with genes", code="no-genes"
        )
    reader = open_matrix(contents.places[place].item, f"{contents.name} ({place})", n_obs, n_vars, memory)
    profile = MatrixProfile()
    rows = min(_SAMPLE_ROWS, -(-n_obs // _SAMPLE_BLOCKS))
    for start in np.unique(np.linspace(0, n_obs - rows, _SAMPLE_BLOCKS).astype(int)):
        profile.add(reader.rows(int(start), int(start) + rows), int(start))
    return _Look(place, reader, var, profile, _state(contents, place, profile, values), notes)


def _state(contents: Contents, place: str, profile: MatrixProfile, values: str) -> ExpressionState:
    try:
        return detect_state(profile, place, values)
    except InputError as error:
        raise InputError(error.what, f"{contents.name} ({place})", error.fix, code=error.code) from error


def _ranked(looks: list[_Look]) -> list[_Look]:
    largest = max((look.reader.shape[1] for look in looks), default=0)

    def rank(look: _Look) -> tuple[bool, bool, int, bool, bool, float]:
        counts = look.state.kind == "counts"
        part = _LAST_LAYERS.search(look.place) is not None or (counts and look.profile.maximum == 1)
        known = look.place in ("raw", "X") or _KNOWN_LAYERS.fullmatch(look.place) is not None
        return (
            2 * look.reader.shape[1] < largest,
            part,
            _KIND_RANK[look.state.kind],
            look.place == "X" and counts,
            not known,
            0.0 if known else -look.total,
        )

    return sorted(looks, key=rank)


def _read_all(
    contents: Contents, look: _Look, step: int, values: str
) -> tuple[Choice | None, tuple[str, ...]]:
    """Read every row, ``step`` at a time; None if the sample was usable but the whole matrix is not."""
    state = look.state
    # The sample may miss the scale of a few cells. The first full pass finds them, the next one uses them.
    for _ in range(3):
        mask, names, notes = _genes(look, state, contents)
        choice = _empty_choice(look, state, mask, names)
        profile = look.profile.same_sample()
        _fill(choice, profile, step, judged=values == "auto")
        if profile.n_nonfinite:
            raise _not_finite(contents, look.place, profile, step)
        seen, look.profile = look.profile, profile
        if profile.tells_more_than(seen):
            look.state = _state(contents, look.place, profile, values)
        if not look.usable:
            return None, ()
        choice.state = look.state
        if look.state.rule == state.rule:
            break
        state = look.state
    return choice, notes


def _empty_choice(
    look: _Look, state: ExpressionState, mask: npt.NDArray[np.bool_], names: list[str]
) -> Choice:
    n_obs, genes = look.reader.shape[0], np.flatnonzero(mask)
    return Choice(
        look.reader,
        state,
        look.var.iloc[genes],
        [names[g] for g in genes],
        mask,
        arrays.zeros_of_cells(n_obs, np.float64),
        arrays.zeros_of_cells(n_obs, np.int64),
        np.zeros(len(genes)),
        arrays.zeros_of_cells(n_obs, np.uint8) if state.others else None,
    )


def _fill(choice: Choice, profile: MatrixProfile, step: int, *, judged: bool) -> None:
    """Read every row once to fill totals and a profile, which ``judged`` limits to rows on another scale."""
    reader, state, mask = choice.reader, choice.state, choice.feature_mask
    genes = np.flatnonzero(mask)
    reader.n_unsorted = reader.n_duplicates = 0
    most, counts = profile.n_sampled + _ODD_ROWS, state.kind == "counts"
    for a, block in read_ahead(lambda: _blocks(reader, step)):
        profile.add(block, a, keep=0)
        if profile.n_nonfinite or profile.n_negative:
            continue
        b = a + block.shape[0]
        codes = scale_codes(block, state) if choice.codes is not None else None
        linear = linearise(block, state, codes)
        if choice.codes is not None and codes is not None:
            choice.codes[a:b] = codes
            arrays.release(choice.codes)
        sums = row_sums(linear)
        one_scale = judged and codes is None and not (counts and profile.all_integer)
        if one_scale and (odd := odd_rows(block, linear, sums, state)).any():
            profile.remember(block[np.flatnonzero(odd)], most)
        if not mask.all():
            linear = linear[:, genes]
            sums = row_sums(linear)
        choice.totals[a:b] = sums
        choice.n_genes_detected[a:b] = np.diff(linear.indptr)
        arrays.release(choice.totals)
        arrays.release(choice.n_genes_detected)
        choice.gene_totals += np.bincount(linear.indices, weights=linear.data, minlength=len(genes))


def _blocks(reader: MatrixReader, step: int) -> Iterator[tuple[int, sp.csr_matrix[Any]]]:
    """Yield all rows in blocks of ``step``, each with the number of its first row."""
    for a in range(0, reader.shape[0], step):
        yield a, reader.rows(a, min(a + step, reader.shape[0]))


def _genes(
    look: _Look, state: ExpressionState, contents: Contents
) -> tuple[npt.NDArray[np.bool_], list[str], tuple[str, ...]]:
    mask, note = is_gene(look.var.index, look.var)
    sample = linearise(look.profile.sample(), state)
    weights = np.where(mask[sample.indices], sample.data, 0.0)
    totals = np.bincount(sample.indices, weights=weights, minlength=len(mask)).astype(np.float64)
    one_genome, names, genome_note = genes_of_one_genome(list(look.var.index), look.var, totals)
    mask = mask & one_genome
    if not mask.any():
        raise InputError(
            f"there are no genes: {note or genome_note}",
            f"{contents.name} ({look.place})",
            "give a file with gene expression; this one has only peaks, proteins or tags",
            code="no-genes",
        )
    return mask, names, tuple(n for n in (note, genome_note) if n)


def _with_numbers(choice: Choice, contents: Contents) -> Choice:
    """Return the choice with a message about the number of cells on each scale."""
    codes = np.asarray(choice.codes)
    numbers = np.bincount(codes, minlength=len(choice.state.scales)).tolist()
    if sum(n > 0 for n in numbers) == 1:
        return replace(choice, state=replace(choice.state.scales[int(codes[0])], others=()), codes=None)
    first = [contents.names[int(np.argmax(codes == k))] for k in range(len(numbers))]
    return replace(choice, state=replace(choice.state, message=mixed_message(choice.state, numbers, first)))


def _passed_over(chosen: _Look, looks: list[_Look]) -> list[str]:
    """Return notes: why other matrices were not used, and problems of the chosen one."""
    largest = max(look.reader.shape[1] for look in looks if look.usable)
    notes = []
    for look in looks:
        if look is chosen:
            continue
        if look.profile.n_values == 0:
            notes.append(f"did not use {look.place}: every value is zero")
        elif not look.usable:
            notes.append(f"did not use {look.place}: it has negative values, so it was scaled or corrected")
        elif 2 * look.reader.shape[1] < largest:
            notes.append(
                f"did not use {look.place}: it has only {look.reader.shape[1]:,} of {largest:,} genes"
            )
        elif look.place == "layers/counts" and look.state.kind != "counts":
            notes.append("did not use layers/counts: its values are not counts")
    others = [look.place for look in looks if look.usable and look is not chosen and look.place not in _MAIN]
    if chosen.place not in _MAIN and not _KNOWN_LAYERS.fullmatch(chosen.place):
        of = f" (the others: {', '.join(others[:5])})" if others else ""
        notes.append(f"used {chosen.place}: it has the most counts of the usable layers{of}")
    if chosen.state.kind == "counts" and chosen.profile.maximum == 1:
        notes.append(
            "warning: all values are 0 or 1; cell types are hard to distinguish without expression levels"
        )
    return notes


def _not_finite(contents: Contents, place: str, profile: MatrixProfile, step: int) -> InputError:
    cell = contents.names[profile.first_nonfinite]
    values = count_text(profile.n_nonfinite, "NaN or infinite value")
    fix = "use the counts, or find the cause (a division by zero, a failed join)"
    if _misses_genes(contents, place, profile.first_nonfinite):
        fix = (
            "cells miss the same genes, as after a join of dense matrices: join with fill_value=0 "
            "(anndata.concat); scvec leaves the genes out that a sample did not measure"
        )
    sound = [other for other in contents.places if other != place and _is_sound(contents, other, step)]
    if sound:
        fix = f"give --layer {sound[0].removeprefix('layers/')}, which has none; or {fix}"
    return InputError(
        f"{place} holds {values}, the first in cell '{cell}'",
        f"{contents.name} ({place})",
        fix,
        code="values-not-finite",
    )


def _misses_genes(contents: Contents, place: str, first: int) -> bool:
    """Return whether the first two cells with NaN have it in the same genes, ten or more."""
    var, _ = contents.places[place].var()
    reader = open_matrix(contents.places[place].item, place, contents.n_obs, len(var), 2**26)
    rows = reader.rows(first, min(first + 64, contents.n_obs))
    gone = [set(row.indices[np.isnan(row.data)].tolist()) for row in rows]
    gone = [genes for genes in gone if genes][:2]
    return len(gone) == 2 and gone[0] == gone[1] and len(gone[0]) >= 10


def _is_sound(contents: Contents, place: str, step: int) -> bool:
    """Return whether all values of a matrix are usable."""
    profile = MatrixProfile()
    try:
        var, _ = contents.places[place].var()
        memory = step * len(var) * 8
        reader = open_matrix(contents.places[place].item, place, contents.n_obs, len(var), memory)
        for a, block in _blocks(reader, step):
            profile.add(block, a)
        usable = detect_state(profile, place).kind != "scaled"
    except ScvecError:
        return False
    return usable and not profile.n_nonfinite and profile.n_values > 0


def _no_usable(contents: Contents, looks: list[_Look], memory: int) -> InputError:
    look = next((look for look in looks if look.place == "X"), looks[0])
    where = f"{contents.name} ({look.place})"
    if look.profile.n_values == 0:
        return InputError(
            "every value is zero", where, "give a file with expression values", code="no-values"
        )
    profile = look.profile.same_sample()
    for a, block in _blocks(look.reader, look.reader.rows_within(memory // _SHARE)):
        profile.add(block, a, keep=0)
    if profile.all_integer:
        cell = contents.names[profile.first_negative]
        what = (
            f"{look.place} holds {count_text(profile.n_negative, 'negative count')} "
            f"(down to {profile.minimum:,.0f}), "
            f"the first in cell '{cell}'"
        )
        return InputError(
            what,
            where,
            "counts cannot be negative: give the original counts",
            code="values-not-counts",
        )
    others = [place.removeprefix("layers/") for place in contents.places if place != look.place]
    tried = {seen.place.removeprefix("layers/") for seen in looks}
    untried = [place for place in others if place not in tried]
    more = f"; or use another matrix of the file: --layer {' or '.join(untried[:5])}" if untried else ""
    what = f"{look.place} holds scaled or corrected values (negative, down to {profile.minimum:.3g})"
    return InputError(what, where, _SCALED_FIX + more, code="values-not-counts")


# Columns of obs that hold the sample of a cell.
_BATCH = re.compile(
    r"(batch|sample|donor|dataset|study|library)([ _.-]?(id|name|key|label))?|orig[._]ident", re.IGNORECASE
)


@dataclass(frozen=True)
class RowsRecipe:
    """All that another process needs to read cells like :class:`CellSource`, without a first pass.

    Attributes
    ----------
    path
        The file, absolute.
    size, mtime_ns
        Size and time of the file, to detect another file of the same name.
    state, feature_mask, totals, codes
        The attributes of the source.
    """

    path: str
    size: int
    mtime_ns: int
    state: ExpressionState
    feature_mask: npt.NDArray[np.bool_]
    totals: npt.NDArray[np.float64]
    codes: Codes | None = None

    def is_here(self) -> bool:
        """Return whether the same file exists on this machine."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


def recipe_of(source: CellSource) -> RowsRecipe | None:
    """Return how another process can read a source; None if the cells must be sent instead.

    None for AnnData objects in memory, for CSC matrices, which each process would have to transpose, and for
    folders, whose files cannot be compared cheaply.
    """
    if (
        source.path is None
        or source.state.kind == "vectors"
        or is_only_here(source.reader)
        or not os.path.isfile(source.path)
    ):
        return None
    found = os.stat(source.path)
    return RowsRecipe(
        os.path.abspath(source.path),
        found.st_size,
        found.st_mtime_ns,
        source.state,
        source.feature_mask,
        np.asarray(source.totals),
        None if source.codes is None else np.asarray(source.codes),
    )


class FileRows:
    """The cells of a file that is read by a recipe.

    Parameters
    ----------
    memory
        Bytes that reading may use.

    Raises
    ------
    InputError
        If the file cannot be read any more.
    """

    def __init__(self, recipe: RowsRecipe, memory: int) -> None:
        self._recipe = recipe
        contents = contents_of(recipe.path, memory)
        self.close = contents.close
        place = recipe.state.where
        shape = len(recipe.totals), len(recipe.feature_mask)
        self._reader = open_matrix(contents.places[place].item, f"{contents.name} ({place})", *shape, memory)
        self._genes = None if recipe.feature_mask.all() else np.flatnonzero(recipe.feature_mask)

    def rows(self, first: int, last: int) -> sp.csr_matrix[Any]:
        """Return cells ``first`` to ``last`` like ``CellSource.chunks``, (n, n_vars) CSR float32."""
        block = self._reader.rows(first, last)
        kept = block if self._genes is None else block[:, self._genes]
        recipe = self._recipe
        codes = None if recipe.codes is None else recipe.codes[first:last]
        return normalize(kept, recipe.state, recipe.totals[first:last], codes)


# Rows of a chunk with a smaller gap are read together, and the rows between them are dropped.
_GAP = 64
#: A barcode with fewer genes is probably not a cell. The warning needs so many barcodes, and this fraction
#: of them.
_POOR, _MANY, _MOSTLY = 50, 1000, 0.8


class CellSource(Closes):
    """Labelled or new cells, in one form for all file formats.

    Open with :meth:`open`. All attributes of genes are over the genes that are kept, in file order;
    ``feature_mask`` marks them among the features of the file.

    Attributes
    ----------
    path
        The file, or None for an AnnData object in memory.
    name
        Name for messages.
    n_obs, n_vars
        Number of cells, and of genes kept.
    names
        Names of the cells, unique, in a compact form.
    batches
        The columns of obs whose names are those of samples, with row numbers as index.
    var
        Table of the genes kept.
    var_names
        Names of the genes kept, unchanged: they may repeat.
    feature_mask
        (n_features,) bool over the features of the matrix used.
    state
        The scale of the values.
    notes
        Lines for the user, in order.
    totals
        (n_obs,) float64 counts of each cell over its genes (sums of linear values if there are no counts).
    n_genes_detected
        (n_obs,) int64 number of genes above zero in each cell.
    gene_totals
        (n_vars,) float64 counts of each gene over all cells (linear values if there are no counts).
    codes
        (n_obs,) uint8 numbers of the cells' scales in ``state.scales``; None if all are on one.
    memory
        Bytes that may be used.
    """

    path: Path | None
    name: str
    names: Packed
    batches: pd.DataFrame
    var: pd.DataFrame
    var_names: list[str]
    feature_mask: npt.NDArray[np.bool_]
    state: ExpressionState
    notes: list[str]
    totals: npt.NDArray[np.float64]
    n_genes_detected: npt.NDArray[np.int64]
    gene_totals: npt.NDArray[np.float64]
    codes: Codes | None

    def __init__(
        self,
        contents: Contents,
        *,
        layer: str | None,
        memory: int,
        columns: bool = True,
        values: str = "auto",
    ) -> None:
        self.path, self.name, self.memory = contents.path, contents.name, memory
        self._contents, self._layer, self._values = contents, layer, values
        self.batches = contents.table[[c for c in contents.table.columns if _BATCH.fullmatch(str(c))]]
        if not columns:
            contents.table = contents.table[[]]
        self._table, self.n_obs = contents.table, contents.n_obs
        self.names, self._renamed = unique_names(contents.names)
        self.use(layer)

    def use(self, place: str | None, *why: str) -> None:
        """Switch to another matrix of the file, or to the best one if ``place`` is None, and read it once.

        Parameters
        ----------
        why
            Notes about the reason.

        Raises
        ------
        InputError
            If its values cannot be used; the source is then unchanged.
        """
        choice, chosen = choose(self._contents, place, self.memory, self._values)
        self._reader, self.state = choice.reader, choice.state
        self.var, self.var_names, self.feature_mask = choice.var, choice.var_names, choice.feature_mask
        self.totals, self.gene_totals, self.codes = choice.totals, choice.gene_totals, choice.codes
        self.n_genes_detected = choice.n_genes_detected
        self.notes = [*self._contents.notes, *self._renamed, *chosen, *why, *_oddities(choice)]

    def other_names(self) -> dict[str, dict[str, list[str]]]:
        """Return the gene names (:meth:`gene_name_candidates`) of the other matrices that may be used.

        Empty if the user chose a layer.
        """
        if self._layer is not None:
            return {}
        places = {name: place for name, place in self._contents.places.items() if name != self.state.where}
        tables = {name: place.var()[0] for name, place in places.items()}
        return {name: gene_name_candidates(list(var.index), var) for name, var in tables.items()}

    @classmethod
    def open(
        cls,
        path_or_adata: str | os.PathLike[str] | AnnData,
        *,
        layer: str | None = None,
        memory: str | int | None = None,
        columns: bool = True,
        values: str = "auto",
    ) -> CellSource:
        """Check a file or object, choose a matrix, and read every value once.

        Parameters
        ----------
        path_or_adata
            A file or folder of any format that has a reader (:mod:`scvec.ingest.cells.readers`), or an
            AnnData object (also a backed one); never changed.
        layer
            Name of the matrix: a layer, ``"X"`` or ``"raw"``. Default: the best one (:func:`choose`).
        memory
            Bytes that may be used, as a number or like ``"4G"``. Default: half of the free memory.
        columns
            Whether to keep the columns of ``obs``; else they are only checked.
        values
            The scale of the values (:data:`scvec.ingest.cells.values.VALUES`); ``auto`` detects it.

        Raises
        ------
        InputError
            If the file or its values cannot be used.
        ResourceError
            If the file needs more than ``memory``.
        """
        check_values(values)
        limit = parse_memory(memory)
        options: dict[str, Any] = {"layer": layer, "memory": limit, "columns": columns, "values": values}
        if not isinstance(path_or_adata, str | os.PathLike):
            return cls(contents_of_adata(path_or_adata), **options)
        contents = contents_of(path_or_adata, limit)
        try:
            return cls(contents, **options)
        except BaseException:
            contents.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._contents.close()

    @property
    def reader(self) -> MatrixReader:
        """The matrix used, over all features of the file."""
        return self._reader

    @property
    def obs_names(self) -> list[str]:
        """Names of the cells, unique."""
        return list(self.names.to_array())

    @property
    def obs(self) -> pd.DataFrame:
        """The table of the cells, with a unique index; a new table on each access."""
        return named(self._table, self.names)

    @property
    def genome(self) -> str:
        """Genome of the kept genes, of their prefix or of ``var['genome']``; empty if neither tells it."""
        for given, name in zip(self.var.index, self.var_names, strict=True):
            if given != name and (prefix := _JOINED.match(given)) is not None:
                return prefix[1]
        genomes = set(self.var["genome"].dropna().astype(str)) if "genome" in self.var.columns else set()
        return genomes.pop() if len(genomes) == 1 else ""

    @property
    def n_vars(self) -> int:
        """Number of genes kept."""
        return len(self.var_names)

    @property
    def chunk_size(self) -> int:
        """Number of cells of a chunk: 2,048, or fewer if memory is short."""
        return self._reader.rows_within(self.memory // _SHARE)

    def take_for(self, state: ExpressionState) -> None:
        """Replace the scale, if only a comparison with the reference shows it."""
        self.notes = [state.message if note == self.state.message else note for note in self.notes]
        self.state = state

    def stored_rows(self, rows: npt.NDArray[np.integer[Any]]) -> sp.csr_matrix[Any]:
        """Return the stored values of cells, (n, n_vars) CSR float64."""
        return self._genes_of(self._take(np.asarray(rows, np.int64)))

    def gene_name_candidates(self) -> dict[str, list[str]]:
        """Return the lists of possible gene names: ``"index"`` (``var_names``), then columns of ``var``."""
        return gene_name_candidates(self.var_names, self.var)

    def chunks(
        self, size: int | None = None, rows: npt.NDArray[np.integer[Any]] | None = None
    ) -> Iterator[sp.csr_matrix[Any]]:
        """Yield normalised cells, (n, n_vars) CSR float32 log1p CP10k with n <= ``size``.

        Parameters
        ----------
        size
            Cells in a chunk. Default: :attr:`chunk_size`. The values of a cell do not depend on it.
        rows
            Numbers of the cells, in the order to return. Default: all, in file order. Ascending numbers are
            fastest.
        """
        size = self.chunk_size if size is None else size
        if size < 1:
            raise ValueError(f"size must be positive, not {size}")
        if rows is not None and len(rows) and (np.min(rows) < 0 or np.max(rows) >= self.n_obs):
            raise IndexError(f"rows must lie in 0 to {self.n_obs - 1}")
        for some in blocks(self.n_obs if rows is None else len(rows), size):
            part = np.arange(some.start, some.stop) if rows is None else np.asarray(rows[some], np.int64)
            totals = self.totals[part]
            codes = None if self.codes is None else self.codes[part]
            release(self.totals)
            yield normalize(self._genes_of(self._take(part)), self.state, totals, codes)

    def _take(self, rows: npt.NDArray[np.int64]) -> sp.csr_matrix[Any]:
        """Read rows in any order, with few reads of contiguous rows."""
        ascending, back = np.unique(rows, return_inverse=True)
        parts = []
        most = max(self.chunk_size, len(ascending))
        for near in np.split(ascending, np.flatnonzero(np.diff(ascending) > _GAP) + 1):
            # Limit the rows that are read between the requested ones.
            for stretch in np.split(near, np.flatnonzero(np.diff((near - near[0]) // most)) + 1):
                first, last = int(stretch[0]), int(stretch[-1]) + 1
                block = self._reader.rows(first, last)
                parts.append(block if len(stretch) == last - first else block[stretch - first])
        block = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")
        return block if np.array_equal(back, np.arange(len(ascending))) else block[back]

    def _genes_of(self, block: sp.csr_matrix[Any]) -> sp.csr_matrix[Any]:
        return block if self.feature_mask.all() else block[:, np.flatnonzero(self.feature_mask)]


def unique_names(names: Packed) -> tuple[Packed, tuple[str, ...]]:
    """Return unique cell names, and a note if some had to be changed."""
    if names.all_differ():
        return names, ()
    from anndata.utils import make_index_unique

    index = pd.Index(names.to_array(), dtype=object)
    repeated = count_text(int(index.duplicated().sum()), "repeated cell name")
    return Packed(make_index_unique(index)), (f"made {repeated} unique with -1, -2, ...",)


def _oddities(choice: Choice) -> list[str]:
    """Return notes about problems that reading every value has shown."""
    reader, notes = choice.reader, []
    if reader.n_unsorted:
        notes.append(f"sorted the gene numbers within {count_text(reader.n_unsorted, 'cell')}")
    if reader.n_duplicates:
        notes.append(f"summed {count_text(reader.n_duplicates, 'value')} stored twice for one cell and gene")
    repeated = len(choice.var_names) - len(set(choice.var_names))
    if repeated:
        notes.append(f"summed the values of {count_text(repeated, 'repeated gene name')}")
    empty = int((choice.n_genes_detected == 0).sum())
    arrays.release(choice.n_genes_detected)
    if empty:
        notes.append(f"{count_text(empty, 'cell')} without counts")
    n = len(choice.n_genes_detected)
    poor = sum(int((choice.n_genes_detected[rows] < _POOR).sum()) for rows in blocks(n))
    arrays.release(choice.n_genes_detected)
    if n >= _MANY and poor > _MOSTLY * n and len(choice.var_names) >= 100 * _POOR:
        notes.append(
            f"warning: {poor / n:.0%} of {n:,} barcodes have fewer than {_POOR} genes. Is this an unfiltered "
            "matrix (raw_feature_bc_matrix)? Give the filtered matrix of cells"
        )
    return notes

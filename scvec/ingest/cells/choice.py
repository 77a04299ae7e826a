"""Choose the matrix of a file whose values can be used, and the genes of it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base import arrays
from scvec.base.errors import InputError, ScvecError
from scvec.base.parallel import read_ahead
from scvec.base.results import count_text
from scvec.ingest.cells.contents import Contents
from scvec.ingest.cells.expression import Codes, ExpressionState, MatrixProfile, linearise, row_sums
from scvec.ingest.cells.matrix import MatrixReader, open_matrix
from scvec.ingest.cells.values import detect_state, mixed_message, odd_rows, scale_codes

__all__ = ["Choice", "choose", "gene_name_candidates", "genes_of_one_genome", "is_gene"]

# Values of var['feature_types'] and its kin that are no genes. Anything else is kept: cellxgene, for one,
# writes biotypes (protein_coding, lncRNA) there.
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
    r"_?Total-?Seq-?[ABCD]?\d*$|^(ADT|HTO|CITE|AB|prot)[_-]|^Hash-?tag[_-]?\w*$"
    r"|([_.-](AB|ADT|HTO|prot|protein)|[ _.-]?\((ADT|HTO|AB|protein)\)|\|pAbO)$"
    r"|^ERCC-\d{5}$|^chr[\dXYM]+[:-]\d+-\d+$"
    # Rows of HTSeq and STAR that sum up reads of no gene.
    r"|^(__)?(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)$"
    r"|^N_(unmapped|multimapping|noFeature|ambiguous)$",
    re.IGNORECASE,
)
#: Names of antibodies, as those of surface proteins; rows of them follow the genes where nothing marks them.
_ANTIBODY = re.compile(
    r"(anti[ _.-]?)?(human|mouse)?[ _.-]?"
    r"(CD\d+[A-Za-z]*|HLA[-_.]?[A-Z]+|TCR.*|Ig[GMDAK].*|.*isotype.*|PD-?L?1)([ _./-].*)?",
    re.IGNORECASE,
)
_MOST_ANTIBODIES = 400
_GENOME = re.compile(r"^(GRCh\d+|hg\d+|human|GRCm\d+|mm\d+|mouse)_{1,6}(?=\S)", re.IGNORECASE)
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
    """Return where a block of antibodies at the end of the features begins; their number if there is none."""
    n, first, hits = len(names), len(names), 0
    for i in range(n - 1, max(-1, n - 1 - _MOST_ANTIBODIES), -1):
        if _ANTIBODY.fullmatch(names[i]) is not None:
            hits += 1
            if hits >= 0.6 * (n - i):
                first = i
    # A panel of immune genes alone may be full of such names.
    return first if n - first >= 5 and n > 4 * (n - first) else n


def genes_of_one_genome(
    names: list[str], var: pd.DataFrame, totals: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], list[str], str]:
    """Keep the genes of the genome with most counts where several are mixed, and strip its prefix.

    Parameters
    ----------
    totals
        (n_features,) counts of each feature, of a sample of the cells.

    Returns
    -------
    Mask (n_features,), names without a genome prefix, and a note (empty where there is one genome).
    """
    prefixes = [match[1] if (match := _GENOME.match(name)) else "" for name in names]
    genome = np.array(prefixes, dtype=object)
    if not any(prefixes) and "genome" in var.columns:
        genome = var["genome"].astype(str).to_numpy(dtype=object)
    shares = {str(g): float(totals[genome == g].sum()) for g in dict.fromkeys(genome) if g and g != "nan"}
    bare = [name[_GENOME.match(name).end() :] if p else name for name, p in zip(names, prefixes, strict=True)]  # type: ignore[union-attr]
    if not shares:
        return np.ones(len(names), dtype=bool), bare, ""
    most = max(shares, key=lambda g: shares[g])
    keep = (genome == most) | (genome == "") | (genome == "nan")
    if keep.all():
        return keep, bare, ""
    share = 100 * shares[most] / max(sum(shares.values()), 1e-300)
    note = (
        f"the genes are of several genomes ({', '.join(sorted(shares))}): kept those of {most}, which hold "
        f"{share:.1f}% of the counts, and dropped {int((~keep).sum()):,} others"
    )
    return keep, bare, note


def gene_name_candidates(names: list[str], var: pd.DataFrame) -> dict[str, list[str]]:
    """Return the columns that may name the genes: the index first (``"index"``), then columns
    of var whose names say so, then other columns of text.

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
        # Biotypes, chromosomes and flags repeat; names hardly do.
        if any(texts) and (known or len(set(texts)) > 0.5 * len(texts)):
            # A column may be called as the index is.
            (found if known else other)["index " if column == "index" else str(column)] = texts
    return found | other


def _is_text(values: pd.Series[Any]) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.cat.categories.to_series()
    return pd.api.types.is_string_dtype(values.dtype) or values.dtype == object


_SAMPLE_BLOCKS, _SAMPLE_ROWS = 8, 128
#: Share of the memory that a block of rows may take while all of it is read once.
_SHARE = 16
#: Rows unlike the others that are looked at together.
_ODD_ROWS = 1024
_KIND_RANK = {
    kind: rank
    for rank, kind in enumerate(
        ("counts", "estimated_counts", "log1p_cp10k", "linear", "log", "sqrt", "arcsinh")
    )
}
#: Layers that hold counts by their names, and those that hold counts of something else or of part of them.
_KNOWN_LAYERS = re.compile(
    r"layers/(x[._-]?)?(raw|umis?|counts?|(raw|umi|gene)[._-]?counts?|counts?[._-]?raw)", re.IGNORECASE
)
_LAST_LAYERS = re.compile(
    r"ambig|ambient|anti[._-]?sense|binar|background|contam|empty|noise|mask|doublet|multi", re.IGNORECASE
)
_MAIN = ("raw", "X")
_SCALED_FIX = "give the file as it was before sc.pp.scale, or keep counts in layers['counts'] or raw"


@dataclass
class Choice:
    """A matrix whose rows were all read, over the genes that are kept.

    Attributes are those of :class:`scvec.ingest.cells.source.CellSource`.
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
    """A matrix of which a sample was read."""

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
        """Whether the scale is known well enough not to look into other layers."""
        return self.state.kind not in ("sqrt", "arcsinh") and not self.state.candidates

    @property
    def total(self) -> float:
        """Sum of the rows looked at, which are the same of every matrix."""
        return float(self.profile.sample().sum())


def choose(
    contents: Contents, layer: str | None, memory: int, values: str = "auto"
) -> tuple[Choice, tuple[str, ...]]:
    """Find the best usable matrix and read it once from end to end.

    Counts are better than log1p CP10k, that than other linear values, and those than other logs; but a
    matrix with less than half the genes of another usable one (variable genes only) comes after it,
    because the depth of a cell cannot be told from part of its genes. Layers without the name of counts are
    looked into only when nothing else can be used, or nothing of which the scale is sure: of those that
    hold counts the one with most is taken, ambiguous, ambient and antisense reads and 0/1 values last.

    Parameters
    ----------
    layer
        The only place to look at, or None.
    values
        What the values are where the user knows (:data:`scvec.ingest.cells.values.VALUES`). Other values than
        counts are looked for in X first.

    Returns
    -------
    The choice, and notes on what was found and why it was taken.

    Raises
    ------
    InputError
        If there is no usable matrix, or the one to use holds NaN, infinite or impossible values, or cells on
        scales of which one is unknown.
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
        what = f"there is no layer '{layer}'"
        raise InputError(
            what, contents.name, f"{hint}there are: {', '.join(names[:12])}", code="unknown-layer"
        )
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
    """Open a matrix and read some rows from all over it."""
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
    """Read every row, ``step`` at a time; None if the whole is of no use although the sample was."""
    state = look.state
    # The sample may lack what a few cells are: seen once, they are known the next time.
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
    """Read every row once into the totals of a choice and into a profile.

    Parameters
    ----------
    judged
        Whether the profile remembers rows that are not on the scale of the others.
    """
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
    """Yield all rows, ``step`` in one go, each block with the number of its first row."""
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
            "give a file with gene expression, not only peaks, proteins or tags",
            code="no-genes",
        )
    return mask, names, tuple(n for n in (note, genome_note) if n)


def _with_numbers(choice: Choice, contents: Contents) -> Choice:
    """Return a choice whose state says how many cells are on each scale."""
    codes = np.asarray(choice.codes)
    numbers = np.bincount(codes, minlength=len(choice.state.scales)).tolist()
    if sum(n > 0 for n in numbers) == 1:
        return replace(choice, state=replace(choice.state.scales[int(codes[0])], others=()), codes=None)
    first = [contents.names[int(np.argmax(codes == k))] for k in range(len(numbers))]
    return replace(choice, state=replace(choice.state, message=mixed_message(choice.state, numbers, first)))


def _passed_over(chosen: _Look, looks: list[_Look]) -> list[str]:
    """Say why other matrices were not taken, and what is odd about the one that was."""
    largest = max(look.reader.shape[1] for look in looks if look.usable)
    told = []
    for look in looks:
        if look is chosen:
            continue
        if look.profile.n_values == 0:
            told.append(f"passed over {look.place}: every value is zero")
        elif not look.usable:
            told.append(f"passed over {look.place}: it holds negative values, so it was scaled or corrected")
        elif 2 * look.reader.shape[1] < largest:
            told.append(f"passed over {look.place}: only {look.reader.shape[1]:,} of {largest:,} genes")
        elif look.place == "layers/counts" and look.state.kind != "counts":
            told.append("passed over layers/counts: its values are not counts")
    others = [look.place for look in looks if look.usable and look is not chosen and look.place not in _MAIN]
    if chosen.place not in _MAIN and not _KNOWN_LAYERS.fullmatch(chosen.place):
        of = f" (the others: {', '.join(others[:5])})" if others else ""
        told.append(f"used {chosen.place}: of the layers that can be used it holds most{of}")
    if chosen.state.kind == "counts" and chosen.profile.maximum == 1:
        told.append("all values are 0 or 1: expression without levels tells types apart poorly")
    return told


def _not_finite(contents: Contents, place: str, profile: MatrixProfile, step: int) -> InputError:
    cell = contents.names[profile.first_nonfinite]
    values = count_text(profile.n_nonfinite, "NaN or infinite value")
    fix = "go back to the counts, or find out where they come from (a division by zero, a failed join)"
    sound = [other for other in contents.places if other != place and _is_sound(contents, other, step)]
    if sound:
        fix = f"--layer {sound[0].removeprefix('layers/')} works; or {fix}"
    return InputError(
        f"{place} holds {values}, the first in cell '{cell}'",
        f"{contents.name} ({place})",
        fix,
        code="values-not-finite",
    )


def _is_sound(contents: Contents, place: str, step: int) -> bool:
    """Return whether all values of a matrix can be used."""
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
            "counts cannot be negative: give them as they came from the counting",
            code="values-not-counts",
        )
    others = [place.removeprefix("layers/") for place in contents.places if place != look.place]
    tried = {seen.place.removeprefix("layers/") for seen in looks}
    untried = [place for place in others if place not in tried]
    more = f"; or use another part of the file: --layer {' or '.join(untried[:5])}" if untried else ""
    what = f"{look.place} holds scaled or corrected values (negative, down to {profile.minimum:.3g})"
    return InputError(what, where, _SCALED_FIX + more, code="values-not-counts")

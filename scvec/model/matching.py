"""Match the genes of a data set to the knowledge base and to a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.backbones import parse_spec
from scvec.base.errors import InputError, StoreError
from scvec.base.resources import read_ahead
from scvec.base.species import OTHER, SPECIES, genome_species, species_key, species_named
from scvec.base.types import Bool, CellChunk, Float32, GeneMatch, Progress, Space, Species, no_progress
from scvec.encoders.obsm import Known
from scvec.encoders.statistics import GeneStatistics, StatisticsAccumulator, most_variable, variability
from scvec.ingest.cells.cell_vectors import VectorSource
from scvec.model.copies import Seen, cell_hashes, gene_keys
from scvec.model.resolvers import (
    OWN_IDS,
    USUAL,
    WARN_SHARE,
    find_genes,
    is_chance,
    unknown,
    unknown_names,
    usual_expression,
)
from scvec.model.storage import encoder_of, genes_of
from scvec.model.unmeasured import gene_sets, missing_notes, without

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from scvec.ingest.cells.source import CellSource
    from scvec.model.gene_members import GeneSide
    from scvec.model.resolvers import GeneMap, GeneResolver
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = [
    "SIMILAR",
    "Axis",
    "MatchedSource",
    "ReferenceGenes",
    "align_species",
    "by_gene_sets",
    "common_axis",
    "dimension_axis",
    "dimension_map",
    "dimensions",
    "gene_statistics",
    "match_genes",
    "obsm_key",
    "query_genes",
    "reference_genes",
    "reference_share",
    "settle_values",
    "with_partners",
]

#: Added to both sides of a ratio of means (counts per ten thousand), so that very low genes get no factor.
PSEUDO = 0.5
#: Number of variable genes for encoders without their own selection.
N_GENES = 3000
#: Cells of a file for the scale of its vectors.
N_SCALE = 2000
#: Least cells of a class in a species, so that its mean is used.
MIN_CELLS = 5


@dataclass(frozen=True)
class Axis:
    """Common genes of several files, and the maps from the columns of each file to them.

    Attributes
    ----------
    species
        Species of the gene ids: the species with the most cells.
    gene_ids
        Genes that every file measured, directly or through orthologs; ascending, n.
    maps
        Map from the columns of each file to the genes.
    n_cells
        Species -> number of cells; ``species`` comes first.
    factors
        Other species -> (n,) float32 factors on the linear scale, which are included in ``maps``.
    notes
        Notes about the genes.
    """

    species: Species
    gene_ids: list[str]
    maps: list[GeneMap]
    n_cells: dict[Species, int]
    factors: dict[Species, Float32] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def select(self, genes: npt.NDArray[np.int64]) -> Axis:
        """Return the axis of some genes; the weights of columns on these genes do not change."""
        return replace(
            self,
            gene_ids=[self.gene_ids[i] for i in genes],
            maps=[m.select(genes) for m in self.maps],
            factors={species: values[genes] for species, values in self.factors.items()},
        )


@dataclass(frozen=True)
class ReferenceGenes:
    """The genes of a reference, with statistics over all its cells.

    Attributes
    ----------
    axis
        All genes, with the levels of other species scaled to the main species.
    statistics
        Statistics over all cells.
    variability
        (n,) float64 variability of each gene.
    hashes
        (n_cells,) int64 hashes of the cells of all files (:mod:`scvec.model.copies`).
    notes
        Notes about the levels of other species.
    """

    axis: Axis
    statistics: GeneStatistics
    variability: npt.NDArray[np.float64]
    hashes: npt.NDArray[np.int64]
    notes: list[str]

    @cached_property
    def chosen(self) -> npt.NDArray[np.int64]:
        """Numbers of the most variable genes, for encoders without their own selection."""
        return most_variable(self.variability, N_GENES)

    @cached_property
    def narrow(self) -> Axis:
        """The axis of the chosen genes."""
        return self.axis.select(self.chosen)

    def with_genes(self, n_genes: int) -> Axis:
        """Return the axis of an encoder with ``n_genes`` genes: all genes, or the chosen ones."""
        return self.axis if n_genes == len(self.axis.gene_ids) else self.narrow


def reference_genes(
    axis: Axis,
    matched: Sequence[MatchedSource],
    codes: npt.NDArray[np.int64],
    progress: Progress,
    primary: npt.NDArray[np.bool_] | None = None,
) -> ReferenceGenes:
    """Read all cells once, and return statistics of the genes of an axis.

    Parameters
    ----------
    codes
        (n_cells,) int64 class numbers of the cells of all files, -1 for none.
    primary
        (n_cells,) bool, cells to use; None for all.

    Raises
    ------
    InputError
        If no gene is expressed.
    """
    statistics, scores, hashes = gene_statistics(axis, matched, progress, primary)
    aligned, notes = align_species(axis, matched, codes)
    return ReferenceGenes(aligned, statistics, scores, hashes, notes)


def common_axis(matched: Sequence[MatchedSource], resolver: GeneResolver) -> Axis:
    """Return the genes that every file measured.

    Cells of other species are mapped through orthologs, like those of a query
    (:meth:`scvec.model.resolvers.GeneResolver.map_to`). A gene that is missing in one of the files, or has no
    ortholog in one of the species, is left out. Otherwise its missing values would mark the file or the
    species instead of the type.

    Raises
    ------
    InputError
        If no gene is left.
    """
    n_cells: dict[Species, int] = {}
    for m in matched:
        n_cells[m.match.species] = n_cells.get(m.match.species, 0) + m.source.n_obs
    n_cells = dict(sorted(n_cells.items(), key=lambda item: -item[1]))
    target = next(iter(n_cells))
    own = [m for m in matched if m.match.species == target]
    sets = [{g for g in m.match.gene_ids if g is not None} for m in own]
    common = sorted(set.intersection(*sets))
    for m in matched:
        if m.match.species != target and common:
            measured = resolver.map_to(m.match, common, target).measured
            common = [g for g, there in zip(common, measured, strict=True) if there]
    if not common:
        raise InputError(
            "the reference files have no gene in common",
            fix="ingest the files one by one",
            code="genes-not-recognised",
        )
    left_out = len(set.union(*sets)) - len(common)
    maps = [resolver.map_to(m.match, common, target) for m in matched]
    notes = [f"left out {left_out:,} genes that are not in every file"] if left_out else []
    notes += [note for genes in maps for note in genes.notes]
    return Axis(target, common, maps, n_cells, notes=tuple(notes))


def dimension_axis(matched: Sequence[MatchedSource]) -> Axis:
    """Return the axis of cells whose values are vectors of ``obsm``.

    Raises
    ------
    InputError
        If the vectors of the files differ in length.
    """
    lengths = [len(m.match.names) for m in matched]
    if len(set(lengths)) > 1:
        what = f"the vectors have {' and '.join(str(n) for n in sorted(set(lengths)))} dimensions"
        raise InputError(
            what, matched[0].source.name, "ingest the files one by one", code="vectors-of-another-model"
        )
    maps = [dimension_map(n) for n in lengths]
    species = matched[0].match.species
    return Axis(species, list(matched[0].match.names), maps, {species: sum(m.source.n_obs for m in matched)})


def dimensions(axis: Axis, matched: Sequence[MatchedSource]) -> tuple[ReferenceGenes, Known]:
    """Read all vectors once; return statistics of the dimensions, and the settings of the encoder.

    Afterwards the vectors are divided by their spread, so that rounding and absolute limits fit their scale.
    """
    found = StatisticsAccumulator(len(axis.gene_ids))
    sources = [m.source for m in matched if isinstance(m.source, VectorSource)]
    sd = np.concatenate([source.some(N_SCALE) for source in sources]).std(axis=0, dtype=np.float64)
    scale = float(np.sqrt(np.mean(sd**2))) or 1.0
    for source in sources:
        source.scale = scale
        for block in source.chunks():
            np.clip(block.data, -50, 50, out=block.data)  # avoid overflow of the exponential
            found.add(block)
    known = Known(sources[0].key, scale, sources[0].variance if len(sources) == 1 else ())
    none = np.zeros(0, dtype=np.int64)
    return ReferenceGenes(axis, found.result(), np.ones(len(axis.gene_ids)), none, []), known


def gene_statistics(
    axis: Axis,
    matched: Sequence[MatchedSource],
    progress: Progress,
    primary: npt.NDArray[np.bool_] | None = None,
) -> tuple[GeneStatistics, npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return statistics of the genes, their variability (n,) float64, and (n_cells,) int64 cell hashes.

    Statistics are over all cells, or over the ``primary`` cells if given; copies of a cell are counted once.
    Variability is measured within each species, so that genes with different levels between species are not
    selected.

    Raises
    ------
    InputError
        If no gene is expressed.
    """
    gathered = {s: StatisticsAccumulator(len(axis.gene_ids)) for s in axis.n_cells}
    total, done = sum(axis.n_cells.values()), 0
    keys, hashes = gene_keys(axis.gene_ids), np.zeros(total, dtype=np.int64)
    seen = Seen()
    for m, genes in zip(matched, axis.maps, strict=True):
        for chunk in m.chunks(genes):
            part = slice(done, done + len(chunk))
            hashes[part] = found = cell_hashes(chunk.X, keys)
            counted = seen.first(found, None if primary is None else primary[part])
            gathered[m.match.species].add(chunk.X if counted.all() else chunk.X[np.flatnonzero(counted)])
            done += len(chunk)
            progress("counting genes", done, total)
    scores = variability([g.result() for g in gathered.values()])
    if not np.isfinite(scores).any():
        raise InputError(
            "no gene is expressed in any cell",
            matched[0].source.name,
            "check the values of X",
            code="no-values",
        )
    together = StatisticsAccumulator(len(axis.gene_ids))
    for accumulator in gathered.values():
        together.merge(accumulator)
    return together.result(), scores, hashes


def align_species(
    axis: Axis, matched: Sequence[MatchedSource], codes: npt.NDArray[np.int64]
) -> tuple[Axis, list[str]]:
    """Return the axis with the genes of other species scaled to the main species, and notes.

    The level of many orthologs differs between species in all cell types, more than between types. The factor
    of a gene is the ratio of its means over the classes of both species, with equal weight for each class. It
    depends only on the gene and the species, so a query gets the same factor whatever its cells are.

    Parameters
    ----------
    codes
        (n_cells,) int64 class numbers of the cells of all files, -1 for none.
    """
    if len(axis.n_cells) == 1:
        return axis, []
    n_genes, n_classes = len(axis.gene_ids), int(codes.max()) + 1
    sums = {s: np.zeros((n_classes, n_genes)) for s in axis.n_cells}
    counts = {s: np.zeros(n_classes) for s in axis.n_cells}
    start = 0
    for m, genes in zip(matched, axis.maps, strict=True):
        for chunk in m.chunks(genes):
            part = codes[start : start + len(chunk)]
            start += len(chunk)
            rows = np.flatnonzero(part >= 0)
            member = sp.csr_matrix((np.ones(len(rows)), (part[rows], rows)), (n_classes, len(part)))
            linear = chunk.X.astype(np.float64)
            linear.data = np.expm1(linear.data)
            sums[m.match.species] += (member @ linear).toarray()
            counts[m.match.species] += np.bincount(part[rows], minlength=n_classes)
    factors: dict[Species, Float32] = {}
    notes = []
    for species in list(axis.n_cells)[1:]:
        shared = np.flatnonzero((counts[axis.species] >= MIN_CELLS) & (counts[species] >= MIN_CELLS))
        if len(shared) == 0:
            notes.append(
                f"warning: no label has {MIN_CELLS} cells of {axis.species} and of {species}, so the levels "
                "of their genes could not be compared: use the same labels for both (--label-map)"
            )
            continue
        own, other = (
            (sums[s][shared] / counts[s][shared, None]).mean(axis=0) for s in (axis.species, species)
        )
        factors[species] = ((own + PSEUDO) / (other + PSEUDO)).astype(np.float32)
        notes.append(
            f"{species} genes were scaled to the level of {axis.species} by {len(shared)} common labels"
        )
    maps = [
        genes.scaled(factors[m.match.species]) if m.match.species in factors else genes
        for m, genes in zip(matched, axis.maps, strict=True)
    ]
    return replace(axis, maps=maps, factors=factors), notes


#: Cells of a file for comparing possible scales of its values.
N_PROBED = 512

#: Smallest number of reference genes that a query must measure.
MIN_GENES = 10


@dataclass(frozen=True)
class MatchedSource:
    """Cells of a file, with the genes of its columns.

    Attributes
    ----------
    names_from
        ``"index"`` or the column of ``var`` whose names matched best.
    share
        Fraction (0-1) of the counts in matched genes.
    notes
        Notes about the match.
    rows
        (n,) int64 row numbers of these cells in the file, ascending; None for all cells.
    name
        Name of this part of the cells; empty for all cells.
    """

    source: CellSource
    match: GeneMatch
    names_from: str
    share: float
    notes: tuple[str, ...] = ()
    rows: npt.NDArray[np.int64] | None = None
    name: str = ""

    @property
    def n_obs(self) -> int:
        """Number of the cells."""
        return self.source.n_obs if self.rows is None else len(self.rows)

    @property
    def summary(self) -> str:
        """One line for the user."""
        if isinstance(self.source, VectorSource):
            return f"not used; {self.source.state.message}"
        extra = "" if self.names_from == "index" else f" (names from var['{self.names_from.strip()}'])"
        return self.match.summary(self.source.gene_totals) + extra

    def chunks(
        self, genes: GeneMap, size: int | None = None, rows: npt.NDArray[np.int64] | None = None
    ) -> Iterator[CellChunk]:
        """Yield cells over the target genes of ``genes``; a thread reads the next ones.

        Parameters
        ----------
        rows
            Row numbers of cells of the file; by default all cells of this match.
        """
        rows = self.rows if rows is None else rows

        def cells() -> Iterator[CellChunk]:
            for X in self.source.chunks(size, rows):
                yield CellChunk(over_targets(X, genes.weights), genes.measured)

        return read_ahead(cells)


def over_targets(X: Any, weights: Any) -> Any:
    """Return log1p CP10k over target genes; genes are summed on the linear scale.

    Parameters
    ----------
    X
        (n, n_names) CSR float32 of log1p CP10k.
    weights
        (n_names, n_targets) CSR float32.
    """
    # expm1 and log1p would change the last bits of every value, so a plain selection skips them.
    plain = bool((weights.data == 1).all()) and np.bincount(weights.indices, minlength=1).max(initial=0) <= 1
    linear = X if plain else type(X)((np.expm1(X.data), X.indices, X.indptr), shape=X.shape)
    # Two transpositions sort the columns of each row in half the time of sorting.
    mapped = (linear @ weights).tocsc().tocsr()
    if not plain:
        mapped.data = np.log1p(mapped.data)
    mapped.eliminate_zeros()
    return mapped.astype(np.float32)


def settle_values(matched: MatchedSource, genes: GeneMap, reference: npt.NDArray[Any]) -> None:
    """Choose among several possible scales the one whose gene means are closest to the reference.

    Does nothing if the scale of the values is certain.

    Parameters
    ----------
    reference
        (n_target,) mean log1p CP10k of the target genes of ``genes`` in the reference.
    """
    from scvec.ingest.cells.expression import normalize
    from scvec.ingest.cells.values import best_transform, candidate_states

    source = matched.source
    shared = np.flatnonzero(genes.measured)
    if not source.state.candidates or not len(shared):
        return
    rows = np.unique(np.linspace(0, source.n_obs - 1, min(N_PROBED, source.n_obs)).astype(np.int64))
    cells = source.stored_rows(rows)
    states = candidate_states(source.state, cells)
    means = [
        np.asarray(over_targets(normalize(cells, s), genes.weights).mean(axis=0)).ravel() for s in states
    ]
    best = states[best_transform(np.array(means)[:, shared], np.asarray(reference)[shared])]
    message = f"{best.message} (of the possible scales, this one fits the reference best)"
    source.take_for(replace(best, message=message, candidates=source.state.candidates))


def match_genes(
    source: CellSource,
    resolver: GeneResolver,
    *,
    species: str = "auto",
    force: bool = False,
    reference: Species | None = None,
) -> MatchedSource:
    """Find the genes of the columns of a data set (:func:`scvec.model.resolvers.find_genes`).

    Parameters
    ----------
    reference
        Species of the reference. If its genes are not loaded, the cells are assumed to be of this species
        unless ``species`` is given.

    Raises
    ------
    InputError
        If the names look like a species that is not loaded, are of another genome than of ``species``, or few
        of them are known, unless ``force``; or if all names are row numbers.
    """
    if isinstance(source, VectorSource):
        return _match_dimensions(source, species)
    if species == "auto":
        if reference is not None and reference not in resolver.species:
            species = reference
    elif not force and (own := _genome_of(source)) not in (None, species_key(species)) and species != OTHER:
        what = f"the genes are of {own} ({source.genome}), not of {species}"
        fix = f"give a file with the genes of {species} alone, or --species {own}"
        raise InputError(what, source.name, fix, code="genes-not-recognised")
    found = find_genes(source, resolver, species)
    best = MatchedSource(source, found.match, found.names_from, found.share)
    if not force and (found.match.looks_like or is_chance(found)):
        raise unknown_names(source, found, best.summary, resolver)
    few = []
    if best.share < WARN_SHARE:
        names = unknown(found.match, source.gene_totals)
        few = [f"warning: few genes are known: {best.summary}; unknown names are, for example, {names}"]
    if (usual := usual_expression(found.match, source.gene_totals, resolver)) < USUAL:
        few.append(
            f"warning: genes are not expressed as in other cells of {found.match.species} (rank correlation "
            f"{usual:.2f}, usually 0.3 to 0.9): do the names belong to these columns?"
        )
    return replace(best, notes=(*best.match.notes, *few))


def _genome_of(source: CellSource) -> Species | None:
    """Return the species of the genome that the file names; None if it names none."""
    return genome_species(source.genome) or species_named(source.genome)


def by_gene_sets(matched: MatchedSource, then: str) -> list[MatchedSource]:
    """Return the cells in parts with the same measured genes, the largest first.

    Each part matches the genes that its cells measured. The first part has a warning about all parts.

    Parameters
    ----------
    then
        Text of the warning: the consequence.
    """
    if isinstance(matched.source, VectorSource):
        return [matched]
    sets = gene_sets(matched.source)
    notes = missing_notes(sets, matched.match, matched.source, then)
    if not notes:
        return [matched]
    first, *others = (
        replace(matched, match=without(matched.match, one.missing), notes=(), rows=one.rows, name=one.name)
        for one in sets
    )
    return [replace(first, notes=(*matched.notes, *notes)), *others]


def _match_dimensions(source: CellSource, species: str) -> MatchedSource:
    """Return cells whose genes are the dimensions of their vectors; the species cannot be detected."""
    names = tuple(source.var_names)
    of = SPECIES[0] if species == "auto" else species_key(species)
    return MatchedSource(
        source, GeneMatch(names, names, ("symbol",) * len(names), of, "dimensions"), "index", 1.0
    )


def dimension_map(n: int) -> GeneMap:
    """Return the identity map of n dimensions."""
    from scipy.sparse import identity

    from scvec.model.resolvers import GeneMap

    return GeneMap(identity(n, dtype=np.float32, format="csr"), np.ones(n, dtype=bool))


def obsm_key(stored: StoredReference | GeneSide) -> str | None:
    """Return the key of ``obsm`` of a reference of vectors; None if its vectors are computed from genes."""
    state = stored.meta["model"]["encoder"]
    return str(state["key"]) if state["name"] == "obsm" else None


def _query_dimensions(stored: StoredReference | GeneSide, source: VectorSource, *, force: bool) -> GeneMap:
    """Return the map from the vectors of a query to those of a reference; refuse those of another model."""
    from scvec.encoders.obsm import N_COMPARED, ObsmEncoder

    encoder = encoder_of(stored)
    if not isinstance(encoder, ObsmEncoder) or encoder.statistics is None:
        raise StoreError("the reference has no statistics of its vectors", stored.name, "ingest it again")
    dim, where = len(source.var_names), f"{source.name} (obsm/{source.key})"
    if dim != encoder.embed_dim:
        raise InputError(
            f"the vectors have {dim} dimensions, but those of the reference have {encoder.embed_dim}",
            where,
            "compute the vectors with the model of the reference",
            code="vectors-of-another-model",
        )
    source.scale = encoder.known.scale
    try:
        note = encoder.known.check(source.some(N_COMPARED), source.variance, encoder.statistics, where)
    except InputError as error:
        if not force:
            raise
        note = f"warning: {error.what}"
    return replace(dimension_map(dim), notes=(note,))


def reference_share(
    matched: MatchedSource, measured: npt.NDArray[np.bool_], *, force: bool = False
) -> tuple[float, list[str]]:
    """Return the fraction (0-1) of the reference's genes that were measured, and notes.

    Parameters
    ----------
    measured
        (n_genes,) bool over the genes of the reference's cell vectors.

    Raises
    ------
    InputError
        If fewer than ``MIN_GENES`` were measured, unless ``force``.
    """
    n, total = int(measured.sum()), len(measured)
    if n < min(MIN_GENES, total) and not force:
        names = unknown(
            replace(matched.match, gene_ids=(None,) * len(matched.match.names)), matched.source.gene_totals
        )
        raise InputError(
            f"only {n} of the {total:,} genes of the reference were measured",
            f"{matched.source.name}, names like {names}",
            "check --species and the gene names, choose another reference, or continue with --force"
            if matched.match.id_type != OWN_IDS
            else "the reference uses gene ids of its own: use the same ids",
            code="genes-not-recognised",
        )
    note = (
        f"warning: only {n:,} of the {total:,} genes of the reference were measured; labels are less certain"
    )
    return n / total, [note] if n < 0.5 * total else []


def query_genes(
    store: Store,
    stored: StoredReference | GeneSide,
    matched: MatchedSource,
    *,
    unmatched_genes: str = "drop",
    device: str = "auto",
    force: bool = False,
    progress: Progress = no_progress,
) -> GeneMap:
    """Return the map from the names of a query to all genes of a reference.

    The map uses orthologs, the factors of the query's species if the reference has cells of it, and texts on
    request. The map has notes about these steps.

    Raises
    ------
    InputError
        If vectors of ``obsm`` are from another model than the reference, unless ``force``.
    """
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import FACTOR, genes_of

    if isinstance(matched.source, VectorSource):
        return _query_dimensions(stored, matched.source, force=force)
    genes = stored_resolver(store).map_to(matched.match, genes_of(stored), stored.meta["species"])
    factors = stored.tensors.get(FACTOR + matched.match.species)
    if factors is not None:
        genes = genes.scaled(factors)
    if matched.source.state.candidates and matched.rows is None:
        settle_values(matched, genes, stored.tensors["classes.means"].mean(axis=0))
    genes = replace(genes, notes=(matched.summary, *genes.notes))
    if unmatched_genes == "text":
        genes = text_partners(store, stored, matched, genes, device=device, progress=progress)
    return genes


#: Most query genes that are compared by text, because their texts must be encoded once.
MAX_GENES = 3000
#: Least cosine of the texts of two matched genes. Texts of unrelated genes reach 0.6 to 0.7; matching these
#: too made labels worse than without text.
SIMILAR = 0.8


def text_partners(
    opened: Store,
    stored: StoredReference | GeneSide,
    matched: MatchedSource,
    genes: GeneMap,
    *,
    device: str,
    progress: Progress,
) -> GeneMap:
    """Return the map with additional query genes, matched to reference genes by similar descriptions.

    Only protein-coding genes with a description and without a match are compared, the longest descriptions
    first, at most ``MAX_GENES``. The choice depends on the genes, not on the cells. Vectors come from the
    store; a backbone on this machine computes missing ones, which are added to the store.

    Raises
    ------
    InputError
        If the reference was made without text, or the store has no vector for any of the genes.
    """
    where = f"reference {stored.name!r}"
    backbone = stored.meta["options"]["backbone"]
    spec = parse_spec(backbone)
    # Imported and random vectors can only be compared if the reference has them; no new ones can be computed.
    if spec.permuted or (stored.meta["space"] is None and not spec.needs_text):
        what = "the reference was made without texts of its genes: unmatched genes cannot be compared by text"
        raise InputError(what, where, "omit --unmatched-genes", code="unknown-space")
    # The default encoder uses no text; then the vectors are the shipped ones or are computed now.
    space = None if stored.meta["space"] is None else Space.from_dict(stored.meta["space"])
    number = {g: i for i, g in enumerate(genes_of(stored))}
    with opened.knowledge() as kb:
        wanted = (
            _with_texts(kb, stored.meta["vector_genes"]) if space is None else stored.meta["vector_genes"]
        )
        targets = np.array([number[g] for g in wanted], dtype=np.int64)
        missing = int((~genes.measured[targets]).sum())
        chosen = _chosen(kb, matched, genes) if missing else []
    if not chosen:
        return replace(genes, notes=(*genes.notes, "no gene of the query needs a match by text"))
    there, known = _vectors(opened, wanted, space, backbone, device, progress)
    if not there.all():
        raise StoreError("the store has no text vectors of the reference's genes", where, "ingest it again")
    found, vectors = _vectors(opened, chosen, space, backbone, device, progress)
    if not found.any():
        what = "the store has no text vector for any of the unmatched genes"
        raise InputError(
            what,
            where,
            f"run: scvec ingest embeddings --backbone {backbone} --genes FILE",
            code="unknown-space",
        )
    kept = [g for g, has in zip(chosen, found, strict=True) if has]
    wider = with_partners(genes, matched.match.gene_ids, kept, vectors[found], targets, known)
    n = int((wider.measured & ~genes.measured).sum())
    note = (
        f"matched {n:,} of the {missing:,} missing genes of the reference to other genes of the query by "
        f"text ({len(kept):,} texts compared)"
    )
    return replace(wider, notes=(*genes.notes, note))


def with_partners(
    genes: GeneMap,
    gene_ids: tuple[str | None, ...],
    new: list[str],
    vectors: Float32,
    targets: npt.NDArray[np.int64],
    known: Float32,
) -> GeneMap:
    """Return the map with each new gene added to the unmeasured target gene with the most similar text.

    Parameters
    ----------
    gene_ids
        Gene of each column of the query, or None.
    new, vectors
        Genes that may be added, and their text vectors (n_new, dim) float32.
    targets, known
        Numbers (n,) int64 of the target genes with texts, and their vectors (n, dim) float32. Their mean is
        subtracted from all vectors, because the text vectors of a language model have a large common part.
    """
    from scipy import sparse

    free = np.flatnonzero(~genes.measured[targets])
    if len(free) == 0:
        return genes
    mean = known.mean(axis=0)
    cosines = _unit(vectors - mean) @ _unit(known[free] - mean).T
    best = cosines.argmax(axis=1)
    similar = cosines[np.arange(len(new)), best] >= SIMILAR
    target = {g: int(targets[free[j]]) for g, j, ok in zip(new, best, similar, strict=True) if ok}
    pairs = [(i, target[g]) for i, g in enumerate(gene_ids) if g is not None and g in target]
    if not pairs:
        return genes
    rows, columns = (np.array(x, dtype=np.int64) for x in zip(*pairs, strict=True))
    more = sparse.csr_matrix(
        (np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=genes.weights.shape
    )
    weights = (genes.weights + more).tocsr()
    weights.sort_indices()
    measured = genes.measured.copy()
    measured[columns] = True
    return replace(genes, weights=weights, measured=measured)


def _unit(v: Float32) -> Float32:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _chosen(kb: KnowledgeBase, matched: MatchedSource, genes: GeneMap) -> list[str]:
    """Return ids of the genes to add, ascending."""
    unused = {
        g for g, used in zip(matched.match.gene_ids, genes.used, strict=True) if g is not None and not used
    }
    coding = _with_texts(kb, sorted(unused))
    described = kb.descriptions(coding)
    longest = sorted(coding, key=lambda g: (-len(described[g].text), g))
    return sorted(longest[:MAX_GENES])


def _with_texts(kb: KnowledgeBase, gene_ids: list[str]) -> list[str]:
    """Return the protein-coding genes with a description, in order."""
    table = kb.genes()
    coding = set(table.loc[table["gene_type"] == "protein-coding", "gene_id"])
    described = kb.descriptions([g for g in gene_ids if g in coding])
    return [g for g in gene_ids if g in described]


def _vectors(
    opened: Store, gene_ids: list[str], space: Space | None, backbone: str, device: str, progress: Progress
) -> tuple[Bool, Float32]:
    """Return (n,) bool, whether a gene has a vector, and the vectors (n, dim) float32, zeros if missing."""
    from scvec.model.gene_vectors import encode_genes

    found = np.zeros(len(gene_ids), dtype=bool)
    vectors = np.zeros((len(gene_ids), 0), dtype=np.float32)
    if space is not None:
        stored = opened.space(space.fingerprint)
        rows = {gene_id: i for i, gene_id in enumerate(stored.genes["gene_id"])}
        at = np.array([rows.get(g, -1) for g in gene_ids], dtype=np.int64)
        found = at >= 0
        vectors = np.zeros((len(gene_ids), space.dim), dtype=np.float32)
        vectors[found] = stored.vectors[at[found]]
    missing = [g for g, there in zip(gene_ids, found, strict=True) if not there]
    spec = parse_spec(backbone)
    # A server costs money, and imported vectors cannot be computed here: use only stored vectors.
    if not missing or spec.is_remote or spec.is_stored:
        return found, vectors
    with opened.begin("query --unmatched-genes text", {"backbone": backbone, "n_genes": len(missing)}) as txn:
        kb = txn.open_knowledge()
        encoded = encode_genes(kb, txn.vectors(), missing, spec, device=device, progress=progress)
        if space is not None and encoded.space != space:
            raise InputError(
                f"the backbone {backbone} returns other vectors than for the reference",
                space.fingerprint,
                "ingest the reference again",
                code="model-changed",
            )
        txn.put_space(encoded.space, encoded.table, encoded.vectors, merge=True)
        txn.commit()
    if space is None:
        return np.ones(len(gene_ids), dtype=bool), encoded.vectors
    vectors[~found] = encoded.vectors
    return np.ones(len(gene_ids), dtype=bool), vectors

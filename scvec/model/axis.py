"""The genes that all cells of a reference are described by, be they of one species or of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base.errors import InputError
from scvec.base.types import Progress
from scvec.encoders.obsm import Known
from scvec.encoders.statistics import GeneStatistics, StatisticsAccumulator, most_variable, variability
from scvec.ingest.cells.cell_vectors import VectorSource
from scvec.model.matching import dimension_map

if TYPE_CHECKING:
    from scvec.base.types import Float32, Species
    from scvec.ingest.genes.names import GeneMap, GeneResolver
    from scvec.model.matching import MatchedSource

__all__ = [
    "Axis",
    "ReferenceGenes",
    "align_species",
    "common_axis",
    "dimension_axis",
    "dimensions",
    "gene_statistics",
    "reference_genes",
]

#: Counts per ten thousand that both sides of a ratio are raised by: genes next to silent have no factor.
PSEUDO = 0.5
#: Variable genes that an encoder takes that does not choose among all.
N_GENES = 3000
#: Cells of a class that a species must have for its mean to count.
MIN_CELLS = 5
#: Cells of a file that tell how large its vectors are.
N_SCALE = 2000


@dataclass(frozen=True)
class Axis:
    """Genes, and how the columns of each file become them.

    Attributes
    ----------
    species
        Whose ids the genes have: the species of most cells.
    gene_ids
        Genes that every file measured, itself or through orthologs; ascending, n.
    maps
        Per file, its columns onto the genes.
    n_cells
        Species -> number of its cells, that of ``species`` first.
    factors
        Other species -> (n,) float32 what its values are multiplied by, on the linear scale; in ``maps``.
    notes
        What a user should know of how the genes were found.
    """

    species: Species
    gene_ids: list[str]
    maps: list[GeneMap]
    n_cells: dict[Species, int]
    factors: dict[Species, Float32] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def select(self, genes: npt.NDArray[np.int64]) -> Axis:
        """Return the axis of some genes. What a column gives to them is what it gave them among all."""
        return replace(
            self,
            gene_ids=[self.gene_ids[i] for i in genes],
            maps=[m.select(genes) for m in self.maps],
            factors={species: values[genes] for species, values in self.factors.items()},
        )


@dataclass(frozen=True)
class ReferenceGenes:
    """The genes of a reference, and what all its cells say of them.

    Attributes
    ----------
    axis
        All of them, the levels of other species fitted to those of its own.
    statistics
        Over all cells.
    variability
        (n,) float64 how variable each gene is.
    notes
        What a user should know of the levels of other species.
    """

    axis: Axis
    statistics: GeneStatistics
    variability: npt.NDArray[np.float64]
    notes: list[str]

    @cached_property
    def chosen(self) -> npt.NDArray[np.int64]:
        """Numbers of the most variable genes, for an encoder that does not choose for itself."""
        return most_variable(self.variability, N_GENES)

    @cached_property
    def narrow(self) -> Axis:
        """The axis of the chosen genes."""
        return self.axis.select(self.chosen)

    def taken(self, n_genes: int) -> Axis:
        """Return the axis of an encoder of so many genes: of all, or of the chosen."""
        return self.axis if n_genes == len(self.axis.gene_ids) else self.narrow


def reference_genes(
    axis: Axis, matched: Sequence[MatchedSource], codes: npt.NDArray[np.int64], progress: Progress
) -> ReferenceGenes:
    """Read all cells once, and return what they say of the genes of an axis.

    Parameters
    ----------
    codes
        (n_cells,) int64 class numbers of the cells of all files, -1 for none.

    Raises
    ------
    InputError
        If no gene is expressed.
    """
    statistics, scores = gene_statistics(axis, matched, progress)
    aligned, notes = align_species(axis, matched, codes)
    return ReferenceGenes(aligned, statistics, scores, notes)


def common_axis(matched: Sequence[MatchedSource], resolver: GeneResolver) -> Axis:
    """Return the genes that every file measured.

    Cells of another species than most are seen through orthologs, as those of a query are
    (:meth:`scvec.ingest.genes.names.GeneResolver.map_to`). A gene that one of the files lacks, or that has no
    ortholog in one of the species, is left out: for half of the cells nothing would be known of it, and
    a class that only one species has would be told by that.

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
            fix="ingest them one by one",
            code="genes-not-recognised",
        )
    left_out = len(set.union(*sets)) - len(common)
    maps = [resolver.map_to(m.match, common, target) for m in matched]
    notes = [f"{left_out:,} genes that not every file has were left out"] if left_out else []
    notes += [note for genes in maps for note in genes.notes]
    return Axis(target, common, maps, n_cells, notes=tuple(notes))


def dimension_axis(matched: Sequence[MatchedSource]) -> Axis:
    """Return the axis of cells whose values are vectors of ``obsm``.

    Raises
    ------
    InputError
        If the files hold vectors of other lengths.
    """
    lengths = [len(m.match.names) for m in matched]
    if len(set(lengths)) > 1:
        what = f"the vectors have {' and '.join(str(n) for n in sorted(set(lengths)))} dimensions"
        raise InputError(
            what, matched[0].source.name, "ingest them one by one", code="vectors-of-another-model"
        )
    maps = [dimension_map(n) for n in lengths]
    species = matched[0].match.species
    return Axis(species, list(matched[0].match.names), maps, {species: sum(m.source.n_obs for m in matched)})


def dimensions(axis: Axis, matched: Sequence[MatchedSource]) -> tuple[ReferenceGenes, Known]:
    """Read all vectors once; return what they say of the dimensions, and what the encoder has to know.

    The vectors are divided by their spread from then on: what is rounded or has a least size suits them then.
    """
    found = StatisticsAccumulator(len(axis.gene_ids))
    sources = [m.source for m in matched if isinstance(m.source, VectorSource)]
    sd = np.concatenate([source.some(N_SCALE) for source in sources]).std(axis=0, dtype=np.float64)
    scale = float(np.sqrt(np.mean(sd**2))) or 1.0
    for source in sources:
        source.scale = scale
        for block in source.chunks():
            np.clip(block.data, -50, 50, out=block.data)  # its exponential is taken too
            found.add(block)
    known = Known(sources[0].key, scale, sources[0].variance if len(sources) == 1 else ())
    return ReferenceGenes(axis, found.result(), np.ones(len(axis.gene_ids)), []), known


def gene_statistics(
    axis: Axis, matched: Sequence[MatchedSource], progress: Progress
) -> tuple[GeneStatistics, npt.NDArray[np.float64]]:
    """Return statistics of the genes over all cells, and (n,) float64 how variable they are.

    Variability is measured within each species, so that genes of which one species simply has more are not
    taken for those that tell cells apart.

    Raises
    ------
    InputError
        If no gene is expressed.
    """
    gathered = {s: StatisticsAccumulator(len(axis.gene_ids)) for s in axis.n_cells}
    total, done = sum(axis.n_cells.values()), 0
    for m, genes in zip(matched, axis.maps, strict=True):
        for chunk in m.chunks(genes):
            gathered[m.match.species].add(chunk.X)
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
    return together.result(), scores


def align_species(
    axis: Axis, matched: Sequence[MatchedSource], codes: npt.NDArray[np.int64]
) -> tuple[Axis, list[str]]:
    """Return the axis with the genes of other species scaled to those of its own, and notes.

    Orthologs differ in level from one species to the next in all cell types alike, and more than types do in
    many genes. The factor of a gene is the ratio of its means over the classes that both species have, each
    class counting alike. It is the gene's and the species', so that a cell of a query gets it as well,
    whatever the other cells are.

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
                f"warning: no label has {MIN_CELLS} cells of {axis.species} and of {species}, so that their "
                "levels of genes could not be compared: name their types alike (--label-map)"
            )
            continue
        own, other = (
            (sums[s][shared] / counts[s][shared, None]).mean(axis=0) for s in (axis.species, species)
        )
        factors[species] = ((own + PSEUDO) / (other + PSEUDO)).astype(np.float32)
        notes.append(
            f"{species} genes were scaled to the level of {axis.species} by {len(shared)} labels of both"
        )
    maps = [
        genes.scaled(factors[m.match.species]) if m.match.species in factors else genes
        for m, genes in zip(matched, axis.maps, strict=True)
    ]
    return replace(axis, maps=maps, factors=factors), notes

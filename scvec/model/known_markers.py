"""Markers of the knowledge base: as an index of cell types, and as evidence for labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvec.base.species import SPECIES
from scvec.base.types import Float64
from scvec.celltypes.naming import MarkerIndex, Tissues
from scvec.stores.knowledge.snapshot import Snapshot

if TYPE_CHECKING:
    from scvec.model.resolvers import GeneResolver
    from scvec.model.training import TrainingSample
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = [
    "absent_markers",
    "listed_genes",
    "marker_index",
    "marker_notes",
    "marker_rows",
    "markers_of",
    "ortholog_key",
    "shipped_tissues",
]


def ortholog_key(resolver: GeneResolver) -> Callable[[str], str]:
    """Return a function from a gene id to the id of its best ortholog in the first species, or to itself."""
    partners = resolver.partners(SPECIES[0])
    return lambda gene_id: partners.get(gene_id, gene_id)


def marker_rows(
    rows: Sequence[tuple[str, str, str, str, str, float, str]],
    resolver: GeneResolver,
    key: Callable[[str], str],
) -> list[tuple[str, str, str, str, float, str]]:
    """Return the rows of a :class:`~scvec.celltypes.naming.MarkerIndex`, without unknown genes."""
    ids: dict[tuple[str, str], str] = {}
    for species in resolver.species:
        symbols = list(dict.fromkeys(gene for _, _, kind, gene, *_ in rows if kind == species))
        for symbol, gene_id in zip(symbols, resolver.resolve(symbols, species).gene_ids, strict=True):
            if gene_id is not None:
                ids[species, symbol] = key(gene_id)
    return [
        (cl_id, tissue, ids[species, gene], direction, weight, source)
        for cl_id, tissue, species, gene, direction, weight, source in rows
        if (species, gene) in ids
    ]


@cache
def shipped_tissues() -> Tissues:
    """Return the tissues of Uberon that ship with the package."""
    table = Snapshot.open().table("tissues").to_pydict()
    return Tissues(zip(table["name"], table["organs"], strict=True))


def marker_index(
    kb: KnowledgeBase, resolver: GeneResolver, key: Callable[[str], str], without: str = ""
) -> MarkerIndex:
    """Return the markers of the knowledge base, with genes mapped to their ortholog in the first species.

    ``without`` is a source that is left out.
    """
    labels = {cl_id: label for cl_id, label, own in kb.cl_names() if own}
    rows = marker_rows([row for row in kb.markers() if row[-1] != without], resolver, key)
    return MarkerIndex(rows, labels, kb.cl_lineage(), tissues=shipped_tissues())


#: Names of proteins, complexes and isoforms that are not gene aliases; in lower case, without hyphens.
MEANT_GENES = {
    "asma": "ACTA2", "ecadherin": "CDH1", "ncadherin": "CDH2", "vecadherin": "CDH5", "gad65": "GAD2",
    "gad67": "GAD1", "rorgt": "RORC", "tuj1": "TUBB3", "bdca4": "NRP1", "tcr": "TRAC", "tcrab": "TRAC",
    "tcrgd": "TRDC", "cd45ra": "PTPRC", "cd45rb": "PTPRC", "cd45ro": "PTPRC", "ckit": "KIT", "iga": "IGHA1",
    "igd": "IGHD", "ige": "IGHE", "igg": "IGHG1", "igm": "IGHM", "mhcii": "HLA-DRA", "mhc2": "HLA-DRA",
    "hladr": "HLA-DRA", "gr1": "LY6G", "calretinin": "CALB2", "ki67": "MKI67", "calbindin": "CALB1",
}  # fmt: skip
#: Suffixes of the genes of a family: CD3 means CD3D, CD3E and CD3G. Larger families are not used.
_ENDS = [f"{letter}{digit}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for digit in ("", *range(1, 7))]
MOST_OF_FAMILY = 6


def listed_genes(
    names: Sequence[str], species: str, resolver: GeneResolver, index: MarkerIndex, key: Callable[[str], str]
) -> tuple[dict[str, str], list[str]]:
    """Return the genes of a published marker list, gene id -> name, and the names without a gene.

    Papers also list proteins and complexes. A name that is not a gene, or is an alias of several genes, is
    replaced by the marker gene that it may mean (of several, the one that marks the same cell types as the
    rest of the list), by the name without hyphens, by the genes of its family (CD3), or by its parts at "/".
    """
    match = resolver.resolve(names, species)
    sure = {key(g) for g in match.gene_ids if g is not None}

    def genes_of(names: Sequence[str]) -> list[str]:
        return [key(g) for g in resolver.resolve(names, match.species).gene_ids if g is not None]

    def several(name: str) -> list[str]:
        plain = name.replace("-", "")
        for spelled in dict.fromkeys((name, plain)):
            again = resolver.resolve([spelled], match.species)
            if again.gene_ids[0] is not None:
                return genes_of([spelled])
            if candidates := again.ambiguous.get(spelled):
                return index.together([key(g) for g in candidates], sure)
        if found := genes_of([MEANT_GENES.get(plain.lower(), "")]):
            return found
        spelled_so = [f(name + end) for end in _ENDS for f in (str.upper, str.capitalize)]
        members = resolver.resolve(spelled_so if re.search(r"[\d-]", name) else [], match.species)
        family = {
            key(g) for g, how in zip(members.gene_ids, members.how, strict=True) if g and how == "symbol"
        }
        family &= set(index.genes)
        return sorted(family) if 1 < len(family) <= MOST_OF_FAMILY else []

    spoken: dict[str, str] = {}
    left = []
    for name, gene in zip(names, match.gene_ids, strict=True):
        found = [key(gene)] if gene is not None else several(name)
        parts = name.split("/") if not found else []
        stem = re.sub(r"\d+$", "", parts[0]) if parts else ""
        for part in parts if len(parts) > 1 and stem else ():
            full = stem + part if part.isdigit() else part
            found += several(full)
        for gene_id in found:
            spoken.setdefault(gene_id, name)
        if not found:
            left.append(name)
    return spoken, left


def markers_of(kb: KnowledgeBase, terms: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the known markers of terms and their descendants: term -> symbol -> the tables with it.

    Symbols are in capitals, so that human and mouse symbols are equal (INS and Ins).
    """
    lineage, wanted = kb.cl_lineage(), set(filter(None, terms))
    found: dict[str, dict[str, set[str]]] = {term: {} for term in terms}
    for term, _, _, gene, direction, _, source in kb.markers():
        if direction == "positive":
            for above in {term, *lineage.get(term, ())} & wanted:
                found[above].setdefault(gene.upper(), set()).add(source)
    return {term: {g: sorted(s) for g, s in genes.items()} for term, genes in found.items()}


#: A marker is absent in a label if its mean log1p CP10k is below this fraction of the largest label mean ...
ABSENT = 0.25
#: ... and this largest mean is at least this high (a gene that the platform does not measure is ignored).
EXPRESSED = 0.1
#: A label is doubtful if at most this fraction of the markers of its term is found, with at least this number
#: of markers and of cells. Among limits that doubt at most 2% of the right labels, these doubt the most
#: swapped labels (benchmarks/names.py --labels). The number of cells was set by hand.
FEW, LEAST, CELLS = 0.5, 3, 10
#: Markers of this source do not count there: many are expressed in some cells of a type only.
AGREED = "cellconsensus"


def absent_markers(
    index: MarkerIndex, terms: Mapping[str, str], means: Float64, gene_ids: Sequence[str]
) -> list[tuple[str, list[int]]]:
    """Return the labels whose known markers are absent in their own cells, with the columns of these markers.

    Parameters
    ----------
    terms
        Label -> its term, or empty; in the order of the rows of ``means``.
    means
        (n_labels, n_genes) mean log1p CP10k.
    gene_ids
        (n_genes,) ids, in the form of the index.
    """
    at = {g: k for k, g in enumerate(gene_ids)}
    most = means.max(axis=0)
    doubted = []
    for mean, (label, cl_id) in zip(means, terms.items(), strict=True):
        lacking: list[int] = []
        # Cells of a broad label may have only the markers of one of its subtypes.
        for term in (cl_id, *index.below(cl_id)):
            own = [at[g] for g in index.telling_markers(term) if g in at and most[at[g]] >= EXPRESSED]
            absent = [k for k in own if mean[k] < ABSENT * most[k]]
            if len(own) >= LEAST:
                lacking = lacking or absent
                if len(own) - len(absent) > FEW * len(own):
                    break
        else:
            if lacking:
                doubted.append((label, lacking))
    return doubted


def marker_notes(
    kb: KnowledgeBase,
    resolver: GeneResolver,
    sample: TrainingSample,
    gene_ids: Sequence[str],
    terms: Mapping[str, str],
) -> list[str]:
    """Return a warning about labels of a reference whose known markers are absent in their cells.

    Parameters
    ----------
    sample
        Labelled cells over the genes ``gene_ids``, classes in the order of ``terms``.
    terms
        Label -> its term, or empty.
    """
    n = np.bincount(sample.labels, minlength=len(terms))
    member = sp.csr_matrix(
        (np.ones(len(sample.labels), dtype=np.float32), (sample.labels, np.arange(len(sample.labels)))),
        shape=(len(terms), len(sample.labels)),
    )
    means = (member @ sample.X).toarray() / np.maximum(n, 1)[:, None]
    large = n >= CELLS
    kept_terms = {label: term for (label, term), enough in zip(terms.items(), large, strict=True) if enough}
    if len(kept_terms) < 2:
        return []
    key = ortholog_key(resolver)
    index = marker_index(kb, resolver, key, without=AGREED)
    doubted = absent_markers(index, kept_terms, means[large], [key(g) for g in gene_ids])
    if not doubted:
        return []
    table = kb.genes()
    symbols = dict(zip(table["gene_id"], table["symbol"], strict=True))
    size = dict(zip(terms, n.tolist(), strict=True))
    said = [
        f"'{label}': {', '.join(str(symbols.get(gene_ids[k], gene_ids[k])) for k in columns[:3])} "
        f"not found in {size[label]:,} cells, but in others"
        for label, columns in doubted[:3]
    ]
    more = f"; and {len(doubted) - 3} other labels" if len(doubted) > 3 else ""
    return [f"warning: known markers of labels are absent in their cells: {'; '.join(said)}{more}"]

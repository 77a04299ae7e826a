"""One axis of genes for cells of two species, against sums gene by gene."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.base.types import no_progress
from scvec.model.matching import MIN_CELLS, PSEUDO, MatchedSource, align_species, common_axis, gene_statistics
from scvec.model.resolvers import GeneResolver

#: Human gene -> mouse genes: one to one, one to many, many to one (H4 and H5), and none (H6, M9).
PARTNERS = {"H1": ["M1"], "H2": ["M2", "M3"], "H3": ["M4"], "H4": ["M5"], "H5": ["M5"], "H6": []}
HUMAN, MOUSE = list(PARTNERS), ["M1", "M2", "M3", "M4", "M5", "M9"]


@pytest.fixture(scope="module")
def resolver() -> GeneResolver:
    names = [("human", g) for g in HUMAN] + [("mouse", g) for g in MOUSE]
    aliases = pd.DataFrame(names, columns=["species", "gene_id"]).assign(kind="symbol")
    aliases["name"] = "symbol-" + aliases["gene_id"]
    pairs = [(h, m, "one2one" if h in ("H1", "H3") else "many") for h, ms in PARTNERS.items() for m in ms]
    rows = [(a, "human", b, "mouse", kind, 1.0) for a, b, kind in pairs]
    columns = ["gene_id", "species", "other_id", "other_species", "kind", "confidence"]
    return GeneResolver(aliases, pd.DataFrame(rows, columns=columns))


class Source:
    """Cells in memory; ``chunks`` as those of a file."""

    def __init__(self, X: Any, genes: list[str]) -> None:
        self.X, self.n_obs, self.name, self.notes = X, X.shape[0], "cells.h5ad", []
        self.names = [f"symbol-{g}" for g in genes]

    def chunks(self, size: int, rows: Any = None) -> Any:
        wanted = np.arange(self.n_obs) if rows is None else rows
        for start in range(0, len(wanted), 3):
            yield self.X[wanted[start : start + 3]]


def file(resolver: GeneResolver, genes: list[str], n: int, seed: int) -> MatchedSource:
    rng = np.random.default_rng(seed)
    linear = rng.poisson(2.0, (n, len(genes))) * rng.uniform(0.5, 30.0, (n, len(genes)))
    source: Any = Source(sp.csr_matrix(np.log1p(linear).astype(np.float32)), genes)
    return MatchedSource(source, resolver.resolve(source.names), "index", 1.0)


def naive(found: MatchedSource, targets: list[str], main: str) -> np.ndarray:
    """Return cells over targets, linear: each gene's value handed out one cell at a time."""
    own = found.match.species == main
    back: dict[str, list[str]] = defaultdict(list)
    for human, mice in PARTNERS.items():
        for mouse in mice:
            back[mouse].append(human)
    partners = PARTNERS if found.match.species == "human" else back
    source: Any = found.source
    linear = np.expm1(source.X.toarray().astype(np.float64))
    out = np.zeros((len(linear), len(targets)))
    for c, cell in enumerate(linear):
        for gene, value in zip(found.match.gene_ids, cell, strict=True):
            there = [gene] if own else [p for p in partners[str(gene)] if p in targets]
            for partner in there:
                if partner in targets:
                    out[c, targets.index(partner)] += value / len(there)
    return out


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_cells_of_both_species_over_one_axis(
    resolver: GeneResolver, seed: int, n_human: int, n_mouse: int, mouse_first: bool
) -> None:
    rng = np.random.default_rng(seed)
    human = file(resolver, [g for g in HUMAN if g in ("H1", "H3") or rng.random() < 0.7], n_human, seed)
    mouse = file(resolver, [g for g in MOUSE if g in ("M1", "M4") or rng.random() < 0.7], n_mouse, seed)
    files = [mouse, human] if mouse_first else [human, mouse]
    axis = common_axis(files, resolver)
    main = "human" if n_human > n_mouse else "mouse" if n_mouse > n_human else files[0].match.species
    assert axis.species == main and next(iter(axis.n_cells)) == main
    assert axis.n_cells == {"human": n_human, "mouse": n_mouse}
    # What both measured and nothing else: H1 and H3 (M1 and M4) always.
    of_main, other = (human, mouse) if main == "human" else (mouse, human)
    reached = naive_reach(of_main, other)
    assert axis.gene_ids == sorted(g for g in of_main.match.gene_ids if g in reached)
    for one, genes in zip(files, axis.maps, strict=True):
        assert genes.measured.all()
        got = sp.vstack([chunk.X for chunk in one.chunks(genes)])
        np.testing.assert_allclose(np.expm1(got.toarray()), naive(one, axis.gene_ids, main), rtol=1e-4)


def naive_reach(main: MatchedSource, other: MatchedSource) -> set[str]:
    pairs = [(h, m) for h, mice in PARTNERS.items() for m in mice]
    if main.match.species == "mouse":
        pairs = [(m, h) for h, m in pairs]
    there = [(a, b) for a, b in pairs if a in main.match.gene_ids and b in other.match.gene_ids]
    sure = {(h, m) for h, m in (("H1", "M1"), ("H3", "M4"))}
    # A gene with a one-to-one partner goes there alone; here those have no other partner at all.
    assert all(pair in pairs or pair[::-1] in pairs for pair in sure)
    return {a for a, _ in there}


def test_the_genes_of_one_species_are_as_before(resolver: GeneResolver) -> None:
    files = [file(resolver, HUMAN, 4, 0), file(resolver, HUMAN[:4], 9, 1)]
    axis = common_axis(files, resolver)
    assert axis.gene_ids == HUMAN[:4] and axis.n_cells == {"human": 13} and axis.factors == {}
    assert axis.notes == ("left out 2 genes that are not in every file",)
    assert files[0].source.notes == []
    aligned, notes = align_species(axis, files, np.zeros(13, np.int64))
    assert aligned is axis and notes == []


def test_files_without_a_gene_in_common_are_refused(resolver: GeneResolver) -> None:
    with pytest.raises(InputError, match="no gene in common"):
        common_axis([file(resolver, ["H1", "H6"], 3, 0), file(resolver, ["M4", "M9"], 2, 0)], resolver)


def test_genes_of_the_smaller_species_are_scaled_by_shared_classes(resolver: GeneResolver) -> None:
    human, mouse = file(resolver, HUMAN, 40, 0), file(resolver, MOUSE, 30, 1)
    axis = common_axis([human, mouse], resolver)
    rng = np.random.default_rng(3)
    # Class 2 is of one species only, class 3 of too few cells of the other, some cells have none.
    ours = [0] * 15 + [1] * 10 + [2] * 8 + [3] * 5 + [-1] * 2
    theirs = [0] * 6 + [1] * 18 + [3] * (MIN_CELLS - 1) + [-1] * 2
    parts = [rng.permutation(ours), rng.permutation(theirs)]
    codes = np.concatenate(parts)
    scaled, notes = align_species(axis, [human, mouse], codes)
    values = [naive(human, axis.gene_ids, "human"), naive(mouse, axis.gene_ids, "human")]
    means = [
        np.mean([v[c == k].mean(axis=0) for k in (0, 1)], axis=0) for v, c in zip(values, parts, strict=True)
    ]
    expected = (means[0] + PSEUDO) / (means[1] + PSEUDO)
    assert list(scaled.factors) == ["mouse"] and "by 2 common labels" in notes[0]
    np.testing.assert_allclose(scaled.factors["mouse"], expected, rtol=1e-4)
    assert scaled.maps[0] is axis.maps[0]
    got = sp.vstack([chunk.X for chunk in mouse.chunks(scaled.maps[1])]).toarray()
    np.testing.assert_allclose(np.expm1(got), values[1] * expected, rtol=1e-3)


def test_species_without_a_shared_class_give_a_warning(resolver: GeneResolver) -> None:
    human, mouse = file(resolver, HUMAN, 20, 0), file(resolver, MOUSE, 10, 1)
    axis = common_axis([human, mouse], resolver)
    same, notes = align_species(axis, [human, mouse], np.repeat([0, 1], [20, 10]))
    assert same.factors == {} and same.maps == axis.maps
    assert notes[0].startswith("warning: ") and "--label-map" in notes[0]


def test_statistics_are_over_all_files_and_a_part_of_the_axis_is_as_in_the_whole(
    resolver: GeneResolver,
) -> None:
    human, mouse = file(resolver, HUMAN, 60, 0), file(resolver, MOUSE, 50, 1)
    axis = common_axis([human, mouse], resolver)
    stats, scores, _ = gene_statistics(axis, [human, mouse], no_progress)
    values = np.concatenate([naive(one, axis.gene_ids, "human") for one in (human, mouse)])
    np.testing.assert_allclose(stats.linear_mean, values.mean(axis=0), rtol=1e-4)
    assert stats.n_cells == 110 and scores.shape == (len(axis.gene_ids),)
    assert any("orthologs" in note for note in axis.notes)
    part = axis.select(np.array([0, 3]))
    assert part.gene_ids == [axis.gene_ids[0], axis.gene_ids[3]]
    got = sp.vstack([chunk.X for chunk in mouse.chunks(part.maps[1])]).toarray()
    np.testing.assert_allclose(np.expm1(got), values[60:][:, [0, 3]], rtol=1e-4)


def test_the_map_of_a_query_is_that_of_the_reference(resolver: GeneResolver) -> None:
    # One of H2's two mouse genes was measured: it counts as a whole, in reference and query alike.
    human, mouse = file(resolver, HUMAN, 9, 0), file(resolver, MOUSE, 5, 1)
    axis = common_axis([human, mouse], resolver)
    again = resolver.map_to(mouse.match, axis.gene_ids, axis.species)
    assert (again.weights != axis.maps[1].weights).nnz == 0

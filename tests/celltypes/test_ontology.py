"""The broad term: the deepest one that is still certain."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scvec.celltypes.terms import ClassOntology

# cell > lymphocyte > T cell > {CD4, CD8};  lymphocyte > B cell;  cell > neuron.  "odd" has no term.
LINEAGE = {
    "CD4": ("CD4", "T", "lymphocyte", "cell"),
    "CD8": ("CD8", "T", "lymphocyte", "cell"),
    "B": ("B", "lymphocyte", "cell"),
    "neuron": ("neuron", "cell"),
}
DEPTH = {"cell": 0, "lymphocyte": 1, "neuron": 1, "T": 2, "B": 2, "CD4": 3, "CD8": 3}
NAMES = {"cell": "cell", "lymphocyte": "lymphocyte", "neuron": "neuron", "T": "T cell", "B": "B cell",
         "CD4": "CD4-positive T cell", "CD8": "CD8-positive T cell"}  # fmt: skip
ONTOLOGY = ClassOntology(("CD4", "CD8", "B", "neuron", ""), NAMES, LINEAGE, DEPTH)


def broad(proba, ontology=ONTOLOGY, **options):
    """Return labels and ids of cells as arrays of text."""
    return tuple(np.asarray(part, dtype=object) for part in ontology.coded_broad(proba, **options))


@pytest.mark.parametrize(
    ("proba", "term", "label"),
    [
        ([0.9, 0.1, 0.0, 0.0, 0.0], "CD4", "CD4-positive T cell"),
        ([0.5, 0.45, 0.05, 0.0, 0.0], "T", "T cell"),
        ([0.3, 0.3, 0.4, 0.0, 0.0], "lymphocyte", "lymphocyte"),
        ([0.25, 0.25, 0.25, 0.25, 0.0], "cell", "cell"),
        ([0.1, 0.1, 0.1, 0.1, 0.6], "", ""),
        ([0.8, 0.2, 0.0, 0.0, 0.0], "CD4", "CD4-positive T cell"),  # the bar itself passes
        ([0.79, 0.21, 0.0, 0.0, 0.0], "T", "T cell"),
        ([0.0, 0.0, 0.0, 1.0, 0.0], "neuron", "neuron"),
    ],
)
def test_the_deepest_term_above_the_bar(proba: list[float], term: str, label: str) -> None:
    labels, ids = broad(np.array([proba], np.float32))
    assert (list(labels), list(ids)) == ([label], [term])


def test_cells_are_judged_one_by_one() -> None:
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([0.3] * 5, 50).astype(np.float32)
    together = broad(proba)
    alone = [broad(p[None]) for p in proba]
    assert list(together[1]) == [ids[0] for _, ids in alone]
    assert [len(found) for found in broad(np.zeros((0, 5), np.float32))] == [0, 0]


def test_against_a_loop() -> None:
    proba = np.random.default_rng(1).dirichlet([0.3] * 5, 200)
    for p, term in zip(proba, broad(proba.astype(np.float32))[1], strict=True):
        mass = {
            t: sum(p[c] for c, own in enumerate(ONTOLOGY.terms) if t in LINEAGE.get(own, ())) for t in DEPTH
        }
        passing = [t for t in DEPTH if mass[t] >= 0.8]
        assert term == max(passing, key=lambda t: DEPTH[t], default="")


def test_the_likelier_of_two_equally_deep_terms_is_used() -> None:
    twins = ClassOntology(("x", "y"), {"x": "X", "y": "Y"}, {"x": ("x",), "y": ("y",)}, {"x": 1, "y": 1})
    assert broad(np.array([[0.4, 0.6], [0.6, 0.4]], np.float32), twins, bar=0.3)[1].tolist() == ["y", "x"]


def test_without_terms() -> None:
    empty = ClassOntology(("", ""), {}, {}, {})
    found = broad(np.array([[0.5, 0.5]] * 3, np.float32), empty)
    assert [list(part) for part in found] == [[""] * 3, [""] * 3]


def test_json_round_trip() -> None:
    assert ClassOntology.from_dict(json.loads(json.dumps(ONTOLOGY.to_dict()))) == ONTOLOGY

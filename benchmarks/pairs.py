"""Reference -> query pairs of the annotation benchmark.

To add a pair, append a :class:`Pair` to ``PAIRS``: two file names and, where the two sides call types by
other names, a map of labels. Files are looked for in ``scvec/data``, then in ``$SCVEC_SHARED_DATA`` or, where
that is not set, in ``../shared/data`` beside the project; a pair whose files are absent is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["LEAVE_ONE_OUT", "PAIRS", "Pair", "chosen", "find_file"]

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Pair:
    """One reference and one query.

    Attributes
    ----------
    reference, query
        File names.
    reference_rows, query_rows
        ``(column of obs, values)``: only those cells. ``("half", ("0",))`` takes every other cell of each
        label, ``("half", ("1",))`` the rest.
    reference_key, query_key
        Columns of obs with the labels.
    labels
        Label of either side -> name under which it is scored; labels that are missing keep theirs. Methods
        see the labels as they are in the file: types are renamed and merged when answers are scored.
    terms
        Name under which a label is scored -> Cell Ontology id.
    batch_key
        Column of obs of the reference with donors or batches; given to the methods that can use it.
    shift
        What changes between reference and query: ``donor``, ``species``, ``platform``, ``genes``, ``depth``.
    leave_out
        A label that is taken out of the reference: its cells in the query are novel.
    genes, counts
        Share of the query's genes that are kept, and share of each cell's counts.
    """

    name: str
    reference: str
    query: str
    shift: tuple[str, ...]
    reference_rows: tuple[str, tuple[str, ...]] | None = None
    query_rows: tuple[str, tuple[str, ...]] | None = None
    reference_key: str = "cell_type"
    query_key: str = "cell_type"
    labels: Mapping[str, str] = field(default_factory=dict)
    terms: Mapping[str, str] = field(default_factory=dict)
    batch_key: str | None = None
    leave_out: str | None = None
    genes: float = 1.0
    counts: float = 1.0


def find_file(name: str) -> Path | None:
    """Return where a file of a pair lies, or None."""
    shared = os.environ.get("SCVEC_SHARED_DATA") or PROJECT.parent / "shared" / "data"
    for folder in (PROJECT / "scvec" / "data", Path(shared)):
        if (folder / name).is_file():
            return folder / name
    return None


#: Human and mouse cells were labelled apart: these types are told apart in one species only.
PANCREAS_MERGED = {
    "activated_stellate": "stellate",
    "quiescent_stellate": "stellate",
    "T_cell": "immune",
    "t_cell": "immune",
    "B_cell": "immune",
    "immune_other": "immune",
    "macrophage": "immune",
    "mast": "immune",
}
PANCREAS_TERMS = {
    "acinar": "CL:0002064",
    "activated_stellate": "CL:0002410",
    "alpha": "CL:0000171",
    "beta": "CL:0000169",
    "delta": "CL:0000173",
    "ductal": "CL:0002079",
    "endothelial": "CL:0000115",
    "epsilon": "CL:0005019",
    "gamma": "CL:0002275",
    "immune": "CL:0000738",
    "macrophage": "CL:0000235",
    "mast": "CL:0000097",
    "quiescent_stellate": "CL:0002410",
    "schwann": "CL:0002573",
    "stellate": "CL:0002410",
    "t_cell": "CL:0000084",
}
#: pbmc3k (left) and the three-assay set (right) onto one set of names.
BLOOD_LABELS = {
    "Naive CD4 T": "CD4 T",
    "Memory CD4 T": "CD4 T",
    "T_CD4": "CD4 T",
    "T_CD8": "CD8 T",
    "CD14+ Mono": "CD14 monocyte",
    "Mono_CD14": "CD14 monocyte",
    "FCGR3A+ Mono": "CD16 monocyte",
    "Mono_CD16": "CD16 monocyte",
    "MK": "Platelet",
}
BLOOD_TERMS = {
    "B": "CL:0000236",
    "CD14 monocyte": "CL:0001054",
    "CD14+ Mono": "CL:0001054",
    "CD16 monocyte": "CL:0002396",
    "CD4 T": "CL:0000624",
    "CD8 T": "CL:0000625",
    "DC": "CL:0000451",
    "FCGR3A+ Mono": "CL:0002396",
    "HSC": "CL:0000037",
    "Memory CD4 T": "CL:0000897",
    "NK": "CL:0000623",
    "Naive CD4 T": "CL:0000895",
    "Platelet": "CL:0000233",
}

DONORS = Pair(
    name="donors",
    reference="baron_human.h5ad",
    query="baron_human.h5ad",
    shift=("donor",),
    reference_rows=("donor", ("human1", "human2")),
    query_rows=("donor", ("human3", "human4")),
    terms=PANCREAS_TERMS,
    batch_key="donor",
)
HUMAN_MOUSE = Pair(
    name="human-mouse",
    reference="baron_human.h5ad",
    query="baron_mouse.h5ad",
    shift=("species",),
    labels=PANCREAS_MERGED,
    terms=PANCREAS_TERMS,
    batch_key="donor",
)
MOUSE_HUMAN = replace(HUMAN_MOUSE, name="mouse-human", reference="baron_mouse.h5ad", query="baron_human.h5ad")
BLOOD = Pair(
    name="pbmc",
    reference="pbmc3k_10x.h5ad",
    query="pbmc_3assays_symphony_1767genes.h5ad",
    shift=("platform", "genes"),
    labels=BLOOD_LABELS,
    terms=BLOOD_TERMS,
)


def thinned(pair: Pair) -> list[Pair]:
    """Return the pair with a tenth of the query's genes, and with a fifth of its counts."""
    return [
        replace(pair, name=f"{pair.name}-genes10", genes=0.1, shift=(*pair.shift, "genes")),
        replace(pair, name=f"{pair.name}-counts20", counts=0.2, shift=(*pair.shift, "depth")),
    ]


PAIRS = [DONORS, HUMAN_MOUSE, MOUSE_HUMAN, BLOOD, *thinned(DONORS), *thinned(HUMAN_MOUSE)]

#: Types with at least 30 cells in all.
PANCREAS_TYPES = "acinar activated_stellate alpha beta delta ductal endothelial gamma quiescent_stellate"
BLOOD_TYPES = ("B", "CD14+ Mono", "CD8 T", "DC", "FCGR3A+ Mono", "Memory CD4 T", "NK", "Naive CD4 T")

BLOOD_HALVES = replace(
    BLOOD,
    query=BLOOD.reference,
    shift=("cells",),
    labels={},
    reference_rows=("half", ("0",)),
    query_rows=("half", ("1",)),
)
#: One type at a time is missing from the reference: how well are its cells told from known ones?
LEAVE_ONE_OUT = [
    *(replace(DONORS, name=f"without {t} (pancreas)", leave_out=t) for t in PANCREAS_TYPES.split()),
    *(replace(BLOOD_HALVES, name=f"without {t} (blood)", leave_out=t) for t in BLOOD_TYPES),
]

GROUPS = {
    "main": PAIRS,
    "shifted": [p for p in PAIRS if p.shift != ("donor",)],
    "out": LEAVE_ONE_OUT,
    "out-pancreas": [p for p in LEAVE_ONE_OUT if "pancreas" in p.name],
    "out-blood": [p for p in LEAVE_ONE_OUT if "blood" in p.name],
    "all": [*PAIRS, *LEAVE_ONE_OUT],
}


def chosen(words: str) -> list[Pair]:
    """Return the pairs that a comma-separated list of names and groups stands for, each once.

    Raises
    ------
    SystemExit
        If a word is neither.
    """
    by_name = {p.name: [p] for p in GROUPS["all"]}
    found: dict[str, Pair] = {}
    for word in (w.strip() for w in words.split(",") if w.strip()):
        some = GROUPS.get(word) or by_name.get(word)
        if not some:
            raise SystemExit(f"no pair {word!r}: groups {', '.join(GROUPS)}; pairs {', '.join(by_name)}")
        found |= {p.name: p for p in some}
    return list(found.values())

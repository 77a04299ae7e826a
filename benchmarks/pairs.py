"""Reference -> query pairs of the annotation benchmark.

To add a pair, append a :class:`Pair` to ``PAIRS``: two file names and, where the two sides call types by
other names, a map of labels; or add it to ``pairs.json`` beside the files. Files are looked for in
``scvec/data``, then in ``$SCVEC_SHARED_DATA`` or, where that is not set, in ``../shared/data`` beside the
project; a pair whose files are absent is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

__all__ = [
    "CURVES", "LEAVE_ONE_OUT", "OLD", "PAIRS", "PER_TYPE", "SIX", "SIX_FACTS", "TISSUES", "VALUES", "Pair",
    "chosen", "find_file", "rotation",
]  # fmt: skip

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
    reference_labels, query_labels
        Label of the file -> label that the methods are given, and that the query's cells have; None leaves
        its cells out. Labels that are missing keep theirs.
    labels
        Label of either side, after that -> name under which it is scored; labels that are missing keep
        theirs. These types are renamed and merged only when answers are scored.
    terms
        Name under which a label is scored -> Cell Ontology id.
    batch_key
        Column of obs of the reference with donors or batches; given to the methods that can use it.
    shift
        What changes between reference and query: ``donor``, ``species``, ``platform``, ``genes``, ``depth``.
    tissue
        Of the query; ``many`` where the reference is of many tissues. See :func:`rotation`.
    per_type, draw
        Keep that many cells of each label of the reference, or all where there are fewer, and which draw of
        them. The first cells of a larger number are those of a smaller one.
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
    reference_labels: Mapping[str, str | None] = field(default_factory=dict)
    query_labels: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    terms: Mapping[str, str] = field(default_factory=dict)
    batch_key: str | None = None
    leave_out: str | None = None
    genes: float = 1.0
    counts: float = 1.0
    tissue: str = "pancreas"
    per_type: int | None = None
    draw: int = 0

    @property
    def kind(self) -> str:
        """Return the table that its rows go to: ``main``, ``out`` or ``curve``."""
        return "out" if self.leave_out is not None else "main" if self.per_type is None else "curve"

    def scored(self, labels: Iterable[str]) -> np.ndarray:
        """Return (n,) the names under which labels of either side are scored."""
        return np.array([self.labels.get(str(x), str(x)) for x in labels], dtype=str)


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
    tissue="blood",
)


def thinned(pair: Pair) -> list[Pair]:
    """Return the pair with a tenth of the query's genes, and with a fifth of its counts."""
    return [
        replace(pair, name=f"{pair.name}-genes10", genes=0.1, shift=(*pair.shift, "genes")),
        replace(pair, name=f"{pair.name}-counts20", counts=0.2, shift=(*pair.shift, "depth")),
    ]


OLD = [DONORS, HUMAN_MOUSE, MOUSE_HUMAN, BLOOD, *thinned(DONORS), *thinned(HUMAN_MOUSE)]

#: Files whose values are neither counts nor log1p CP10k. scvec is given them as they are; other tools, which
#: ask for log1p CP10k, get what their users would make of them first.
VALUES = {
    "brain_darmanis_human.h5ad": "linear",
    "liver_aizarani_human.h5ad": "linear",
    "tabula_muris_facs_8tissues.h5ad": "linear",
    "hnscc_puram_ref180_7943genes.h5ad": "log2(TPM/10+1)",
}

#: Pair of pairs.json -> tissue, and what changes. A pair that is not here is a tissue of its own.
SIX_FACTS = {
    "pbmc3k->kang": ("blood", ("stimulation", "genes")),
    "pbmc3k->puram": ("tumour", ("platform", "tissue", "genes")),
    "darmanis->tm_brain": ("brain", ("species",)),
    "tm_brain->darmanis": ("brain", ("species",)),
    "aizarani->tm_liver": ("liver", ("species", "platform")),
    "tm_liver->aizarani": ("liver", ("species", "platform")),
}


def _rows(where: Mapping[str, list[str]] | None) -> tuple[str, tuple[str, ...]] | None:
    """Return ``{column: [values]}`` as the rows of a pair."""
    if not where:
        return None
    ((column, values),) = where.items()
    return column, tuple(values)


def read_pairs(text: str) -> list[Pair]:
    """Return the pairs of a ``pairs.json``.

    Raises
    ------
    ValueError
        If it is no JSON, or a filter has several columns.
    """
    found = []
    for name, facts in json.loads(text).items():
        tissue, shift = SIX_FACTS.get(name, (name, ("unknown",)))
        found.append(
            Pair(
                name=name,
                reference=facts["reference"],
                query=facts["query"],
                shift=shift,
                tissue=tissue,
                reference_rows=_rows(facts.get("reference_where")),
                query_rows=_rows(facts.get("query_where")),
                reference_labels=facts["reference_labels"],
                query_labels=facts["query_labels"],
            )
        )
    return found


def _six() -> list[Pair]:
    path = find_file("pairs.json")
    return read_pairs(path.read_text(encoding="utf-8")) if path else []


SIX = _six()

#: Tabula Muris names endothelium after its organ. All tissues are one reference, its labels are those of the
#: file; "leukocyte" stands for cells of types that have labels of their own beside it, so it is left out.
_MURIS_ENDOTHELIUM = ("endothelial cell", "endocardial cell", "lung endothelial cell")
_SINUSOID = "endothelial cell of hepatic sinusoid"
MURIS = Pair(
    name="",
    reference="tabula_muris_facs_8tissues.h5ad",
    query="",
    shift=(),
    reference_labels={"leukocyte": None},
    tissue="many",
)
TISSUES = [
    # Endocrine, ductal and Schwann cells are novel. Stellate cells lie between the pericytes, fibroblasts and
    # smooth muscle of the reference, and "immune_other" says nothing: not comparable, left out. Monocytes,
    # macrophages and microglia are scored as one, since the reference has "myeloid cell" beside them.
    replace(
        MURIS,
        name="muris->baron_mouse",
        query="baron_mouse.h5ad",
        shift=("tissue", "platform"),
        query_labels={"activated_stellate": None, "quiescent_stellate": None, "immune_other": None},
        labels={
            **dict.fromkeys((*_MURIS_ENDOTHELIUM, _SINUSOID), "endothelial"),
            **dict.fromkeys(
                (
                    "macrophage",
                    "Kupffer cell",
                    "microglial cell",
                    "monocyte",
                    "classical monocyte",
                    "myeloid cell",
                ),
                "myeloid",
            ),
            "B_cell": "B cell",
            "T_cell": "T cell",
        },
    ),
    # As in the pairs of brain alone. Vascular cells are endothelium or pericytes, of whatever organ.
    replace(
        MURIS,
        name="muris->darmanis",
        query="brain_darmanis_human.h5ad",
        shift=("species",),
        query_labels={"fetal_quiescent": None},
        labels={
            **dict.fromkeys((*_MURIS_ENDOTHELIUM, _SINUSOID, "brain pericyte", "Vascular"), "vascular"),
            **dict.fromkeys(("astrocyte", "Bergmann glial cell", "Astrocyte"), "astrocyte"),
            "Neuron": "neuron",
            "Oligodendrocyte": "oligodendrocyte",
            "oligodendrocyte precursor cell": "OPC",
            "microglial cell": "microglia",
        },
    ),
    # "Epithelial cell" and "Stellate cell/Myofibroblast" are wider than the reference's labels: left out.
    replace(
        MURIS,
        name="muris->aizarani",
        query="liver_aizarani_human.h5ad",
        shift=("species", "platform"),
        query_labels={"Epithelial cell": None, "Stellate cell/Myofibroblast": None},
        labels={
            **dict.fromkeys(("T cell", "natural killer cell", "T/NK cell"), "T/NK cell"),
            **dict.fromkeys((*_MURIS_ENDOTHELIUM, "Macrovascular endothelial cells"), "endothelial"),
            **dict.fromkeys((_SINUSOID, "Liver sinusoidal endothelial cell"), "sinusoidal endothelial"),
            "Hepatocyte": "hepatocyte",
        },
    ),
]

PAIRS = [*OLD, *SIX, *TISSUES]

#: Cells a type in the learning curves; after these come all, which is the pair itself.
PER_TYPE = (1, 2, 5, 10, 20)
CURVE_BASES = ("donors", "human-mouse", "pbmc", "pbmc3k->kang", "darmanis->tm_brain", "aizarani->tm_liver")
CURVES = [
    replace(pair, name=f"{pair.name}-cells{n}", per_type=n)
    for pair in PAIRS
    if pair.name in CURVE_BASES
    for n in PER_TYPE
]

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
    "old": OLD,
    "six": SIX,
    "tissues": TISSUES,
    "curve": [*(p for p in PAIRS if p.name in CURVE_BASES), *CURVES],
    "out": LEAVE_ONE_OUT,
    "out-pancreas": [p for p in LEAVE_ONE_OUT if "pancreas" in p.name],
    "out-blood": [p for p in LEAVE_ONE_OUT if "blood" in p.name],
    "all": [*PAIRS, *LEAVE_ONE_OUT, *CURVES],
}


def rotation(pairs: Iterable[Pair] | None = None) -> Iterator[tuple[str, list[Pair], list[Pair]]]:
    """Yield a tissue, the pairs that a method may be chosen on, and those it is reported on: its own.

    A pair of another tissue that asks the same cells (the brain of Darmanis is asked of brain alone and of
    many tissues) is in neither.
    """
    pairs = list(PAIRS if pairs is None else pairs)
    for tissue in dict.fromkeys(p.tissue for p in pairs):
        reported = [p for p in pairs if p.tissue == tissue]
        others = [p for p in pairs if p.tissue != tissue]
        yield tissue, [p for p in others if not any(_same_cells(p, q) for q in reported)], reported


def _same_cells(a: Pair, b: Pair) -> bool:
    """Return whether some cells may be in the query of both."""
    if a.query != b.query or a.query_rows is None or b.query_rows is None:
        return a.query == b.query
    return a.query_rows[0] != b.query_rows[0] or bool(set(a.query_rows[1]) & set(b.query_rows[1]))


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
        some = GROUPS.get(word, by_name.get(word))
        if some is None:
            raise SystemExit(f"no pair {word!r}: groups {', '.join(GROUPS)}; pairs {', '.join(by_name)}")
        found |= {p.name: p for p in some}
    return list(found.values())

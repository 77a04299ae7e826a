"""The options of a query. Importing this loads nothing heavy: the command line reads its defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError

__all__ = ["COLUMNS", "DEVICES", "METHODS", "NOVELTY", "UNMATCHED", "QueryOptions", "check_columns"]

METHODS = ("both", "knn", "head")
NOVELTY = ("relative", "absolute")
COLUMNS = ("scvec", "celltypist")
UNMATCHED = ("drop", "text")
DEVICES = ("auto", "cpu", "cuda")

#: Options that decide what the answer is. An annotation records them.
ANSWER = (
    "method n_neighbors where exact recall layer values coverage false_novel_rate novelty unmatched_genes"
).split()


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """How the cells of a query are read and annotated, and where the answer goes.

    Attributes
    ----------
    reference
        Name of the reference; may be left out where the store has one. Names of several: each annotates the
        cells, and the answers are joined over the Cell Ontology.
    output
        ``.h5ad`` (everything in the input, and the annotation), ``.csv`` or ``.parquet`` (the annotation).
    report
        An ``.html`` file for people: a map of the cells, tables, evidence for each label; the same numbers go
        into a ``.json`` file beside it. Needs the extra ``report``.
    title
        Name of the cells in the report; the name of the file when None.
    n_neighbors
        Reference cells that vote; clipped to the number of reference cells.
    method
        ``both``, ``knn`` or ``head``.
    species
        ``auto``, ``human`` or ``mouse``: whose genes the names are.
    layer
        Where the values are: a layer, ``"X"`` or ``"raw"``; found when None.
    values
        What the values are: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`); ``auto`` finds it and adds a note.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of the free memory when None. It sets the
        number of cells in a chunk and changes no answer.
    where
        SQL condition over the reference's obs: only those cells are neighbours, only their labels are given.
    exact
        Compare with every cell of the reference. Flat indices, those of less than 200,000 cells, always do.
    recall
        Fraction (0-1) of the nearest cells that an approximate index is to find; that of the ingest when
        None.
    coverage
        Also give sets of labels that hold the true one for this fraction (0-1) of the cells of each type.
    false_novel_rate
        Fraction (0-1) of cells of known types that may be called novel.
    novelty
        ``relative``: what all cells of the query have in common against the reference (another platform, or
        another species) does not make them novel. ``absolute``: it does.
    majority_vote
        Also cluster the cells and give each the label of most of its cluster, in columns of its own. That
        label depends on the other cells of the query; needs the extra ``cluster``.
    name_novel
        Also name the groups of novel cells by known markers of cell types, in columns ``scvec_name...``
        (:func:`scvec.name`). Groups are clusters, or cells with the same label where igraph is not installed.
    tissue
        Where the cells are from, for ``name_novel``: ``lung``.
    columns
        ``scvec``, or ``celltypist``: tables get the columns that CellTypist writes instead, an h5ad both.
    unmatched_genes
        ``drop``, or ``text``: a query gene without a partner in the reference stands for a reference gene
        that the query lacks, where the text vectors of the two are similar (docs/species.md).
    force
        Go on where few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Path of the language model of a ``prompt`` reference, if it was moved since.
    engine
        ``local``, or ``ray``: workers and shards of the index on a Ray cluster, with the same answers.
        ``memory`` is then divided among the workers. Needs the extra ``ray``.
    ray_address
        ``HOST:PORT`` of the cluster's head, or ``auto`` on a node of it. When None, a cluster of this machine
        is started and stopped.

    Raises
    ------
    InputError
        If a value is not possible.
    """

    reference: str | Sequence[str] | None = None
    output: Path | str | None = None
    report: Path | str | None = None
    title: str | None = None
    n_neighbors: int = 15
    method: str = "both"
    species: str = "auto"
    layer: str | None = None
    values: str = "auto"
    memory: str | int | None = None
    where: str | None = None
    exact: bool = False
    recall: float | None = None
    coverage: float | None = None
    false_novel_rate: float = 0.05
    novelty: str = "relative"
    majority_vote: bool = False
    name_novel: bool = False
    tissue: str = ""
    columns: str = "scvec"
    unmatched_genes: str = "drop"
    force: bool = False
    device: str = "auto"
    llm: str | None = None
    engine: str = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str | None):
            names = tuple(dict.fromkeys(map(str, self.reference)))
            object.__setattr__(self, "reference", names if len(names) > 1 else next(iter(names), None))
        check_columns(self.columns)
        _check_one_of("method", self.method, METHODS)
        _check_one_of("novelty", self.novelty, NOVELTY)
        _check_one_of("unmatched_genes", self.unmatched_genes, UNMATCHED)
        _check_one_of("device", self.device, DEVICES)
        for name in ("coverage", "recall", "false_novel_rate"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                what = f"{name} is a fraction between 0 and 1, not {value:g}"
                raise InputError(what, _flag(name), "give one such as 0.9", code="option-out-of-range")
        if self.n_neighbors < 1:
            raise InputError(f"{self.n_neighbors} neighbours cannot vote", "--n-neighbors", "give 1 or more")
        if self.values != "auto":
            from scvec.ingest.cells.values import check_values

            check_values(self.values)

    @property
    def one_reference(self) -> str | None:
        """The name of the only reference.

        Raises
        ------
        InputError
            If there are several names.
        """
        if self.reference is None or isinstance(self.reference, str):
            return self.reference
        given = " ".join(f"--reference {name}" for name in self.reference)
        raise InputError("this takes a single reference", given, "give one --reference")

    def changed(self) -> dict[str, Any]:
        """Return the options that are not at their default, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def answer(self) -> dict[str, Any]:
        """Return the options that decide what the answer is."""
        return {name: getattr(self, name) for name in ANSWER}

    def command_line(self, cells: Any, store: Path | str | None = None) -> str:
        """Return the command that does the query again; options at their default are left out.

        Parameters
        ----------
        cells
            The file. An AnnData object is called ``CELLS.h5ad``.
        store
            The folder of the store; left out when None.
        """
        words = ["scvec", "query", str(cells) if isinstance(cells, str | Path) else "CELLS.h5ad"]
        chosen = self.changed() if store is None else {"store": store, **self.changed()}
        for name, value in chosen.items():
            if name != "title" and value is not None:
                many = value if isinstance(value, tuple) else (value,)
                words += [_flag(name)] if value is True else [w for v in many for w in (_flag(name), str(v))]
        return shlex.join(words)


def check_columns(columns: str) -> None:
    """Raise InputError where a table cannot have columns of this kind."""
    if columns not in COLUMNS:
        raise InputError(f"there are no columns {columns!r}", "--columns", f"give {' or '.join(COLUMNS)}")


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        what = f"there is no {name.replace('_', ' ')} {value!r}"
        raise InputError(what, _flag(name), f"give {', '.join(known[:-1])} or {known[-1]}")


def _flag(name: str) -> str:
    """Return the flag of an option on the command line."""
    return "-o" if name == "output" else f"--{name.replace('_', '-')}"

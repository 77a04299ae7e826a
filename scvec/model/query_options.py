"""Options of a query. This module imports nothing heavy, because the command line reads its defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError, check_choice, check_fraction, check_range

__all__ = ["COLUMNS", "DEVICES", "METHODS", "NOVELTY", "UNMATCHED", "QueryOptions"]

METHODS = ("both", "knn", "head")
NOVELTY = ("relative", "absolute")
COLUMNS = ("scvec", "celltypist")
UNMATCHED = ("drop", "text")
DEVICES = ("auto", "cpu", "cuda")

#: Options that affect the result. An annotation records them.
ANSWER = (
    "method n_neighbors vectors_only where exact recall layer values coverage false_novel_rate novelty "
    "unmatched_genes"
).split()


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """Options for reading and annotating the cells of a query, and for its output.

    Attributes
    ----------
    reference
        Name of the reference; None is enough if the store has only one. With several names, each reference
        annotates the cells, and the results are merged with the Cell Ontology.
    output
        ``.h5ad`` (the whole input plus the annotation), ``.csv`` or ``.parquet`` (the annotation alone).
    report
        An ``.html`` report with a map of the cells, tables, and evidence for each label. A ``.json`` file
        beside it has the same numbers. Needs the extra ``report``.
    title
        Name of the cells in the report; None for the name of the file.
    n_neighbors
        Number of reference cells that vote, at most the number of reference cells.
    method
        ``both``, ``knn`` or ``head``.
    vectors_only
        Leave out the gene-based members of a reference of vectors (``obsm:KEY``).
    species
        Species of the gene names: ``auto``, ``human`` or ``mouse``.
    layer
        Location of the values: a layer, ``"X"`` or ``"raw"``; None to detect it.
    values
        Scale of the values: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`). ``auto`` detects it and adds a note.
    memory
        Memory limit, in bytes or as text such as ``"4G"``; None for half of the free memory. It sets the
        number of cells in a chunk and does not change the result.
    where
        SQL condition on the obs of the reference. Only matching cells are neighbours, and only their labels
        are predicted.
    exact
        Compare with every cell of the reference. Flat indices (fewer than 200,000 cells) always do.
    recall
        Requested recall (0-1) of an approximate index: the fraction of the nearest cells that it finds. None
        for the recall of the ingest.
    coverage
        Also return label sets. For each type, this fraction (0-1) of the sets contains the true label.
    false_novel_rate
        Fraction (0-1) of cells of known types that may be called novel.
    novelty
        ``relative`` subtracts a shift that all cells of the query share, as between platforms or species.
        ``absolute`` does not.
    majority_vote
        Also cluster the cells, and add columns with the majority label of each cluster. These labels depend
        on the other cells of the query. Needs the extra ``cluster``.
    name_novel
        Also name the groups of novel cells by known markers of cell types, in columns ``scvec_name...``
        (:func:`scvec.name`). Groups are clusters, or cells with the same label where igraph is not installed.
    tissue
        Tissue of the cells, for ``name_novel``, as ``lung``.
    columns
        ``scvec`` or ``celltypist``. With ``celltypist``, tables have CellTypist's columns instead of scvec's,
        and an h5ad has both.
    unmatched_genes
        ``drop`` or ``text``. With ``text``, a query gene without a partner in the reference replaces a
        missing reference gene with a similar text vector (docs/species.md).
    force
        Continue even if few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Path of the language model of a ``prompt`` reference, if it moved since the ingest.
    engine
        ``local`` or ``ray``. ``ray`` uses workers and shards of the index on a Ray cluster, with the same
        results. The workers share ``memory``. Needs the extra ``ray``.
    ray_address
        ``HOST:PORT`` of the head of the cluster, or ``auto`` on one of its nodes. None starts and stops a
        cluster on this machine.

    Raises
    ------
    InputError
        If a value is out of range or unknown.
    """

    reference: str | Sequence[str] | None = None
    output: Path | str | None = None
    report: Path | str | None = None
    title: str | None = None
    n_neighbors: int = 15
    method: str = "both"
    vectors_only: bool = False
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
        check_choice("--columns", self.columns, COLUMNS)
        check_choice("--method", self.method, METHODS)
        check_choice("--novelty", self.novelty, NOVELTY)
        check_choice("--unmatched-genes", self.unmatched_genes, UNMATCHED)
        check_choice("--device", self.device, DEVICES)
        for name in ("coverage", "recall", "false_novel_rate"):
            value = getattr(self, name)
            if value is not None:
                check_fraction(_flag(name), value)
        check_range("--n-neighbors", self.n_neighbors, 1)
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
        raise InputError("this command takes a single reference", given, "give one --reference", code="usage")

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def answer(self) -> dict[str, Any]:
        """Return the options that affect the result."""
        return {name: getattr(self, name) for name in ANSWER}

    def command_line(self, cells: Any, store: Path | str | None = None) -> str:
        """Return the command that repeats the query, without options that have their default.

        Parameters
        ----------
        cells
            The file. An AnnData object appears as ``CELLS.h5ad``.
        store
            The folder of the store; None omits it.
        """
        words = ["scvec", "query", str(cells) if isinstance(cells, str | Path) else "CELLS.h5ad"]
        chosen = self.changed() if store is None else {"store": store, **self.changed()}
        for name, value in chosen.items():
            if name != "title" and value is not None:
                many = value if isinstance(value, tuple) else (value,)
                words += [_flag(name)] if value is True else [w for v in many for w in (_flag(name), str(v))]
        return shlex.join(words)


def _flag(name: str) -> str:
    """Return the flag of an option on the command line."""
    return "-o" if name == "output" else f"--{name.replace('_', '-')}"

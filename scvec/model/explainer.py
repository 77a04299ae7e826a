"""Which genes and which reference cells stand behind a label: computed again from the values of the cells."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Progress, no_progress
from scvec.ingest.cells.values import VALUES
from scvec.model.explanation import Explanation, GeneEvidence, generation_of, origins, same_reference, voters

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.base.types import CellChunk
    from scvec.ingest.cells.source import CellSource
    from scvec.model.annotation import Annotation
    from scvec.model.evidence import Evidence
    from scvec.stores.store.store import Store

__all__ = ["Explainer"]

#: Cells of a label that are looked at; more would not change the means.
MAX_CELLS = 500

Int64 = npt.NDArray[np.int64]


class Explainer:
    """An annotated data set that is open for questions; close it, or use it as a context manager.

    Make one with :meth:`of_file` or :meth:`of_annotation`.
    """

    def __init__(
        self,
        stack: ExitStack,
        store: Store,
        source: CellSource,
        parameters: Mapping[str, Any],
        label: npt.NDArray[np.str_],
        confidence: npt.NDArray[np.float32],
    ) -> None:
        from scvec.model.gene_fit import fitted_to
        from scvec.model.matching import match_genes
        from scvec.model.resolvers import stored_resolver
        from scvec.model.storage import load_model
        from scvec.model.unmatched import query_genes

        self._stack, self._store, self._source = stack, store, source
        self._label, self._confidence = label, confidence
        self.parameters = dict(parameters)
        self._stored = same_reference(store, parameters)
        species = str(parameters.get("species", "auto"))
        self._matched = match_genes(source, stored_resolver(store), species=species, force=True)
        unmatched = str(parameters.get("unmatched_genes", "drop"))
        self._genes = query_genes(store, self._stored, self._matched, unmatched_genes=unmatched)
        # As the query searched: else other cells would be named than those that voted.
        recall = parameters.get("recall")
        found = float(recall) if isinstance(recall, (float, np.floating)) and 0 < recall < 1 else None
        model = load_model(self._stored, exact=bool(parameters.get("exact")), recall=found)
        self._model, _ = fitted_to(store.path, self._stored, model, self._genes.measured)
        self._subset = self._stored.rows_where(parameters.get("where"))
        self._origins = origins(self._stored)
        self._symbols: dict[str, str] | None = None

    @classmethod
    def of_file(
        cls,
        store: Path | str,
        path: Path | str | AnnData,
        *,
        key_added: str = "scvec",
        memory: str | int | None = None,
        progress: Progress = no_progress,
    ) -> Explainer:
        """Open an annotated h5ad file or AnnData object; raises as :func:`explain`."""
        from scvec.ingest.cells.source import CellSource
        from scvec.ingest.cells.write import read_parameters

        with ExitStack() as stack:
            progress("reading cells", 0, None)
            parameters = read_parameters(path, key_added)
            source = stack.enter_context(CellSource.open(path, memory=memory, **_values_of(parameters)))
            columns = [f"{key_added}_label", f"{key_added}_confidence"]
            if any(c not in source.obs.columns for c in columns):
                raise InputError(
                    f"obs lacks {' or '.join(columns)}",
                    source.name,
                    "annotate the cells again: scvec query",
                    code="unknown-column",
                )
            label = source.obs[columns[0]].astype(str).to_numpy().astype(np.str_)
            confidence = source.obs[columns[1]].to_numpy(dtype=np.float32)
            opened = generation_of(store, parameters)
            return cls(stack.pop_all(), opened, source, parameters, label, confidence)

    @classmethod
    def of_annotation(
        cls,
        store: Path | str,
        path: Path | str | AnnData,
        annotation: Annotation,
        *,
        memory: str | int | None = None,
    ) -> Explainer:
        """Open what was annotated, with the annotation; raises as :func:`explain`."""
        from scvec.ingest.cells.source import CellSource

        with ExitStack() as stack:
            how = _values_of(annotation.parameters)
            source = stack.enter_context(CellSource.open(path, memory=memory, **how))
            if source.n_obs != len(annotation):
                what = f"the annotation has {len(annotation):,} cells, the data {source.n_obs:,}"
                raise InputError(what, source.name, "query the cells again", code="annotation-outdated")
            opened = generation_of(store, annotation.parameters)
            return cls(
                stack.pop_all(),
                opened,
                source,
                annotation.parameters,
                annotation.label.astype(np.str_),
                annotation.confidence,
            )

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __enter__(self) -> Explainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def reference_vectors(self) -> tuple[Int64, npt.NDArray[np.float32]]:
        """Rows of the reference, ascending, and their (n, embed_dim) vectors in the space of the query.

        All cells, or the training cells where the cell space was fitted to the genes of the query.
        """
        members = self._model.members
        if members.rows is None:
            return np.arange(self._stored.n), np.asarray(self._stored.vectors)
        return members.rows, np.array(members.index.vectors())  # type: ignore[attr-defined]

    def explain(
        self,
        *,
        cell: str | None = None,
        label: str | None = None,
        against: str | None = None,
        n_genes: int = 10,
    ) -> Explanation:
        """Explain a cell or a label: one of the two (see :func:`explain`)."""
        _one_of(cell, label, n_genes)
        if cell is not None:
            return self.cell(cell, against=against, n_genes=n_genes)
        return self.label(str(label), against=against, n_genes=n_genes)

    def cell(self, name: str, *, against: str | None = None, n_genes: int = 10) -> Explanation:
        """Explain the label of one cell."""
        names = self._source.obs_names
        rows = np.flatnonzero(np.array(names, dtype=object) == name)
        if len(rows) == 0:
            raise InputError(
                f"there is no cell {name!r}", self._source.name, _near(name, names), code="unknown-cell"
            )
        return self._explain(rows[:1], 1, name, str(self._label[rows[0]]), against, n_genes)

    def label(
        self, name: str, *, against: str | None = None, n_genes: int = 10, max_cells: int = MAX_CELLS
    ) -> Explanation:
        """Explain a label by means over its cells, ``max_cells`` of them at most."""
        rows = np.flatnonzero(self._label == name)
        if len(rows) == 0:
            given = sorted(set(self._label.tolist()))
            raise InputError(
                f"no cell was given the label {name!r}",
                self._source.name,
                _near(name, given),
                code="unknown-label",
            )
        looked = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), max_cells)).astype(np.int64))]
        return self._explain(looked, len(rows), "", name, against, n_genes)

    def _explain(
        self, rows: Int64, n_labelled: int, cell: str, label: str, against: str | None, n_genes: int
    ) -> Explanation:
        from scvec.model.evidence import weigh
        from scvec.model.storage import CODE_COLUMN

        classes = [str(c) for c in self._stored.meta["classes"]]
        winner = _number(classes, label, self._source.name)
        other = None if against is None else _number(classes, against, "--against")
        if other == winner:
            raise InputError(
                f"{label!r} is the label itself", "--against", "name another label of the reference"
            )
        [chunk] = self._matched.chunks(self._genes, len(rows), rows)
        found = weigh(
            self._model,
            chunk,
            method=str(self.parameters.get("method", "both")),
            n_neighbors=int(self.parameters.get("n_neighbors", 15)),
            subset=self._subset,
            winner=np.full(len(rows), winner, dtype=np.int64),
            against=other,
        )
        # A tie may fall the other way on another machine; more than that is another cell or another model.
        changed = int((found.best != winner).sum())
        if changed > 0.02 * len(rows):
            raise InputError(
                f"the values of {changed:,} of {len(rows):,} cells no longer give the label {label!r}",
                self._source.name,
                "they were changed after the annotation: annotate them again with scvec query",
                code="annotation-outdated",
            )
        names, numbers = np.unique(found.other, return_counts=True)
        order = np.argsort(-numbers, kind="stable")
        log_odds = float(found.log_odds.mean())
        size = max(float(np.abs(found.log_odds).mean()), 1e-9)
        by_gene = found.by_gene
        return Explanation(
            reference=self._stored.name,
            label=label,
            cell=cell,
            against={classes[names[i]]: int(numbers[i]) for i in order},
            n_cells=len(rows),
            n_labelled=n_labelled,
            confidence=float(self._confidence[rows].mean()),
            log_odds=log_odds,
            genes=self._gene_evidence(found, by_gene, chunk, n_genes),
            n_genes=int((by_gene != 0).any(axis=0).sum()),
            genes_total=float(by_gene.sum(axis=1).mean()),
            neighbors_total=float(found.neighbors.mean()),
            constant=float(found.constant.mean()),
            undivided=float(found.undivided.mean()),
            members={name: float(part.mean()) for name, part in found.members.items()},
            voters=voters(
                found.scores.neighbors,
                self._stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64),
                classes,
                self._stored.obs.index.astype(str).to_numpy(dtype=object),
                *self._origins,
                single=bool(cell),
            ),
            completeness_error=float(np.abs(found.gap).mean()) / size,
            parameters={
                k: self.parameters.get(k)
                for k in ("scvec", "reference", "generation", "space", "encoder", "method", "where")
            },
        )

    def _gene_evidence(
        self, found: Evidence, by_gene: npt.NDArray[np.float64], chunk: CellChunk, n_genes: int
    ) -> list[GeneEvidence]:
        from scvec.model.storage import class_statistics, genes_of

        total = by_gene.mean(axis=0)
        top = np.lexsort((np.arange(len(total)), -np.abs(total)))[:n_genes]
        top = top[total[top] != 0]
        if len(top) == 0:
            return []
        all_genes = genes_of(self._stored)
        columns = found.columns[top]
        gene_ids = [str(all_genes[g]) for g in columns]
        with self._store.knowledge() as kb:
            if self._symbols is None:  # reading all genes takes longer than all else
                table = kb.genes()
                self._symbols = dict(zip(table["gene_id"], table["symbol"], strict=True))
            texts = kb.descriptions(gene_ids)
        expression = np.asarray(chunk.X[:, columns].mean(axis=0)).ravel()
        means = class_statistics(self._stored.tensors)[0][:, columns]
        expected, other = means[found.winner].mean(axis=0), means[found.other].mean(axis=0)
        genes = []
        for i, g in enumerate(top):
            text = texts.get(gene_ids[i])
            genes.append(
                GeneEvidence(
                    gene_id=gene_ids[i],
                    symbol=str(self._symbols.get(gene_ids[i]) or gene_ids[i]),
                    contribution=float(total[g]),
                    by_member={name: float(part[:, g].mean()) for name, part in found.genes.items()},
                    expression=float(expression[i]),
                    expected=float(expected[i]),
                    expected_against=float(other[i]),
                    description=text.text if text else "",
                    source=text.source if text else "",
                    source_version=text.source_version if text else "",
                    kind=text.kind if text else "",
                )
            )
        return genes


def _number(classes: list[str], label: str, where: str) -> int:
    if label not in classes:
        raise InputError(
            f"the reference has no label {label!r}", where, _near(label, classes), code="unknown-label"
        )
    return classes.index(label)


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known[:20_000], n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"{hint}there are: {listed}"


def _values_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the values of an annotated file are and what they are, as they were read for it."""
    values = str(parameters.get("values", "auto"))
    return {"layer": parameters.get("layer"), "values": values if values in VALUES else "auto"}


def _one_of(cell: str | None, label: str | None, n_genes: int) -> None:
    if (cell is None) == (label is None):
        raise InputError("one cell or one label is explained", "", "give --cell ID or --label NAME")
    if n_genes < 0:
        raise InputError(
            f"{n_genes} genes cannot be listed", "--n-genes", "give 0 or more", code="option-out-of-range"
        )

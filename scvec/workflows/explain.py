"""``scvec explain``: the genes and reference cells that support a label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.options import options_of, takes_options
from scvec.base.types import Progress, no_progress
from scvec.model.explanation import Explainer, ExplainOptions, Explanation

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["explain"]


@takes_options(ExplainOptions)
def explain(
    store: Path | str,
    path: Path | str | AnnData,
    *,
    key_added: str = "scvec",
    memory: str | int | None = None,
    progress: Progress = no_progress,
    **keywords: Any,
) -> Explanation:
    """Explain why a cell, or the cells of a label, got their label and not another.

    The cells are annotated again from the values in the file, with the reference, the store version and the
    options in ``uns[key_added]``. The log odds of the label against the second most likely label are then
    decomposed into contributions of genes, of the labels of the nearest reference cells, and of intercepts.
    Contributions of genes are exact for the default encoder, at the fixed length of the cell's vector. For
    other encoders they are integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365).

    For several explanations of one file, open it once::

        with Explainer.of_annotation(annotation) as explainer:
            evidence = {label: explainer.label(label) for label in annotation.counts()}

    Parameters
    ----------
    store
        Folder of the store.
    path
        A file of ``scvec query -o OUT.h5ad``, or an annotated AnnData object; never changed.
    key_added
        Prefix of the annotation's columns and keys.
    memory
        Bytes that reading may use, as a number or like ``"4G"``. Default: half of the free memory.
    **keywords
        Fields of :class:`scvec.model.explanation.ExplainOptions`: ``cell`` or ``label``, ``against``,
        ``n_genes``.

    Returns
    -------
    Explanation
        ``to_dict()`` is the output of ``--json``: ``genes`` (each with ``symbol``, ``contribution``,
        ``expression``, ``description``, ``source``), ``voters``, and the terms that sum to ``log_odds``.

    Raises
    ------
    InputError
        If the file is not annotated, does not have the cell or label, or its values have changed.
    StoreError
        If the store no longer has the reference of the annotation.
    """
    asked = options_of(ExplainOptions, None, keywords)
    with Explainer.of_file(store, path, key_added=key_added, memory=memory, progress=progress) as explainer:
        return explainer.explain(asked)

"""``scvec explain``: which genes and which reference cells stand behind a label."""

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
    """Say why a cell, or the cells of a label, were given their label and not another.

    The cells are computed again from the values in the file, by the reference, the store version and the
    options that ``uns[key_added]`` names. The log odds of the label against the runner-up are then taken
    apart: what each gene adds, what the labels of the nearest reference cells add, and what intercepts add.
    Genes are exact for the default encoder, given the length of the cell's vector, and by integrated
    gradients (Sundararajan et al. 2017, arXiv:1703.01365) for heads of other encoders.

    For several explanations of one file, as in a report, open it once::

        with Explainer.of_annotation(annotation) as explainer:
            evidence = {label: explainer.label(label) for label in annotation.counts()}

    Parameters
    ----------
    store
        Folder of the store.
    path
        What ``scvec query -o OUT.h5ad`` wrote, or an annotated AnnData object; never changed.
    key_added
        Prefix of the annotation's columns and keys.
    memory
        Bytes that reading may use, as a number or like ``"4G"``; half of what is free where not given.
    **keywords
        Fields of :class:`scvec.model.explanation.ExplainOptions`: ``cell`` or ``label``, ``against``,
        ``n_genes``.

    Returns
    -------
    Explanation
        Its ``to_dict()`` is what ``--json`` prints: ``genes`` (each with ``symbol``, ``contribution``,
        ``expression``, ``description``, ``source``), ``voters``, and the terms that sum to ``log_odds``.

    Raises
    ------
    InputError
        If the file was not annotated, has no such cell or label, or its values were changed since.
    StoreError
        If the store no longer has the reference that the file was annotated with.
    """
    asked = options_of(ExplainOptions, None, keywords)
    with Explainer.of_file(store, path, key_added=key_added, memory=memory, progress=progress) as explainer:
        return explainer.explain(asked)

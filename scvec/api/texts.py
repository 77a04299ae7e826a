"""Texts of genes, and their vectors, encoded once."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvec.backbones.controls import permutation
from scvec.backbones.spec import BackboneSpec, load_backbone
from scvec.errors import InputError
from scvec.protocols import Progress, no_progress
from scvec.types import Float32, Space, text_sha256

if TYPE_CHECKING:
    import pandas as pd

    from scvec.stores.knowledge import KnowledgeBase
    from scvec.stores.vector_cache import VectorCache

__all__ = ["EncodedGenes", "check_template", "encode_genes", "gene_table"]

FIELDS = ("symbol", "name", "species", "gene_type", "description")
TEMPLATES = {"default": "{description}", "name": "{symbol} ({name})"}
#: Texts between two commits to the working cache: a killed run loses at most these.
BATCH = 256
#: Texts between two steps of the progress bar.
STEP = 64


@dataclass(frozen=True, slots=True)
class EncodedGenes:
    """Vectors of genes.

    Attributes
    ----------
    table
        gene_id, species, symbol, text_sha256; n rows.
    vectors
        (n, dim) float32, row i for row i of ``table``.
    n_encoded, n_cached
        Texts that the backbone was given, and texts that were known.
    """

    space: Space
    table: pd.DataFrame
    vectors: Float32
    n_encoded: int
    n_cached: int


def check_template(template: str) -> str:
    """Return the format string of ``--text``: a name (``default``, ``name``) or one with fields.

    Raises
    ------
    InputError
        If it has unknown fields or none.
    """
    text = TEMPLATES.get(template, template)
    try:
        parsed = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        fix = "write fields as {symbol}, and other braces twice"
        raise InputError(f"the template cannot be read: {error}", f"--text {template!r}", fix) from error
    # Exact names only, without formats and conversions: "{symbol.__class__}" and "{symbol:>999999999}" must
    # not reach str.format.
    fields = {name if not form and not conversion else "" for name, form, conversion in parsed}
    if not fields or not fields <= set(FIELDS):
        listed = ", ".join("{" + f + "}" for f in FIELDS)
        what = "the template has an unknown field" if fields else "the template has no field"
        raise InputError(what, f"--text {template!r}", f"give default, name, or a text with {listed}")
    return text


def gene_table(kb: KnowledgeBase, gene_ids: Sequence[str], template: str) -> pd.DataFrame:
    """Return gene_id, species, symbol, text, text_sha256 for genes, in the order given."""
    import pandas as pd

    wanted = pd.DataFrame({"gene_id": list(gene_ids)})
    genes = wanted.merge(kb.genes(), on="gene_id", how="left", sort=False)
    described = kb.descriptions(list(gene_ids))
    text = check_template(template)
    texts = []
    for row in genes[["gene_id", "symbol", "name", "species", "gene_type"]].itertuples(index=False):
        fields = {
            key: str(value) if value == value and value is not None else ""
            for key, value in zip(("gene_id", "symbol", "name", "species", "gene_type"), row, strict=True)
        }
        found = described.get(fields["gene_id"])
        # A gene without a description still has its names.
        fields["description"] = found.text if found else f"{fields['symbol']} ({fields['name']})"
        texts.append(text.format(**fields).replace("()", "").strip())
    genes["text"] = texts
    genes["text_sha256"] = [text_sha256(t) for t in texts]
    return genes[["gene_id", "species", "symbol", "text", "text_sha256"]]


def encode_genes(
    kb: KnowledgeBase,
    cache: VectorCache,
    gene_ids: Sequence[str],
    spec: BackboneSpec,
    *,
    device: str = "auto",
    progress: Progress = no_progress,
) -> EncodedGenes:
    """Return the vectors of genes; only texts that no earlier run encoded go through the backbone.

    With ``permuted:`` each gene gets the vector of another one: the table still tells whose text it is.
    """
    backbone = load_backbone(spec, device=device)
    space = backbone.space
    table = gene_table(kb, gene_ids, spec.template)
    shas = table["text_sha256"].tolist()
    found, vectors = cache.get_many(space, shas)
    text_of = {sha: text for sha, text, ok in zip(shas, table["text"], found, strict=True) if not ok}
    # Long texts first: batches of like length waste least, and memory runs out at once or never.
    todo = sorted(text_of, key=lambda sha: (-len(text_of[sha]), sha))
    new: dict[str, Float32] = {}
    for start in range(0, len(todo), BATCH):
        part = todo[start : start + BATCH]
        for first in range(0, len(part), STEP):
            progress("encoding gene texts", start + first, len(todo))
            shown = part[first : first + STEP]
            new.update(zip(shown, backbone.encode([text_of[sha] for sha in shown]), strict=True))
        cache.put_many(space, part, np.stack([new[sha] for sha in part]))
        progress("encoding gene texts", start + len(part), len(todo))
    for row in np.flatnonzero(~found):
        vectors[row] = new[shas[row]]
    if spec.permuted:
        vectors = vectors[permutation(list(gene_ids))]
    return EncodedGenes(space, table.drop(columns="text"), vectors, len(todo), len(set(shas)) - len(todo))

"""Texts of genes, and their vectors, encoded once."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scvec.backbones import BackboneSpec, load_backbone
from scvec.backbones.controls import permutation
from scvec.base.errors import InputError, NetworkError, ScvecError
from scvec.base.protocols import Backbone, Progress, Streamed, StreamingBackbone, no_progress
from scvec.base.types import Bool, Float32, Space, text_sha256
from scvec.model.server_spaces import fullest_space, server_space

if TYPE_CHECKING:
    import pandas as pd

    from scvec.backbones.remote import Estimate
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.vector_cache import VectorCache

__all__ = [
    "EncodedGenes",
    "EncodingPlan",
    "check_template",
    "encode_genes",
    "gene_table",
    "plan_encoding",
]

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
    n_encoded, n_cached, n_shipped
        Texts that the backbone gave a vector of; texts whose vectors the store had; and those whose vectors
        came with the package.
    failures
        Gene id -> why it has no vector; such genes are not in ``table``.
    stopped
        Why not all texts were encoded; empty where they were.
    error
        The error that this is, to be raised when what there is has been stored; None if it is none, as a
        limit of cost.
    notes
        What a user should know.
    n_requests, cost
        Requests to a server, and US dollars they cost; None where nothing is paid, or no price known.
    """

    space: Space
    table: pd.DataFrame
    vectors: Float32
    n_encoded: int
    n_cached: int
    n_shipped: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    stopped: str = ""
    error: ScvecError | None = None
    notes: Sequence[str] = ()
    n_requests: int = 0
    cost: float | None = None

    def counts(self) -> dict[str, int]:
        """Return numbers of texts by where their vectors came from."""
        return {"shipped": self.n_shipped, "from the store": self.n_cached, "encoded": self.n_encoded}


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """What encoding genes would take; nothing was encoded and no server asked.

    Attributes
    ----------
    space
        None where only the server knows it.
    n_todo, n_cached, n_shipped
        Texts to encode; texts whose vectors the store has; and those whose vectors came with the package.
    estimate
        Requests, tokens, cost and time; None where no server is asked.
    """

    space: Space | None
    n_todo: int
    n_cached: int
    n_shipped: int = 0
    estimate: Estimate | None = None


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


def plan_encoding(
    kb: KnowledgeBase,
    cache: VectorCache,
    gene_ids: Sequence[str],
    spec: BackboneSpec,
    *,
    device: str = "auto",
) -> EncodingPlan:
    """Return what :func:`encode_genes` would do; encodes nothing, asks no server and needs no key."""
    from scvec.backbones.remote import RemoteBackbone

    backbone = load_backbone(spec, device=device)
    table = gene_table(kb, gene_ids, spec.template)
    text_of = dict(zip(table["text_sha256"], table["text"], strict=True))
    if isinstance(backbone, RemoteBackbone):
        space, known = fullest_space(cache, backbone, list(text_of))
        todo = [text for sha, text in text_of.items() if sha not in known]
        return EncodingPlan(space, len(todo), len(known), estimate=backbone.estimate(todo))
    found, _ = cache.get_many(backbone.space, list(text_of))
    n_shipped = cache.count_shipped(backbone.space, list(text_of))
    return EncodingPlan(backbone.space, int((~found).sum()), int(found.sum()) - n_shipped, n_shipped)


def encode_genes(
    kb: KnowledgeBase,
    cache: VectorCache,
    gene_ids: Sequence[str],
    spec: BackboneSpec,
    *,
    device: str = "auto",
    max_cost: float | None = None,
    partial: bool = False,
    progress: Progress = no_progress,
) -> EncodedGenes:
    """Return the vectors of genes; only texts without a shipped or stored vector go through the backbone.

    With ``permuted:`` each gene gets the vector of another one: the table still tells whose text it is.

    Parameters
    ----------
    max_cost
        US dollars that a server may cost.
    partial
        Return the genes that have a vector where a server failed for others, was gone or grew too dear. Else
        that is an error; what arrived is in the cache all the same, for the next run.

    Raises
    ------
    StoreError
        If a server gives other vectors than those that the cache has of it.
    NetworkError, AuthError, InputError
        If texts have no vector, and ``partial`` is not asked for.
    """
    backbone = load_backbone(spec, device=device, max_cost=max_cost)
    table = gene_table(kb, gene_ids, spec.template)
    shas = table["text_sha256"].tolist()
    text_of = dict(zip(shas, table["text"], strict=True))
    if isinstance(backbone, StreamingBackbone):
        space = server_space(cache, backbone, text_of)
    else:
        space = backbone.space
    found, vectors = cache.get_many(space, shas)
    unknown = {sha for sha, ok in zip(shas, found, strict=True) if not ok}
    # Long texts first: batches of like length waste least, and memory runs out at once or never.
    todo = sorted(unknown, key=lambda sha: (-len(text_of[sha]), sha))
    new: dict[str, Float32] = {}
    outcome = Streamed({})

    def keep(numbers: Sequence[int], encoded: Float32) -> None:
        part = [todo[i] for i in numbers]
        cache.put_many(space, part, encoded)
        new.update(zip(part, encoded, strict=True))

    if isinstance(backbone, StreamingBackbone):

        def show(done: int, detail: str) -> None:
            progress("encoding gene texts", done, len(todo), detail)

        if todo:
            outcome = backbone.encode_each([text_of[sha] for sha in todo], keep, progress=show)
    else:
        _encode_in_steps(backbone, [text_of[sha] for sha in todo], keep, progress)
    for row in np.flatnonzero(~found):
        if shas[row] in new:
            found[row], vectors[row] = True, new[shas[row]]
    failures = _failed(table, {todo[i]: reason for i, reason in outcome.failures.items()})
    if not found.all() and not partial:
        raise _missing(table, found, failures, outcome)
    table, vectors = table[found].reset_index(drop=True), vectors[found]
    if spec.permuted:
        vectors = vectors[permutation(table["gene_id"].tolist())]
    n_shipped = cache.count_shipped(space, list(text_of))
    return EncodedGenes(
        space,
        table.drop(columns="text"),
        vectors,
        n_encoded=len(new),
        n_cached=len(text_of) - len(todo) - n_shipped,
        n_shipped=n_shipped,
        failures=failures,
        stopped=outcome.stopped,
        error=outcome.error,
        notes=tuple(getattr(backbone, "notes", ())),
        n_requests=getattr(backbone, "n_calls", 0),
        cost=getattr(backbone, "spent", None),
    )


def _encode_in_steps(
    backbone: Backbone,
    texts: list[str],
    keep: Callable[[Sequence[int], Float32], None],
    progress: Progress,
) -> None:
    for start in range(0, len(texts), BATCH):
        numbers = range(start, min(start + BATCH, len(texts)))
        parts = []
        for first in range(start, numbers.stop, STEP):
            progress("encoding gene texts", first, len(texts))
            parts.append(backbone.encode(texts[first : min(first + STEP, numbers.stop)]))
        keep(numbers, np.concatenate(parts))
        progress("encoding gene texts", numbers.stop, len(texts))


def _failed(table: pd.DataFrame, reasons: Mapping[str, str]) -> dict[str, str]:
    """Return gene id -> reason from the reasons of their texts."""
    pairs = zip(table["gene_id"], table["text_sha256"], strict=True)
    return {gene_id: reasons[sha] for gene_id, sha in pairs if sha in reasons}


def _missing(table: pd.DataFrame, found: Bool, failures: Mapping[str, str], outcome: Streamed) -> ScvecError:
    """Return the error of genes without vectors."""
    missing = table[~found]
    kept = f"{len(missing):,} of {len(table):,} genes have no vector yet; what arrived is kept"
    if outcome.error is not None:
        error = outcome.error
        return type(error)(f"{error.what}; {kept}", error.where, error.fix)
    if outcome.stopped:
        fix = "raise it and run the same command again: it goes on from here"
        return InputError(f"{outcome.stopped}; {kept}", "--max-cost", fix)
    reason = next(iter(failures.values()), "no answer")
    where = ", ".join(missing["symbol"].astype(str)[:5])
    fix = "run the same command again: only these are asked for; too long texts are cut by max_tokens=N"
    return NetworkError(f"{kept}: {reason}", where, fix)

"""Texts of genes, and their vectors, encoded once."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scvec.backbones import BackboneSpec, load_backbone
from scvec.backbones.controls import permutation
from scvec.base.errors import InputError, NetworkError, ScvecError, StoreError
from scvec.base.types import (
    Backbone,
    Bool,
    Float32,
    Progress,
    Space,
    Streamed,
    StreamingBackbone,
    no_progress,
    text_sha256,
)

if TYPE_CHECKING:
    import pandas as pd

    from scvec.backbones.remote import Estimate
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.reference_reader import StoredSpace
    from scvec.stores.store.transaction import Transaction
    from scvec.stores.store.vector_cache import VectorCache

__all__ = [
    "EncodedGenes",
    "EncodingPlan",
    "check_template",
    "encode_genes",
    "gene_table",
    "plan_encoding",
    "stored_genes",
]

#: Cosine below which two vectors of one text are not of one model.
SAME_MODEL = 0.99
#: Genes whose vectors are compared where those of the probes were lost.
N_COMPARED = 3


def fullest_space(
    cache: VectorCache, backbone: StreamingBackbone, shas: Sequence[str]
) -> tuple[Space | None, set[str]]:
    """Return the space that knows most of the texts, of those that a server's vectors may be of, and which.

    Sends no request.
    """
    best: tuple[Space | None, set[str]] = (None, set())
    for space in cache.known_spaces():
        if backbone.fits(space):
            found, _ = cache.get_many(space, shas)
            known = {sha for sha, ok in zip(shas, found, strict=True) if ok}
            if best[0] is None or len(known) > len(best[1]):
                best = space, known
    return best


def server_space(cache: VectorCache, backbone: StreamingBackbone, text_of: Mapping[str, str]) -> Space:
    """Return the space of a server's vectors; where those of all texts are known, without asking it.

    Names do not tell whether there is the same model behind an address as before: vectors of a few texts do.
    They are kept in the cache; where that was lost, genes are compared.

    Parameters
    ----------
    text_of
        SHA-256 -> text of all texts that vectors are wanted of.

    Raises
    ------
    StoreError
        If the server gives other vectors than those that are stored.
    """
    space, known = fullest_space(cache, backbone, list(text_of))
    if space is not None and text_of and len(known) == len(text_of):
        return space
    space, probes = backbone.probe()
    shas = list(probes)
    found, before = cache.get_many(space, shas)
    if found.any():
        _compare(space, before[found], np.stack([probes[sha] for sha in shas])[found])
        return space
    found, before = cache.get_many(space, list(text_of))
    rows = np.flatnonzero(found)[:N_COMPARED]
    if len(rows):
        texts = list(text_of.values())
        now = dict[int, Float32]()
        backbone.encode_each(
            [texts[row] for row in rows], lambda numbers, got: now.update(zip(numbers, got, strict=True))
        )
        if now:
            _compare(space, before[rows[list(now)]], np.stack(list(now.values())))
    cache.put_many(space, shas, np.stack([probes[sha] for sha in shas]))
    return space


def _compare(space: Space, before: Float32, now: Float32) -> None:
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(now, axis=1)
    worst = float(((before * now).sum(axis=1) / np.maximum(norms, 1e-12)).min())
    if worst < SAME_MODEL:
        raise StoreError(
            f"the server gives other vectors than it did (cosine {worst:.3f}): it is another model",
            space.backbone,
            "ask the model that was asked before, or fill another store with this one",
            code="model-changed",
        )


def stored_genes(
    txn: Transaction, kb: KnowledgeBase, gene_ids: Sequence[str], spec: BackboneSpec
) -> EncodedGenes:
    """Return the vectors that a stored space has of some genes, in their order.

    Genes without a vector there get the mean of the others, which says nothing about them once vectors are
    centred; a note of the transaction tells how many.

    Parameters
    ----------
    spec
        Its argument is the fingerprint of a space, its backbone (``legacy:genept``), or the name given to
        ``import-legacy`` (``genept``).

    Raises
    ------
    InputError
        There is no such space, several, or it has none of the genes.
    """
    import pandas as pd

    stored = _find(txn, spec.argument)
    rows = {gene_id: i for i, gene_id in enumerate(stored.genes["gene_id"])}
    at = np.array([rows.get(g, -1) for g in gene_ids], dtype=np.int64)
    found = at >= 0
    n, missing = len(at), int((~found).sum())
    where = f"--backbone stored:{spec.argument}"
    if missing == n:
        fix = "give vectors of genes of this species"
        raise InputError(
            f"the space has a vector of none of the {n:,} genes", where, fix, code="unknown-space"
        )
    vectors = np.empty((n, stored.space.dim), dtype=np.float32)
    vectors[found] = stored.vectors[at[found]]
    vectors[~found] = vectors[found].mean(axis=0, dtype=np.float64)
    if missing:
        warning = "warning: " if 2 * missing > n else ""
        txn.notes.append(
            f"{warning}{missing:,} of {n:,} genes have no vector in the space {spec.argument}, and stand at "
            f"its mean"
        )
    if spec.permuted:
        vectors = vectors[permutation(list(gene_ids))]
    genes = kb.genes().set_index("gene_id").loc[list(gene_ids), ["species", "symbol"]].reset_index()
    shas = stored.genes["text_sha256"].to_numpy(dtype=object)
    genes["text_sha256"] = pd.Series([shas[i] if i >= 0 else "" for i in at], dtype=object)
    return EncodedGenes(stored.space, genes, vectors, 0, n - missing)


def _find(txn: Transaction, name: str) -> StoredSpace:
    spaces = {f: entry.space for f, entry in txn.base.manifest.spaces.items()}
    matching = [
        f
        for f, space in spaces.items()
        if name in (f, space.backbone, space.backbone.removeprefix("legacy:"))
    ]
    where = f"--backbone stored:{name}"
    if len(matching) > 1:
        what = f"{len(matching)} spaces of the store are called {name!r}"
        raise InputError(what, where, f"give the fingerprint of one: {', '.join(matching[:4])}")
    stored = txn.space(matching[0]) if matching else None
    if stored is None:
        there = ", ".join(dict.fromkeys(s.backbone.removeprefix("legacy:") for s in spaces.values()))
        fix = f"spaces: {there}" if there else "scvec import-legacy FILE makes one"
        raise InputError(f"the store has no space {name!r}", where, fix, code="unknown-space")
    return stored


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
        Return the genes that have a vector where a server failed for others, was unreachable or too dear;
        else raise an error. Vectors that arrived are in the cache all the same, for the next run.

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

    def keep(numbers: Sequence[int], encoded: Float32) -> None:
        part = [todo[i] for i in numbers]
        cache.put_many(space, part, encoded)
        new.update(zip(part, encoded, strict=True))

    outcome = _encode_all(backbone, [text_of[sha] for sha in todo], keep, progress)
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


def _encode_all(
    backbone: Backbone, texts: list[str], keep: Callable[[Sequence[int], Float32], None], progress: Progress
) -> Streamed:
    """Encode texts, and give vectors to ``keep`` as they arrive; return what has none, and why."""
    if isinstance(backbone, StreamingBackbone):

        def show(done: int, detail: str) -> None:
            progress("encoding gene texts", done, len(texts), detail)

        return backbone.encode_each(texts, keep, progress=show) if texts else Streamed({})
    for start in range(0, len(texts), BATCH):
        numbers = range(start, min(start + BATCH, len(texts)))
        parts = []
        for first in range(start, numbers.stop, STEP):
            progress("encoding gene texts", first, len(texts))
            parts.append(backbone.encode(texts[first : min(first + STEP, numbers.stop)]))
        keep(numbers, np.concatenate(parts))
        progress("encoding gene texts", numbers.stop, len(texts))
    return Streamed({})


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
        return InputError(f"{outcome.stopped}; {kept}", "--max-cost", fix, code="cost-limit")
    reason = next(iter(failures.values()), "no answer")
    where = ", ".join(missing["symbol"].astype(str)[:5])
    fix = "run the same command again: only these are asked for; too long texts are cut by max_tokens=N"
    return NetworkError(f"{kept}: {reason}", where, fix, code="texts-missing")

"""Texts of genes and their vectors. Each text is encoded once."""

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

#: Two vectors of the same text with a cosine below this come from different models.
SAME_MODEL = 0.99
#: Number of genes whose vectors are compared if the vectors of the probe texts were lost.
N_COMPARED = 3


def fullest_space(
    cache: VectorCache, backbone: StreamingBackbone, shas: Sequence[str]
) -> tuple[Space | None, set[str]]:
    """Return the stored space of a server's model with the most of the texts, and the texts it has.

    This sends no request.
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
    """Return the space of a server's vectors, without a request if all texts have vectors already.

    A name does not prove that an address still has the same model, but vectors of a few probe texts do. The
    cache keeps them. If it was lost, vectors of genes are compared instead.

    Parameters
    ----------
    text_of
        SHA-256 -> text, for all texts to encode.

    Raises
    ------
    StoreError
        If the server returns other vectors than the stored ones.
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
            f"the server now returns other vectors (cosine {worst:.3f}): its model has changed",
            space.backbone,
            "use the earlier model, or use another store for this one",
            code="model-changed",
        )


def stored_genes(
    txn: Transaction, kb: KnowledgeBase, gene_ids: Sequence[str], spec: BackboneSpec
) -> EncodedGenes:
    """Return the vectors of genes in a stored space, in the order of the genes.

    Genes without a vector get the mean of the others, which is zero after centring. A note of the transaction
    counts them.

    Parameters
    ----------
    spec
        The argument of the spec is the fingerprint of a space, its backbone (``legacy:genept``), or the name
        given to ``import-legacy`` (``genept``).

    Raises
    ------
    InputError
        If there is no such space, several match, or it has none of the genes.
    """
    import pandas as pd

    stored = _find(txn, spec.argument)
    rows = {gene_id: i for i, gene_id in enumerate(stored.genes["gene_id"])}
    at = np.array([rows.get(g, -1) for g in gene_ids], dtype=np.int64)
    found = at >= 0
    n, missing = len(at), int((~found).sum())
    where = f"--backbone stored:{spec.argument}"
    if missing == n:
        fix = "use a space with genes of this species"
        raise InputError(
            f"the space has no vector for any of the {n:,} genes", where, fix, code="unknown-space"
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
        fix = f"give the fingerprint of one: {', '.join(matching[:4])}"
        raise InputError(what, where, fix, code="space-not-named")
    stored = txn.space(matching[0]) if matching else None
    if stored is None:
        there = ", ".join(dict.fromkeys(s.backbone.removeprefix("legacy:") for s in spaces.values()))
        fix = f"spaces: {there}" if there else "scvec import-legacy FILE makes one"
        raise InputError(f"the store has no space {name!r}", where, fix, code="unknown-space")
    return stored


FIELDS = ("symbol", "name", "species", "gene_type", "description")
TEMPLATES = {"default": "{description}", "name": "{symbol} ({name})"}
#: Number of texts between two commits to the cache. A killed run loses at most this many.
BATCH = 256
#: Number of texts between two updates of the progress bar.
STEP = 64


@dataclass(frozen=True, slots=True)
class EncodedGenes:
    """Vectors of genes.

    Attributes
    ----------
    table
        n rows with gene_id, species, symbol, text_sha256.
    vectors
        (n, dim) float32, row i for row i of ``table``.
    n_encoded, n_cached, n_shipped
        Number of texts that the backbone encoded, that the store had vectors of, and that the package has
        vectors of.
    failures
        Gene id -> reason why it has no vector. ``table`` does not contain these genes.
    stopped
        Reason why the encoding stopped early; empty if it did not.
    error
        Error to raise after the vectors have been stored. None if there is none, as with a limit on cost.
    notes
        Notes for the user.
    n_requests, cost
        Number of requests to a server and their cost in US dollars. The cost is None if it is free or
        unknown.
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
        """Return the number of texts by source of their vectors."""
        return {"shipped": self.n_shipped, "from the store": self.n_cached, "encoded": self.n_encoded}


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """Plan of an encoding: its size and cost, without encoding and without requests.

    Attributes
    ----------
    space
        None if only the server knows it.
    n_todo, n_cached, n_shipped
        Number of texts to encode, with vectors in the store, and with vectors in the package.
    estimate
        Requests, tokens, cost and time; None without a server.
    """

    space: Space | None
    n_todo: int
    n_cached: int
    n_shipped: int = 0
    estimate: Estimate | None = None


def check_template(template: str) -> str:
    """Return the format string of ``--text``, which is ``default``, ``name`` or a text with fields.

    Raises
    ------
    InputError
        If the template has unknown fields or none.
    """
    text = TEMPLATES.get(template, template)
    try:
        parsed = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        fix = "write fields as {symbol}, and double all other braces"
        raise InputError(f"the template cannot be read: {error}", f"--text {template!r}", fix) from error
    # Only exact names, because "{symbol.__class__}" and "{symbol:>999999999}" must not reach str.format.
    fields = {name if not form and not conversion else "" for name, form, conversion in parsed}
    if not fields or not fields <= set(FIELDS):
        listed = ", ".join("{" + f + "}" for f in FIELDS)
        what = "the template has an unknown field" if fields else "the template has no field"
        raise InputError(what, f"--text {template!r}", f"give default, name, or a text with {listed}")
    return text


def gene_table(kb: KnowledgeBase, gene_ids: Sequence[str], template: str) -> pd.DataFrame:
    """Return a table with gene_id, species, symbol, text and text_sha256, in the order of ``gene_ids``."""
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
        # The text of a gene without a description consists of its names.
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
    """Return the plan of :func:`encode_genes`. It encodes nothing, sends no request and needs no key."""
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
    """Return the vectors of genes. The backbone encodes only texts without a shipped or stored vector.

    With ``permuted:`` each gene gets the vector of another gene. The table still has the hash of its own
    text.

    Parameters
    ----------
    max_cost
        Limit on the cost of a server, in US dollars.
    partial
        Return the genes that have vectors if a server failed for others, was unreachable or reached the limit
        on cost. If False, raise an error. The cache keeps received vectors for the next run in either case.

    Raises
    ------
    StoreError
        If a server returns other vectors than those in the cache.
    NetworkError, AuthError, InputError
        If texts have no vector and ``partial`` is False.
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
    # Long texts first: batches of similar length waste least, and memory runs out at the start or never.
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
    """Encode texts and pass vectors to ``keep`` as they arrive. Return failed texts and the reasons."""
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
    """Return gene id -> reason, from the failed texts and their reasons."""
    pairs = zip(table["gene_id"], table["text_sha256"], strict=True)
    return {gene_id: reasons[sha] for gene_id, sha in pairs if sha in reasons}


def _missing(table: pd.DataFrame, found: Bool, failures: Mapping[str, str], outcome: Streamed) -> ScvecError:
    """Return the error for genes without vectors."""
    missing = table[~found]
    kept = f"{len(missing):,} of {len(table):,} genes have no vector yet; received vectors are saved"
    if outcome.error is not None:
        error = outcome.error
        return type(error)(f"{error.what}; {kept}", error.where, error.fix, code=error.code)
    if outcome.stopped:
        fix = "raise it and run the same command again, which continues from here"
        return InputError(f"{outcome.stopped}; {kept}", "--max-cost", fix, code="cost-limit")
    reason = next(iter(failures.values()), "no answer")
    where = ", ".join(missing["symbol"].astype(str)[:5])
    fix = "run the same command again, which requests only these; max_tokens=N cuts texts that are too long"
    return NetworkError(f"{kept}: {reason}", where, fix, code="texts-missing")

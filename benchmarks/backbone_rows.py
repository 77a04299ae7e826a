"""What the benchmark of backbones runs: fits, and one of them in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BACKBONES", "CACHE", "ENDPOINT", "FITS", "PAIRS", "Fit", "cells_of", "one", "subsample", "texts"]

CACHE = Path(__file__).resolve().parent / "cache"
PAIRS = {"donors": "donors 1-2 -> 3-4", "species": "human -> mouse"}

#: As shown -> SPEC. The last three are controls.
BACKBONES = {
    "minilm": "minilm",
    "use-lite": "use-lite",
    "all-mpnet": "st:{mpnet}",
    "smollm2, mean": "hf:{folder},pooling=mean,max_tokens=128",
    "smollm2, EOL": "hf:{folder},pooling=eol,max_tokens=128",
    "random": "random:384",
    "permuted minilm": "permuted:minilm",
    "minilm of names": "name:minilm",
}
#: What a server's backbone is called here.
ENDPOINT = "endpoint"
#: Texts that are timed, of each backbone.
TIMED = 100


@dataclass(frozen=True)
class Fit:
    """An encoder on the gene vectors of a backbone.

    Attributes
    ----------
    voices
        That name the query: ``head``, ``knn``, or ``both`` for all. Each is a row.
    options
        Of ``scvec ingest cells``.
    drawn
        Whether another seed gives another answer.
    dear
        Whether a language model reads the cells: those are run by the command line, and their seconds are
        those of whole commands.
    """

    shown: str
    encoder: str
    backbone: str
    voices: tuple[str, ...] = ("head",)
    options: dict[str, Any] = field(default_factory=dict)
    drawn: bool = True
    dear: bool = False


def _fits() -> dict[str, Fit]:
    made: dict[str, Fit] = {}
    for backbone in (*BACKBONES, ENDPOINT):
        every = ("head", "knn", "both") if backbone == "minilm" else ("head",)
        made[f"adapted {backbone}"] = Fit("adapted", "adapted", backbone, every)
        made[f"weighted {backbone}"] = Fit("weighted", "weighted", backbone, ("knn",), drawn=False)
        shown, options = "prompt, no language model", {"prompt_order": "none", "n_genes": 64}
        made[f"none {backbone}"] = Fit(shown, "prompt", backbone, options=options)
        if backbone in ("minilm", "use-lite", "all-mpnet", "smollm2, mean", "smollm2, EOL"):
            made[f"sentence {backbone}"] = Fit("sentence", "sentence", backbone, drawn=False)
    made["residual"] = Fit("adapted, residual only", "residual", "-")
    made["pca"] = Fit("PCA-50", "pca", "-", ("knn",), drawn=False)
    made["logistic"] = Fit("logistic regression, 2,000 HVG", "logistic regression", "-", drawn=False)
    read = {"n_genes": 64, "llm": "{llm}"}
    for name, backbone, shown, more in (
        ("untrained", "minilm", "prompt, untrained projection", {"epochs": 0}),
        ("paper", "minilm", "prompt (paper)", {}),
        ("code", "minilm", "prompt (code)", {"prompt_order": "code"}),
        ("paper random", "random", "prompt (paper)", {}),
    ):
        made[f"prompt {name}"] = Fit(shown, "prompt", backbone, options={**read, **more}, dear=True)
    return made


FITS = _fits()


def subsample(cells: Any, n: int, seed: int) -> Any:
    """Return at most ``n`` cells: labels are capped at the same number, rare ones kept whole."""
    labels = cells.obs["cell_type"].to_numpy().astype(str)
    rng = np.random.default_rng(seed)
    counts = np.unique(labels, return_counts=True)[1]
    cap = next(c for c in range(int(counts.max()), 0, -1) if c == 1 or np.minimum(counts, c).sum() <= n)
    rows = [rng.permutation(np.flatnonzero(labels == label))[:cap] for label in np.unique(labels)]
    return cells[np.sort(np.concatenate(rows))].copy()


@cache
def cells_of(pair: str, n: int) -> tuple[Any, Any]:
    """Return reference and query of a pair, at most ``n`` cells each."""
    from baron import pairs

    reference, new = pairs()[PAIRS[pair]]
    return subsample(reference, n, 0), subsample(new, n, 1)


def spec_of(backbone: str, job: dict[str, Any]) -> tuple[str, str | None]:
    """Return what ``--backbone`` and ``--base-url`` are given."""
    if backbone == ENDPOINT:
        return f"openai:{job['endpoint']}", job["base_url"]
    spec = BACKBONES.get(backbone, "minilm")
    if "{folder}" in spec:
        from scvec.backbones.hf import find_model

        spec = spec.format(folder=find_model(job["llm"]))
    if "{mpnet}" in spec:
        from mpnet import find_mpnet

        spec = spec.format(mpnet=find_mpnet(CACHE / "models"))
    return spec, None


def store_of(job: dict[str, Any]) -> Path:
    """Return the store of a job; a store has one writer, so two benchmarks at once need two."""
    return CACHE / f"backbones-{job['store']}"


def texts(job: dict[str, Any]) -> dict[str, Any]:
    """Encode the gene texts of a pair's reference into the store; return seconds of 1,000, and the cost.

    A hundred of them are encoded once more, for the seconds: the store may know some already. CPU seconds,
    but of a server seconds that pass. The cost is what all of them cost: tokens times price, None where no
    price is known.
    """
    from scvec.backbones import load_backbone, parse_spec
    from scvec.model.gene_vectors import encode_genes, gene_table
    from scvec.stores.store.store import Store
    from scvec.workflows.ingest_cells import ingest_cells

    spec_text, base_url = spec_of(job["backbone"], job)
    spec, store = parse_spec(spec_text, base_url=base_url), store_of(job)
    reference, _ = cells_of(job["pair"], job["cells"])
    # PCA needs no text, and its reference has the same genes.
    ingest_cells(store, [reference], name="genes", label_key="cell_type", encoder="pca")
    genes = list(Store(store).reference("genes").meta["genes"])
    with Store(store).begin("ingest embeddings", {"backbone": spec_text}) as txn:
        kb = txn.open_knowledge()
        wanted = gene_table(kb, genes, spec.template)["text"].tolist()
        encode_genes(kb, txn.vectors(), genes, spec)
        txn.commit()
    backbone: Any = load_backbone(spec)
    backbone.encode(wanted[:2])
    clock = time.perf_counter if spec.is_remote else time.process_time
    some = wanted[:: max(1, len(wanted) // TIMED)][:TIMED]
    started = clock()
    backbone.encode(some)
    seconds = (clock() - started) / len(some) * 1000
    found: dict[str, Any] = {"text_s_per_1000": seconds, "peak_mb": peak_mb()}
    if spec.is_remote:
        estimate = backbone.estimate(wanted)
        found |= {"tokens": estimate.tokens, "cost": estimate.cost}
    return found


def peak_mb() -> float:
    """Return the largest resident memory of this process and of those that it waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) / 1024


def one(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a fit once; return a row for each of its voices."""
    fit = FITS[job["fit"]]
    reference, new = cells_of(job["pair"], job["cells"])
    labels, truth = (a.obs["cell_type"].to_numpy().astype(str) for a in (reference, new))
    rows = []
    if fit.encoder == "logistic regression":
        from baselines import logistic_regression, matched

        started = time.process_time()
        said, confidence = logistic_regression(matched(reference, new), labels, job["seed"])
        answers = [("-", said, confidence, time.process_time() - started, 0.0)]
    elif fit.dear:
        answers = [_by_command(fit, job, reference, new)]
    else:
        answers = _by_function(fit, job, reference, new)
    from scores import score

    for voice, said, confidence, fit_s, query_s in answers:
        nothing = np.full(len(truth), np.nan)
        known = set(labels)
        scored = score(truth, said, confidence, nothing, known=known, terms={}, is_probability=True)
        rows.append(
            {
                "voice": voice,
                **{c: scored[c] for c in ("n", "n_novel", "accuracy", "macro_f1", "ece")},
                "fit_s": fit_s,
                "s_per_1000": query_s / len(truth) * 1000,
                "peak_mb": peak_mb(),
            }
        )
    return rows


def _options(fit: Fit, job: dict[str, Any]) -> dict[str, Any]:
    spec, base_url = spec_of(fit.backbone, job)
    options = {k: v.format(llm=job["llm"]) if isinstance(v, str) else v for k, v in fit.options.items()}
    if fit.dear and job["epochs"] is not None:
        options = {"epochs": job["epochs"], **options}
    given = {"backbone": spec, "base_url": base_url, "encoder": fit.encoder, "seed": job["seed"], **options}
    return {name: value for name, value in given.items() if value is not None}


def _by_function(fit: Fit, job: dict[str, Any], reference: Any, new: Any) -> list[tuple[Any, ...]]:
    from scvec.workflows.ingest_cells import ingest_cells
    from scvec.workflows.query import query

    started = time.process_time()
    store, keys = store_of(job), {"label_key": "cell_type", "batch_key": "donor"}
    ingest_cells(store, [reference], name="fit", **keys, **_options(fit, job))
    fit_s, answers = time.process_time() - started, []
    query(store, new[:5].copy(), reference="fit")  # loads what any query loads
    for voice in fit.voices:
        started = time.process_time()
        found = query(store, new, reference="fit", method=voice)
        answers.append((voice, found.label, found.confidence, fit_s, time.process_time() - started))
    return answers


def _by_command(fit: Fit, job: dict[str, Any], reference: Any, new: Any) -> tuple[Any, ...]:
    """As a user would: two commands, their start, reading and writing included."""
    import pandas as pd

    (voice,) = fit.voices
    store, folder = store_of(job), CACHE / f"backbones-files-{job['store']}"
    folder.mkdir(exist_ok=True)
    ref, que, out = folder / "reference.h5ad", folder / "query.h5ad", folder / "answer.csv"
    reference.write_h5ad(ref)
    new.write_h5ad(que)
    options = [x for k, v in _options(fit, job).items() for x in (f"--{k.replace('_', '-')}", str(v))]
    keys = ("--label-key", "cell_type", "--batch-key", "donor")
    commands = (
        ["ingest", "cells", ref, "--name", "fit", *keys, *options],
        ["query", que, "--reference", "fit", "--method", voice, "-o", out],
    )
    seconds = []
    for command in commands:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        words = [sys.executable, "-m", "scvec", "--store", str(store), *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
        if done.returncode:
            raise RuntimeError(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        said = {"command": words[4:], "wall": time.perf_counter() - started, "cpu": seconds[-1]}
        print(json.dumps({**said, "load": os.getloadavg()}), file=sys.stderr, flush=True)
    answer = pd.read_csv(out)
    said, confidence = answer["scvec_label"].to_numpy(str), answer["scvec_confidence"].to_numpy(float)
    return voice, said, confidence, *seconds

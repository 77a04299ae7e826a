"""The prompt encoder by itself, against its controls: what training and the language model add to each
other.

    python benchmarks/prompt.py [--cells 300] [--llm smollm2] [--n-genes 64] [--epochs 2] [--publish]

Baron donors 1-2 name donors 3-4, both as stratified subsamples of ``--cells`` cells. Each encoder is
trained once on the whole reference and its own head names the query: no calibration, no other voice.
``untrained`` has a random projection, and a logistic regression on what the model makes of it. Rows that
are done are kept in ``benchmarks/cache``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from backbone_rows import CACHE, subsample
from baron import pairs
from tables import markdown, publish

from scvec.base.types import CellChunk
from scvec.model.calibration import accuracy, macro_f1
from scvec.model.classifiers import Head

COLUMNS = (
    "encoder", "trained_on", "epochs", "held_out_macro_f1", "accuracy", "macro_f1", "fit_s", "s_per_1000",
)  # fmt: skip
ROWS = ("adapted", "none", "untrained", "paper", "code")


def cells(n: int) -> tuple[CellChunk, np.ndarray, CellChunk, np.ndarray, np.ndarray]:
    """Return cells and class numbers of reference and query (-1 for other labels), and gene vectors."""
    from scvec.ingest.cells.source import CellSource
    from scvec.model.matching import match_genes
    from scvec.model.resolvers import snapshot_resolver
    from scvec.stores.store.store import Store
    from scvec.workflows.ingest_cells import ingest_cells

    reference, new = pairs()["donors 1-2 -> 3-4"]
    reference, new = subsample(reference, n, 0), subsample(new, n, 1)
    store = CACHE / "prompt-store"
    # The encoder that keeps the gene vectors as they are.
    ingest_cells(store, [reference], name="vectors", label_key="cell_type", encoder="weighted")
    stored = Store(store).reference("vectors")
    resolver, chunks = snapshot_resolver(), []
    for data in (reference, new):
        found = match_genes(CellSource.open(data), resolver)
        genes = resolver.map_to(found.match, stored.meta["genes"], stored.meta["species"])
        chunks.append(next(found.chunks(genes, found.source.n_obs)))
    names = np.unique(reference.obs["cell_type"].astype(str))
    number = {name: i for i, name in enumerate(names)}
    labels = [
        np.array([number.get(name, -1) for name in data.obs["cell_type"].astype(str)])
        for data in (reference, new)
    ]
    batches = reference.obs["donor"].to_numpy().astype(str)
    known = CellChunk(chunks[0].X, chunks[0].measured, batches)
    return known, labels[0], chunks[1], labels[1], np.array(stored.tensors["encoder.gene_vectors"])


def one(row: str, data: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Train one encoder and name the query with its head."""
    from scvec.backbones.hf import load_language_model
    from scvec.base.resources import resolved_device
    from scvec.encoders import Material, make_encoder
    from scvec.encoders.prompt import PromptEncoder, PromptOptions

    reference, labels, new, truth, vectors = data
    device = resolved_device(options.device)
    if row == "adapted":
        encoder: Any = make_encoder("adapted", Material(reference, labels, vectors))
    else:
        epochs = {"untrained": 0, "none": 8}.get(row, options.epochs)
        order = "paper" if row == "untrained" else row
        chosen = PromptOptions.for_device(device, n_genes=options.n_genes, order=order, epochs=epochs)
        model = None if row == "none" else load_language_model(options.llm, device=device)
        encoder = PromptEncoder(vectors, chosen, model, device=device)

    def progress(stage: str, done: int, total: int | None, detail: str = "") -> None:
        print(f"{time.strftime('%H:%M:%S')} {row}: {stage} {done}/{total} {detail}", flush=True)

    started = time.perf_counter()
    encoder.fit([reference], labels, seed=0, progress=progress)
    # The head that was trained along needs no vectors of the reference.
    trained = getattr(encoder, "W", None) is not None
    known = (
        encoder.encode(reference) if not trained else np.zeros((len(labels), encoder.embed_dim), np.float32)
    )
    head = Head.fit(encoder, known, labels, int(labels.max()) + 1)
    fitted = time.perf_counter()
    said = head.scores(encoder.encode(new)).argmax(axis=1)
    seconds = time.perf_counter() - fitted
    history = getattr(encoder, "history", [])
    scored = truth >= 0
    return {
        "encoder": {
            "none": "prompt without a language model",
            "untrained": "prompt, projection untrained, logistic regression",
        }.get(row, f"prompt ({row})" if row != "adapted" else row),
        "trained_on": len(labels),
        "epochs": len(history) if row != "adapted" else "-",
        "held_out_macro_f1": max((h["macro_f1"] for h in history), default="-"),
        "accuracy": accuracy(truth[scored].astype(str), said[scored].astype(str)),
        "macro_f1": macro_f1(truth[scored].astype(str), said[scored].astype(str)),
        "fit_s": f"{fitted - started:.0f}",
        "s_per_1000": f"{seconds / len(truth) * 1000:.0f}",
        "history": history,
    }


def main() -> None:
    """Run what is missing and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--n-genes", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    file = Path(CACHE / f"prompt-{options.cells}-{options.n_genes}-{options.epochs}.json")
    kept = json.loads(file.read_text()) if file.is_file() else {}
    data = None
    for row in options.rows:
        if row not in kept:
            data = cells(options.cells) if data is None else data
            found = one(row, data, options)
            kept = json.loads(file.read_text()) if file.is_file() else {}
            kept[row] = found
            file.write_text(json.dumps(kept, indent=1) + "\n")
    rows = sorted((kept[row] for row in ROWS if row in kept), key=lambda row: -row["macro_f1"])
    shown = [{k: v for k, v in row.items() if k != "history"} for row in rows]
    print(markdown(COLUMNS, shown))
    if options.publish:
        publish("prompt", "python benchmarks/prompt.py --publish", COLUMNS, shown)


if __name__ == "__main__":
    main()

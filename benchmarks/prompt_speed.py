"""What reading the instruction once saves the prompt encoder: cells a second, with and without.

    python benchmarks/prompt_speed.py [--llm smollm2] [--n-genes 64] [--cells 16] [--publish]

Random cells of more genes than are read, an untrained encoder: time does not depend on either. Both ways take
turns, and the best of three counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import scipy.sparse as sp
from tables import markdown, publish

from scvec.backbones.hf import load_language_model
from scvec.base.resources import resolved_device
from scvec.base.types import CellChunk
from scvec.encoders.prompt import PromptEncoder, PromptOptions

COLUMNS = (
    "precision",
    "tokens of the instruction",
    "gene slots",
    "naive",
    "instruction once",
    "ratio",
    "cosine",
)


def run(llm: str, n_genes: int, n_cells: int, device: str) -> list[dict[str, Any]]:
    """Return the rows of the table: cells a second."""
    rng = np.random.default_rng(0)
    X = rng.poisson(0.4, (n_cells, 3000)).astype(np.float32)
    cells = CellChunk(sp.csr_matrix(np.log1p(X)), np.ones(3000, dtype=bool))
    vectors = rng.normal(size=(3000, 384)).astype(np.float32)
    rows = []
    for precision in ("fp32", "bf16"):
        model = load_language_model(llm, device=device, precision=precision)
        options = PromptOptions.for_device(device, n_genes=n_genes, epochs=0)
        encoder = PromptEncoder(vectors, options, model, device=device)
        encoder.fit([cells], np.arange(n_cells) % 2)
        best, found = {True: np.inf, False: np.inf}, {}
        for _ in range(4):  # the first round warms up
            for shared in (True, False):
                encoder.use_prefix, encoder._ready = shared, None
                encoder.encode(cells.take(np.arange(1)))
                started = time.perf_counter()
                found[shared] = encoder.encode(cells)
                seconds = time.perf_counter() - started
                best[shared] = min(best[shared], seconds) if _ else np.inf
        a, b = found[True].astype(np.float64), found[False].astype(np.float64)
        cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        rows.append(
            {
                "precision": precision,
                "tokens of the instruction": len(model.tokens(options.instruction)),
                "gene slots": n_genes,
                "naive": n_cells / best[False],
                "instruction once": n_cells / best[True],
                "ratio": best[False] / best[True],
                "cosine": f"{cosine.min():.6f}",
            }
        )
    return rows


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--n-genes", type=int, default=64)
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    rows = run(options.llm, options.n_genes, options.cells, resolved_device(options.device))
    print(markdown(COLUMNS, rows))
    if options.publish:
        publish("prompt_speed", "python benchmarks/prompt_speed.py --publish", COLUMNS, rows)


if __name__ == "__main__":
    main()

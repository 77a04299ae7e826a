"""What a GPU gives, against what it could: the prompt encoder, and exact search.

    python benchmarks/gpu.py [--llm smollm2] [--n-genes 512] [--rows 1000000 10000000] [--publish]

Each figure stands beside its roofline: for the prompt encoder 2 x parameters x tokens operations a cell
at the measured rate of bf16 matrix products; for the search the larger of the time that the products
take at the rate of fp32 and the time to read the vectors once at the measured bandwidth of a copy.
``weighted`` and ``adapted`` encode on the CPU, as one sparse product: their roofline is the CPU's
memory. Without a GPU nothing is measured, and that is what it says; so does the page, with --publish, until
something was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from tables import DOCS, markdown, publish

COLUMNS = ("what", "measured", "roofline", "ratio", "unit")
NOT_YET = "not yet measured"
PROMPT, SEARCH = "prompt encoder, {llm}, {n_genes} slots", "exact search, {n_rows:,} x {dim}"
COMMAND = "python benchmarks/gpu.py --publish"
SPARSE = "{name} on the CPU"


def best(work: Callable[[], Any], rounds: int = 5) -> float:
    """Return the seconds of the fastest round, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def matrix_rate(dtype: torch.dtype, device: str, n: int = 8192) -> float:
    """Return operations a second of a large matrix product."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / best(lambda: a @ b)


def bandwidth(device: str, n: int = 1 << 29) -> float:
    """Return bytes a second that a copy reads and writes."""
    a = torch.zeros(n, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * n / best(lambda: b.copy_(a))


def prompt(llm: str, n_genes: int, device: str) -> dict[str, Any]:
    """Return cells a second of the untrained prompt encoder."""
    from scvec.backbones.hf import load_language_model
    from scvec.base.types import CellChunk
    from scvec.encoders.prompt import PromptEncoder, PromptOptions

    rng = np.random.default_rng(0)
    X = sp.csr_matrix(np.log1p(rng.poisson(2.0, (2048, 3000))).astype(np.float32))
    cells = CellChunk(X, np.ones(3000, dtype=bool))
    model = load_language_model(llm, device=device)
    options = PromptOptions.for_device(device, n_genes=n_genes, epochs=0)
    encoder = PromptEncoder(rng.normal(size=(3000, 384)).astype(np.float32), options, model, device=device)
    encoder.fit([cells], np.arange(2048) % 2)
    found = 2048 / best(lambda: encoder.encode(cells), 3)
    embeddings = model.module.get_input_embeddings().weight.numel()
    parameters = sum(p.numel() for p in model.module.parameters()) - embeddings
    roofline = matrix_rate(torch.bfloat16, device) / (2 * parameters * (n_genes + 1))
    return row(PROMPT.format(llm=llm, n_genes=n_genes), found, roofline, "cells/s")


def search(n_rows: int, device: str, n_queries: int = 4096, dim: int = 384) -> dict[str, Any]:
    """Return queries a second of the exact search of 15 neighbours."""
    from scvec.stores.index.flat import FaissFlatIndex, TorchIndex

    rng = np.random.default_rng(0)
    flat = FaissFlatIndex(dim)
    for start in range(0, n_rows, 1 << 18):
        flat.add(rng.normal(size=(min(1 << 18, n_rows - start), dim)).astype(np.float32))
    index = TorchIndex(flat, device)
    queries = rng.normal(size=(n_queries, dim)).astype(np.float32)
    found = n_queries / best(lambda: index.search(queries, 15), 2)
    products = 2 * n_rows * dim * n_queries / matrix_rate(torch.float32, device)
    reading = 2 * n_rows * dim / bandwidth(device)
    return row(SEARCH.format(n_rows=n_rows, dim=dim), found, n_queries / max(products, reading), "queries/s")


def sparse(name: str) -> dict[str, Any]:
    """Return cells a second of an encoder that is one sparse product on the CPU."""
    from scvec.base.types import CellChunk
    from scvec.encoders import Material, make_encoder

    rng = np.random.default_rng(0)
    X = sp.random(20_000, 3000, 0.2, format="csr", dtype=np.float32, rng=rng)
    cells, labels = CellChunk(X, np.ones(3000, dtype=bool)), np.arange(20_000) % 5
    text = rng.normal(size=(3000, 384)).astype(np.float32)
    encoder = make_encoder(name, Material(cells, labels, text))
    if name == "adapted":
        encoder.fit([cells.take(np.arange(500))], labels[:500])
    found = 20_000 / best(lambda: encoder.encode(cells), 3)
    # Values and columns are read once; for each, a row of gene vectors is read from the cache or memory.
    read = X.data.nbytes + X.indices.nbytes + X.nnz * 4 * encoder.embed_dim
    return row(SPARSE.format(name=name), found, 20_000 * bandwidth("cpu") / read, "cells/s")


def row(what: str, measured: float, roofline: float, unit: str) -> dict[str, Any]:
    """Return a row of the table."""
    return {
        "what": what,
        "measured": f"{measured:,.0f}",
        "roofline": f"{roofline:,.0f}",
        "ratio": measured / roofline,
        "unit": unit,
    }


def unmeasured(llm: str, n_genes: int, n_rows: list[int]) -> list[dict[str, Any]]:
    """Return the rows of the table where there is no GPU."""
    names = [
        PROMPT.format(llm=llm, n_genes=n_genes),
        *(SPARSE.format(name=n) for n in ("weighted", "adapted")),
    ]
    names += [SEARCH.format(n_rows=n, dim=384) for n in n_rows]
    units = ["queries/s" if name.startswith("exact") else "cells/s" for name in names]
    empty = {"measured": NOT_YET, "roofline": "-", "ratio": "-"}
    return [{"what": name, **empty, "unit": unit} for name, unit in zip(names, units, strict=True)]


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--n-genes", type=int, default=512)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device on this machine: nothing was measured")
        record = DOCS / "benchmarks" / "gpu.json"
        if options.publish and (not record.exists() or NOT_YET in record.read_text(encoding="utf-8")):
            rows = unmeasured(options.llm, options.n_genes, options.rows)
            publish("gpu", COMMAND, COLUMNS, rows, device=None)
        return
    rows = [prompt(options.llm, options.n_genes, "cuda"), sparse("weighted"), sparse("adapted")]
    rows += [search(n, "cuda") for n in options.rows]
    print(torch.cuda.get_device_name())
    print(markdown(COLUMNS, rows))
    if options.publish:
        device = f"{torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}"
        publish("gpu", COMMAND, COLUMNS, rows, device=device)


if __name__ == "__main__":
    main()

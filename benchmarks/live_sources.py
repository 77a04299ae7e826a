"""What asking live services costs in calls and time, against a server on this machine with faults on demand.

    python benchmarks/live_sources.py [--genes 20000] [--publish]

The server is the tests' (tests/fake_server.py, tests/fake_openai.py): it speaks E-utilities and OpenAI,
and its texts and vectors carry the gene's id or follow from the text, so that a wrong one is seen. Rate
limits are lifted and the waits between attempts cut to a hundredth; the number of calls stays what it is.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import markdown, publish

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fake_faults import Faults
from fake_genes import fake_genes
from fake_openai import add_openai, fake_vector
from fake_server import FakeServer
from live_store import live_store, texts

import scvec
from scvec.backbones import remote
from scvec.base.errors import ScvecError
from scvec.ingest.sources import ncbi, retry

COLUMNS = ("what", "genes", "complete", "wrong", "calls", "least_calls", "calls_ratio", "genes_a_minute")
FAULTY = ("429", "429-after", "500", "503", "reset", "malformed")
SHARE = 0.3


def ask_ncbi(folder: Path, server: FakeServer) -> None:
    """Facts and descriptions of all genes."""
    address = f"{server.url}/entrez/eutils"
    scvec.ingest_genes(folder, source="ncbi", base_url=address, requests_per_second=0)


def ask_model(folder: Path, server: FakeServer) -> None:
    """A description by a language model for each gene."""
    scvec.ingest_complement(folder, model="gpt-4o-mini", base_url=f"{server.url}/v1")


def ask_vectors(folder: Path, server: FakeServer) -> None:
    """A vector for each gene's text."""
    backbone = "openai:text-embedding-3-small"
    scvec.ingest_embeddings(folder, backbone=backbone, base_url=f"{server.url}/v1")


def wrong_texts(folder: Path, genes: list[Any], kind: str) -> tuple[int, int]:
    """Return genes with a text, and texts that are of another gene."""
    found = texts(folder, kind)
    of = {g.authority: str(g.entrez_id) for g in genes}
    return len(found), sum(of[gene_id] not in text for gene_id, text in found.items())


def wrong_vectors(folder: Path, genes: list[Any]) -> tuple[int, int]:
    """Return genes with a vector, and vectors that are not those of the gene's text."""
    from scvec.stores.store.store import Store

    store = Store(folder)
    (stored,) = store.spaces().values()
    composed = texts(folder, "composed")
    wrong = 0
    for gene_id, vector in zip(stored.genes["gene_id"], stored.vectors, strict=True):
        wrong += float(vector @ fake_vector(composed[gene_id])) < 0.999
    return len(stored.genes), wrong


def measure(
    what: str,
    n: int,
    least: int,
    faults: Faults,
    ask: Callable[[Path, FakeServer], None],
    check: Callable[[Path, list[Any]], tuple[int, int]],
) -> dict[str, Any]:
    """Return a row of the table."""
    genes = fake_genes(n)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        live_store(folder, genes)
        with FakeServer(genes, faults=faults, extra=[add_openai]) as server:
            started = time.perf_counter()
            try:
                ask(folder, server)
            except ScvecError as error:
                print(f"{what}: {error}", file=sys.stderr)
            seconds = time.perf_counter() - started
            n_calls = len(server.requests)
        complete, wrong = check(folder, genes)
    return {
        "what": what,
        "genes": n,
        "complete": complete,
        "wrong": wrong,
        "calls": n_calls,
        "least_calls": least,
        "calls_ratio": n_calls / least,
        "genes_a_minute": round(60 * n / seconds),
    }


def defaults_of(kind: type) -> dict[str, Any]:
    """Return the keyword defaults of a class's constructor, to be changed for this process."""
    found: dict[str, Any] = kind.__init__.__kwdefaults__  # type: ignore[misc]
    return found


def run(n_genes: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = [
        measure(
            "ncbi, no faults",
            n_genes,
            -(-n_genes // ncbi.SUMMARIES),
            Faults.none(),
            ask_ncbi,
            lambda f, g: wrong_texts(f, g, "human"),
        )
    ]
    # Small batches, so that there are enough calls for a share of them to mean something.
    ncbi.SUMMARIES = 5
    defaults_of(remote.RemoteBackbone)["inputs"] = 5
    for what, least, ask, check in (
        ("ncbi, 5 genes a call", 200, ask_ncbi, lambda f, g: wrong_texts(f, g, "human")),
        ("language model", 1000, ask_model, lambda f, g: wrong_texts(f, g, "llm")),
        ("vectors, 5 texts a call", 200, ask_vectors, wrong_vectors),
    ):
        faults = Faults.random(SHARE, seed=1, kinds=FAULTY)
        rows.append(measure(f"{what}, {100 * SHARE:.0f}% of calls faulty", 1000, least, faults, ask, check))
    return rows


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=20_000, help="genes of the first row")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    logging.getLogger("aiohttp").setLevel(logging.ERROR)
    retry.LAST_WAITS = tuple(w / 100 for w in retry.LAST_WAITS)  # type: ignore[assignment]
    defaults_of(retry.Caller).update(pace=0.01, seed=1)
    rows = run(options.genes)
    print(markdown(COLUMNS, rows))
    if options.publish:
        publish("live_sources", "python benchmarks/live_sources.py --publish", COLUMNS, rows)


if __name__ == "__main__":
    main()

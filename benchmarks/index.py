"""How fast neighbours are found, and how many of them, beside FAISS itself and other libraries.

    python benchmarks/index.py --store STORE [--reference NAME ...] [--n 1000000] [--peers PYTHON] [--publish]

The store needs references (``scvec ingest cells``); their cell vectors are resampled to ``--n``: a synthetic
cell is a random mixture of three cells of one label, with weights that keep the label's covariance. Queries
are drawn the same way: half of them of the donors whose cells are in the index, half of other donors
(``--batch-key``). Nothing of ours is tuned on them.

Times are CPU seconds of one thread, as the machine may be busy: queries per CPU second. Each ratio is between
things measured in one run, in turns. usearch, hnswlib and LanceDB run where they are installed: in
``--peers``, the Python of another environment, on ``--peer-n`` vectors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tables import markdown, publish

from scvec.api.references import CODE_COLUMN
from scvec.stores.faiss_index import FaissFlatIndex
from scvec.stores.ivf_index import IvfIndex
from scvec.stores.ivf_settings import IvfSettings
from scvec.stores.ivf_tuning import places
from scvec.stores.store import Store

K, TARGET = 15, 0.95
EXACT = ("vectors", "batch", "search", "queries_per_s", "of_raw_faiss")
NEAR = (
    "vectors",
    "search",
    "build_s",
    "mb",
    "recall_15",
    "other_donors_15",
    "recall_50",
    "queries_per_s",
    "of_ivf_flat",
)
PEERS = ("vectors", "search", "build_s", "mb", "recall_15", "queries_per_s")
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def synthetic(real: Any, codes: Any, n: int, seed: int) -> Any:
    """Return (n, dim) float32: mixtures of three cells of one label, about the label's mean."""
    rng = np.random.default_rng(seed)
    order = np.argsort(codes, kind="stable")
    labels, first, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    means = np.stack([real[codes == c].mean(axis=0) for c in labels]).astype(np.float32)
    out = np.empty((n, real.shape[1]), dtype=np.float32)
    for start in range(0, n, 100_000):
        stop = min(n, start + 100_000)
        of = np.searchsorted(labels, codes[rng.integers(0, len(real), stop - start)])
        weights = np.abs(rng.normal(size=(stop - start, 3))).astype(np.float32)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        block = means[of]
        for j in range(3):
            picked = order[first[of] + (rng.random(stop - start) * sizes[of]).astype(np.int64)]
            block = block + weights[:, j : j + 1] * (real[picked] - means[of])
        out[start:stop] = block
    return out


def queries_of(groups: tuple[Any, Any], exact: FaissFlatIndex, n: int, seed: int) -> tuple[Any, Any]:
    """Return (n, dim) queries, of either group of cells one half, and their true 50 neighbours."""
    queries = np.concatenate([synthetic(real, codes, n // 2, seed) for real, codes in groups])
    return queries, exact.search(queries, 50).indices


def recall(found: Any, truth: Any, k: int) -> float:
    """Return the share of the first k true neighbours among the first k found."""
    return float((places(found[:, :k], truth[:, :k]) < k).mean())


def rate(search: Callable[[], Any], n: int, rounds: int = 3) -> float:
    """Return queries per CPU second, the best of some rounds."""
    best = np.inf
    for _ in range(rounds):
        began = time.process_time()
        search()
        best = min(best, time.process_time() - began)
    return n / best


def exact_rows(name: str, base: Any, queries: Any) -> list[dict[str, Any]]:
    """Return rows on exact search: FAISS itself, ours, and the product of matrices alone."""
    import faiss

    raw = faiss.IndexFlatL2(base.shape[1])
    raw.add(base)
    ours = FaissFlatIndex.over(base)
    ours.search(queries[:20], K)  # the largest norm is looked for once
    before = faiss.cvar.distance_compute_blas_threshold
    rows = []
    for batch in (1000, 64):
        parts = [
            queries[s : s + batch] for s in range(0, min(len(queries), 1000 if batch == 1000 else 256), batch)
        ]
        n = sum(map(len, parts))

        def by_faiss(parts: list[Any] = parts) -> None:
            faiss.cvar.distance_compute_blas_threshold = 1
            for part in parts:
                raw.search(part, K)
            faiss.cvar.distance_compute_blas_threshold = before

        def by_us(parts: list[Any] = parts) -> None:
            for part in parts:
                ours.search(part, K)

        def product(parts: list[Any] = parts) -> None:
            for part in parts:
                for start in range(0, len(base), 100_000):
                    _ = part @ base[start : start + 100_000].T

        best = {"FAISS Flat, BLAS threshold set": 0.0, "scvec, exact": 0.0, "numpy product alone": 0.0}
        for _ in range(3):  # in turns, so that a busy minute falls on all
            for key, do in zip(best, (by_faiss, by_us, product), strict=True):
                best[key] = max(best[key], rate(do, n, 1))
        of = best["FAISS Flat, BLAS threshold set"]
        rows += [
            {
                "vectors": name,
                "batch": batch,
                "search": key,
                "queries_per_s": value,
                "of_raw_faiss": value / of,
            }
            for key, value in best.items()
        ]
    return rows


def ivf_flat(base: Any, tuning: tuple[Any, Any], n_lists: int) -> tuple[Any, float]:
    """Return FAISS' IVF-Flat with the least nprobe that reaches the target, and the seconds to build it.

    Unlike ours it is tuned on queries of both kinds.
    """
    import faiss

    began = time.process_time()
    index = faiss.index_factory(base.shape[1], f"IVF{n_lists},Flat")
    index.cp.niter = 10
    rows = np.random.default_rng(0).choice(len(base), min(len(base), 40 * n_lists), replace=False)
    index.train(base[rows])
    index.add(base)
    seconds = time.process_time() - began
    queries, truth = tuning
    for nprobe in PROBES:
        index.nprobe = nprobe
        found = index.search(queries, 50)[1]
        if min(recall(found, truth, k) for k in (K, 50)) >= TARGET:
            break
    return index, seconds


def near_rows(name: str, base: Any, tuning: tuple[Any, Any], test: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Return rows on approximate search."""
    queries, truth = test
    half = len(queries) // 2
    began = time.process_time()
    ours = IvfIndex.build(base, recall=TARGET)
    ours_built = time.process_time() - began
    made: list[tuple[str, Callable[[int], Any], float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        ours.save(path)
        size = path.stat().st_size / 1e6
        chosen = ours.settings
        label = f"scvec, ivf ({chosen.n_lists} lists, {chosen.nprobe} opened, factor {chosen.factor})"
        made.append((label, lambda k: ours.search(queries, k).indices, ours_built, size))
        for n_lists in (IvfSettings.lists_for(len(base)), 2 * IvfSettings.lists_for(len(base))):
            flat, seconds = ivf_flat(base, tuning, n_lists)
            label = f"FAISS IVF-Flat ({n_lists} lists, {flat.nprobe} opened)"
            size = (base.nbytes + 8 * len(base) + 4 * n_lists * base.shape[1]) / 1e6
            made.append((label, lambda k, flat=flat: flat.search(queries, k)[1], seconds, size))
    rates = [0.0] * len(made)
    for _ in range(3):
        for i, (_, search, _, _) in enumerate(made):
            rates[i] = max(rates[i], rate(lambda search=search: search(K), len(queries), 1))
    best = max(rates[1:])
    return [
        {
            "vectors": name,
            "search": label,
            "build_s": seconds,
            "mb": size,
            "recall_15": recall(search(K)[:half], truth[:half], K),
            "other_donors_15": recall(search(K)[half:], truth[half:], K),
            "recall_50": recall(search(50), truth, 50),
            "queries_per_s": value,
            "of_ivf_flat": value / best,
        }
        for (label, search, seconds, size), value in zip(made, rates, strict=True)
    ]


def peer_rows(python: str, name: str, base: Any, tuning: Any, test: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Return rows of other libraries, each in a process of another environment, and of ours beside them."""
    queries, truth = test
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        np.save(where / "base.npy", base)
        np.save(where / "queries.npy", queries)
        np.save(where / "truth.npy", truth)
        script = Path(__file__).parent / "peers" / "vectors.py"
        began = time.process_time()
        ours = IvfIndex.build(base, recall=TARGET)
        built = time.process_time() - began
        ours.save(where / "ours")
        rows = [
            {
                "vectors": name,
                "search": "scvec, ivf",
                "build_s": built,
                "mb": (where / "ours").stat().st_size / 1e6,
                "recall_15": recall(ours.search(queries, K).indices, truth, K),
                "queries_per_s": rate(lambda: ours.search(queries, K), len(queries)),
            }
        ]
        for library in ("usearch", "hnswlib", "lancedb"):
            done = subprocess.run(
                [python, str(script), library, folder], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{library} did not run: {done.stderr.strip()[-200:]}", file=sys.stderr)
                continue
            rows.append({"vectors": name, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--reference", action="append", help="whose vectors; may be given several times")
    parser.add_argument("--batch-key", default="donor")
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--peers", help="Python of an environment with usearch, hnswlib and lancedb")
    parser.add_argument("--peer-n", type=int, default=100_000)
    parser.add_argument("--only", choices=["exact", "near", "peers"], help="one of the three tables")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(1)
    store = Store(options.store)
    exact: list[dict[str, Any]] = []
    near: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for reference in options.reference or sorted(store.references()):
        stored = store.reference(reference)
        real, codes = np.asarray(stored.vectors), stored.obs[CODE_COLUMN].to_numpy()
        batches = stored.obs[options.batch_key].astype(str).to_numpy()
        inside = np.isin(batches, np.unique(batches)[: max(1, len(np.unique(batches)) // 2)])
        groups = ((real[inside], codes[inside]), (real[~inside], codes[~inside]))
        base = synthetic(*groups[0], options.n, 0)
        name = f"{len(base):,} x {base.shape[1]}"
        flat = FaissFlatIndex.over(base)
        tuning, test = (queries_of(groups, flat, 1000, seed) for seed in (1, 2))
        if options.only in (None, "exact"):
            exact += exact_rows(name, base, test[0])
            print(markdown(EXACT, exact), flush=True)
        if options.only in (None, "near"):
            near += near_rows(name, base, tuning, test)
            print(markdown(NEAR, near), flush=True)
        if options.peers and options.only in (None, "peers"):
            few = np.ascontiguousarray(base[: options.peer_n])
            flat = FaissFlatIndex.over(few)
            both = [queries_of(groups, flat, 1000, seed) for seed in (1, 2)]
            peers += peer_rows(options.peers, f"{len(few):,} x {few.shape[1]}", few, *both)
            print(markdown(PEERS, peers), flush=True)
    if options.publish:
        command = f"python benchmarks/index.py --store STORE --n {options.n} --publish"
        command += f" --only {options.only}" if options.only else ""
        facts = {"faiss": faiss.__version__, "options": faiss.get_compile_options().strip()}
        if exact:
            publish("index_exact", command, EXACT, exact, **facts)
        if near:
            publish("index", command, NEAR, near, **facts)


if __name__ == "__main__":
    main()

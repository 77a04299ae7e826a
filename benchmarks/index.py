"""How fast neighbours are found, and how many of them, beside FAISS itself and other libraries.

    python benchmarks/index.py [--store STORE] [--reference NAME ...] [--n N] [--peers PYTHON] [--publish]

The store needs references (``scvec ingest cells --batch-key``); without one Baron's human pancreas, which
ships with scvec, is ingested with the default encoder (``human``) and the weighted one
(``human_weighted``, 384). Their cell vectors are resampled to ``--n``: a synthetic cell is a random mixture
of three cells of one label and donor, with weights that keep their covariance. Queries are drawn the same
way, of the donors whose cells are in the index and of other donors (``--batch-key``). Ours is measured as it
tunes itself, on its own cells only, and once more tuned on the queries that the others are tuned on; all
figures are of queries that nothing was tuned on.

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
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from mixtures import group_of, queries_of, synthetic
from tables import markdown, publish

from scvec.model.storage import CODE_COLUMN
from scvec.stores.index.flat import FaissFlatIndex
from scvec.stores.index.ivf import Effort, IvfIndex, IvfSettings, places
from scvec.stores.store.store import Store

STORE = Path(__file__).resolve().parent / "cache" / "index"
K, TARGET = 15, 0.95
EXACT = ("vectors", "batch", "search", "queries_per_s", "of_raw_faiss")
NEAR = (
    "vectors",
    "queries",
    "search",
    "build_s",
    "mb",
    "recall_15",
    "recall_50",
    "queries_per_s",
    "of_ivf_flat",
)
PEERS = ("vectors", "search", "build_s", "mb", "recall_15", "queries_per_s")
PROBES = (
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    128,
    192,
    256,
    384,
    512,
)
FACTORS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
KINDS = ("the index's donors", "other donors")


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


def ivf_flat(base: Any, n_lists: int) -> tuple[Any, float]:
    """Return FAISS' IVF-Flat and the CPU seconds to build it."""
    import faiss

    began = time.process_time()
    index = faiss.index_factory(base.shape[1], f"IVF{n_lists},Flat")
    index.cp.niter = 10
    rows = np.random.default_rng(0).choice(len(base), min(len(base), 40 * n_lists), replace=False)
    index.train(base[rows])
    index.add(base)
    return index, time.process_time() - began


def flat_tuned(index: Any, queries: Any, truth: Any) -> int:
    """Return the least nprobe of IVF-Flat that reaches the target at 15 and at 50 neighbours."""
    for nprobe in PROBES:
        index.nprobe = nprobe
        found = index.search(queries, 50)[1]
        if min(recall(found, truth, k) for k in (K, 50)) >= TARGET:
            break
    return int(index.nprobe)


def ours_tuned(index: IvfIndex, queries: Any, truth: Any) -> IvfIndex:
    """Return ours with the fastest lists and candidates that reach the target on these queries."""
    queries, most = np.ascontiguousarray(queries), max(FACTORS)
    best, fastest, least = index, 0.0, most + 1
    for nprobe in PROBES:
        at = places(index.candidates(queries, nprobe, 50 * most), truth)
        reached = [
            f
            for f in FACTORS
            if min((at[:, :K] < K * f).mean(), (at < 50 * f).mean()) >= TARGET and f < least
        ]
        if reached:
            least = reached[0]
            other = index.at_effort(Effort(nprobe, least))
            speed = rate(lambda other=other: other.search(queries, K), len(queries))
            if speed > fastest:
                best, fastest = other, speed
            elif speed < 0.7 * fastest:
                break
        if least == FACTORS[0]:
            break
    return best


def near_rows(name: str, base: Any, batches: Any, tuning: Any, test: Any) -> list[dict[str, Any]]:
    """Return rows on approximate search: at equal recall, and ours as it tunes itself."""
    began = time.process_time()
    ours = IvfIndex.build(base, recall=TARGET, batches=batches)
    ours_built = time.process_time() - began
    print(ours.settings.to_dict(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        ours.save(path)
        size = path.stat().st_size / 1e6
    flats = [ivf_flat(base, m * IvfSettings.lists_for(len(base))) for m in (1, 2)]
    half, rows = len(test[0]) // 2, []
    for kind, part in zip(KINDS, (slice(None, half), slice(half, None)), strict=True):
        (queries, truth), (known, answers) = ((x[0][part], x[1][part]) for x in (test, tuning))
        made: list[tuple[str, Callable[[int], Any], float, float]] = []
        same = ours_tuned(ours, known, answers)
        for label, index in (("scvec, ivf, at equal recall", same), ("scvec, ivf, tuned by itself", ours)):
            most = " at most" if index.effort.reach is not None else ""
            label += f" ({index.settings.n_lists} lists, {index.effort.nprobe} opened{most}, "
            label += f"factor {index.effort.factor})"
            made.append(
                (label, lambda k, q=queries, index=index: index.search(q, k).indices, ours_built, size)
            )
        for flat, seconds in flats:
            nprobe = flat_tuned(flat, known, answers)

            def search(k: int, flat: Any = flat, nprobe: int = nprobe, q: Any = queries) -> Any:
                flat.nprobe = nprobe
                return flat.search(q, k)[1]

            label = f"FAISS IVF-Flat ({flat.nlist} lists, {nprobe} opened)"
            of_flat = (base.nbytes + 8 * len(base) + 4 * flat.nlist * base.shape[1]) / 1e6
            made.append((label, search, seconds, of_flat))
        rates = [0.0] * len(made)
        for _ in range(7):  # in turns, so that a busy minute falls on all
            for i, (_, search_, _, _) in enumerate(made):
                rates[i] = max(rates[i], rate(lambda search_=search_: search_(K), len(queries), 1))
        rows += [
            {
                "vectors": name,
                "queries": kind,
                "search": label,
                "build_s": seconds,
                "mb": mb,
                "recall_15": recall(search_(K), truth, K),
                "recall_50": recall(search_(50), truth, 50),
                "queries_per_s": value,
                "of_ivf_flat": value / max(rates[2:]),
            }
            for (label, search_, seconds, mb), value in zip(made, rates, strict=True)
        ]
    return rows


def peer_rows(python: str, name: str, base: Any, batches: Any, test: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Return rows of other libraries, each in a process of another environment, and of ours beside them."""
    queries, truth = test
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        np.save(where / "base.npy", base)
        np.save(where / "queries.npy", queries)
        np.save(where / "truth.npy", truth)
        script = Path(__file__).parent / "peers" / "vectors.py"
        began = time.process_time()
        ours = IvfIndex.build(base, recall=TARGET, batches=batches)
        built = time.process_time() - began
        ours.save(where / "ours")
        rows = [
            {
                "vectors": name,
                "search": label,
                "build_s": built,
                "mb": (where / "ours").stat().st_size / 1e6,
                "recall_15": recall(index.search(queries[1::2], K).indices, truth[1::2], K),
                "queries_per_s": rate(lambda index=index: index.search(queries[1::2], K), len(queries) // 2),
            }
            for label, index in (
                ("scvec, ivf, at equal recall", ours_tuned(ours, queries[::2], truth[::2])),
                ("scvec, ivf, tuned by itself", ours),
            )
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


def ingest(folder: Path) -> None:
    """Make the references where there are none."""
    import scvec

    cells = str(files("scvec") / "data" / "baron_human.h5ad")
    for name, encoder in (("human", "discriminant"), ("human_weighted", "weighted")):
        scvec.ingest_cells(
            folder, [cells], name=name, label_key="cell_type", batch_key="donor", encoder=encoder
        )


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=STORE)
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
    if options.store == STORE and not (STORE / "CURRENT").exists():
        ingest(STORE)
    store = Store(options.store)
    exact: list[dict[str, Any]] = []
    near: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    done: list[str] = []
    for reference in options.reference or sorted(store.references()):
        stored = store.reference(reference)
        real, codes = np.asarray(stored.vectors), stored.obs[CODE_COLUMN].to_numpy()
        donors, numbers = np.unique(stored.obs[options.batch_key].astype(str), return_inverse=True)
        inside = numbers < max(1, len(donors) // 2)
        groups = tuple(group_of(real[of], codes[of], numbers[of]) for of in (inside, ~inside))
        base, drawn = synthetic(groups[0], options.n, 0)
        batches = drawn % (numbers[inside].max() + 1)
        name = f"{len(base):,} x {base.shape[1]}"
        flat = FaissFlatIndex.over(base)
        if options.only != "peers":
            tuning, test = (queries_of(groups, flat, 1000, seed) for seed in (1, 2))
        if options.only in (None, "exact"):
            exact += exact_rows(name, base, test[0])
            print(markdown(EXACT, exact), flush=True)
        if options.only in (None, "near"):
            near += near_rows(name, base, batches, tuning, test)
            print(markdown(NEAR, near), flush=True)
        if options.peers and options.only in (None, "peers"):
            few = np.ascontiguousarray(base[: options.peer_n])
            flat = FaissFlatIndex.over(few)
            asked = queries_of(groups, flat, 2000, 2)
            peers += peer_rows(
                options.peers, f"{len(few):,} x {few.shape[1]}", few, batches[: options.peer_n], asked
            )
            print(markdown(PEERS, peers), flush=True)
        done.append(reference)
        if options.publish:  # after each, as the next may take long
            command = f"python benchmarks/index.py --store STORE --n {options.n} --publish"
            command += "".join(f" --reference {name}" for name in done)
            command += f" --peers PYTHON --peer-n {options.peer_n}" if options.peers else ""
            command += f" --only {options.only}" if options.only else ""
            facts = {"faiss": faiss.__version__, "options": faiss.get_compile_options().strip()}
            tables = (("index_exact", EXACT, exact), ("index", NEAR, near), ("index_peers", PEERS, peers))
            for table, columns, rows in tables:
                if rows:
                    publish(table, command, columns, rows, **facts)


if __name__ == "__main__":
    main()

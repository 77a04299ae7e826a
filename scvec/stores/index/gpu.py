"""Exact search on a GPU: by FAISS where its GPU build is installed, else by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import ResourceError
from scvec.base.types import Float32, Int64, VectorIndex
from scvec.stores.index.distances import Float64, Index, row_distances
from scvec.stores.index.flat import FaissFlatIndex, _faiss
from scvec.stores.index.ivf import IvfIndex
from scvec.stores.index.shards import SegmentedIndex

if TYPE_CHECKING:
    import torch


__all__ = ["FaissGpuIndex", "TorchIndex", "on_device"]

#: Scores of one tile that are held at once.
TILE_SCORES = 1 << 26
#: Fraction of a GPU's free memory that vectors may fill; beyond, tiles are copied to it one after another.
MEMORY_FRACTION = 0.7
#: Most neighbours that FAISS finds on a GPU.
FAISS_GPU_K = 2048


def on_device(index: VectorIndex, device: str) -> VectorIndex:
    """Return an index for ``cpu`` or ``cuda``: the same one, or one that finds the same neighbours on a GPU.

    A GPU needs no approximation: there an approximate index searches exactly.
    """
    if device != "cuda":
        return index
    if isinstance(index, SegmentedIndex):
        return index.with_segments([on_gpu(segment) for segment in index.segments])
    return on_gpu(index) if isinstance(index, Index) else index


def on_gpu(index: Index) -> Index:
    """Return an index that finds the same neighbours on a GPU, or the same index where there is none."""
    if isinstance(index, IvfIndex):
        index = index.exact()
    if not isinstance(index, FaissFlatIndex) or index.n == 0:
        return index
    return FaissGpuIndex(index) if _faiss_has_gpu() else TorchIndex(index, "cuda")


def _faiss_has_gpu() -> bool:
    faiss = _faiss()
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


class FaissGpuIndex(FaissFlatIndex):
    """A flat index whose candidates a GPU build of FAISS finds; what is near is decided as on the CPU."""

    takes_turns = True  # a GPU does one thing at a time, and that of FAISS is not made for threads

    def __init__(self, index: FaissFlatIndex) -> None:
        super().__init__(index.dim)
        self._index, self._view, self._max_norm = index._index, index._view, None
        held = index._index
        if self._view is not None:
            held = _faiss().IndexFlatL2(index.dim)
            held.add(self._view)
        self._gpu: Any = _faiss().index_cpu_to_all_gpus(held)

    def _propose(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[Float64, Int64]:
        if rows is not None or k > FAISS_GPU_K:
            return super()._propose(queries, k, rows)
        scores, found = self._gpu.search(queries, k)
        return scores.astype(np.float64), found


class TorchIndex(FaissFlatIndex):
    """A flat index whose candidates torch finds: fp16 storage, fp32 scores, tile by tile.

    Vectors are kept as fp16 of what they differ from their mean. What that rounds off is measured for every
    row, so it is known how near a row that was not proposed can be: distances of candidates are
    recomputed in float64 from the float32 vectors, and queries for which the rounding could matter ask for
    more. The neighbours are those of :class:`FaissFlatIndex`, bit for bit.

    Parameters
    ----------
    index
        Holds the float32 vectors; must not grow afterwards.
    device
        ``cuda``; ``cpu`` does the same, slower than FAISS.
    tile_rows
        Rows looked at at once; by default what fits.
    """

    takes_turns = True  # a GPU does one thing at a time, and that of FAISS is not made for threads

    def __init__(self, index: FaissFlatIndex, device: str = "cpu", *, tile_rows: int | None = None) -> None:
        import torch

        super().__init__(index.dim)
        self._index, self._view, self._max_norm = index._index, index._view, None
        self._device, self._tile_rows = device, tile_rows or max(4096, TILE_SCORES // 4096)
        base = self.vectors()
        self._mean: Float64 = base.mean(axis=0, dtype=np.float64)
        largest = max((float(np.abs(block - self._mean).max()) for block in self._blocks(base)), default=0.0)
        # A power of two changes no digit, and the largest number is then below 2 whatever the vectors' scale.
        exponent = np.frexp(largest)[1] - 1 if np.isfinite(largest) and largest > 0 else 0
        self._scale = float(np.ldexp(1.0, -int(exponent)))
        self._error = self._norm = 0.0
        self._tiles: list[torch.Tensor] = []
        resident = self._fits(base.size * 2)
        for block in self._blocks(base):
            centred = (block - self._mean) * self._scale
            half = centred.astype(np.float16)
            rounded = half.astype(np.float64) - centred
            self._error = max(self._error, float(np.sqrt((rounded**2).sum(axis=1).max())))
            self._norm = max(self._norm, float(np.sqrt((half.astype(np.float64) ** 2).sum(axis=1).max())))
            tile = torch.from_numpy(half)
            if device != "cpu":
                tile = tile.to(device) if resident else tile.pin_memory()
            self._tiles.append(tile)

    def _blocks(self, base: Float32) -> Any:
        return (base[start : start + self._tile_rows] for start in range(0, len(base), self._tile_rows))

    def _fits(self, n_bytes: int) -> bool:
        if self._device == "cpu":
            return True
        import torch

        return n_bytes < MEMORY_FRACTION * torch.cuda.mem_get_info()[0]

    def _centred(self, queries: Float32) -> Float64:
        return np.asarray((queries - self._mean) * self._scale, dtype=np.float64)

    def _propose(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[Float64, Int64]:
        import torch

        asked = torch.from_numpy(self._centred(queries).astype(np.float32)).to(self._device)
        step = len(queries)
        while True:
            try:
                parts = [self._nearest(asked[i : i + step], k, rows) for i in range(0, len(asked), step)]
                break
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                if step == 1:
                    fix = "free memory on it, or leave out --device cuda"
                    raise ResourceError("out of memory while searching on the GPU", "", fix) from error
            step = max(1, step // 2)
            torch.cuda.empty_cache()
        scores = np.concatenate([s for s, _ in parts]).astype(np.float64)
        return scores / self._scale**2, np.concatenate([r for _, r in parts])

    def _nearest(self, asked: torch.Tensor, k: int, rows: Int64 | None) -> tuple[Float32, Int64]:
        """Return scaled scores and rows, (n, k) each, ascending by score."""
        import torch

        squares = (asked * asked).sum(dim=1, keepdim=True)
        best = torch.empty(len(asked), 0, device=asked.device)
        numbers = torch.empty(len(asked), 0, dtype=torch.int64, device=asked.device)
        start = 0
        for tile in self._tiles:
            stop = start + len(tile)
            here = torch.arange(start, stop)
            if rows is not None:
                here = torch.from_numpy(rows[(rows >= start) & (rows < stop)])
                tile = tile[(here - start).to(tile.device)]
            start = stop
            if len(tile) == 0:
                continue
            # Scores in fp32 of what is stored in fp16: a product of fp16 would be rounded to fp16 itself.
            full = tile.to(asked.device, non_blocking=True).float()
            scores = squares + (full * full).sum(dim=1) - 2.0 * (asked @ full.T)
            found = scores.topk(min(k, len(full)), dim=1, largest=False)
            best = torch.cat([best, found.values], dim=1)
            numbers = torch.cat([numbers, here.to(asked.device)[found.indices]], dim=1)
            kept = best.topk(min(k, best.shape[1]), dim=1, largest=False)
            best, numbers = kept.values, numbers.gather(1, kept.indices)
        return best.cpu().numpy(), numbers.cpu().numpy()

    def _least(self, scores: Float64, queries: Float32) -> Float64:
        """Return the least distance (n,) that rows with no better score than these may have.

        With ``y'`` what is kept of a row ``y``, ``|x - y| >= |x - y'| - |y - y'|``, and the score is
        ``|x - y'|^2`` to the rounding of float32.
        """
        unit = float(np.finfo(np.float32).eps) / 2
        norms = np.sqrt(row_distances(self._centred(queries), np.zeros(1)))
        rounding = (self.dim + 8) * unit * (norms + self._norm) ** 2
        shortest = np.sqrt(np.maximum(scores * self._scale**2 - rounding, 0.0))
        least = np.maximum(shortest - self._error - unit * norms, 0.0) ** 2 / self._scale**2
        # Squares of float32 that over- or underflow say nothing.
        trusted = np.isfinite(scores) & ((norms + self._norm) ** 2 < 1e37)
        return np.asarray(np.where(trusted, least, -np.inf), dtype=np.float64)

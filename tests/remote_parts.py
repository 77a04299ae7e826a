"""What the tests of remote backbones share: texts, their vectors, and a backbone of a fake server."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_openai import fake_vector
from fake_server import FakeServer

from scvec.backbones.remote import RemoteBackbone
from scvec.ingest.sources.retry import Caller
from scvec.secrets import Secret
from scvec.settings import Price, ServiceSettings, Settings

MODEL = "text-embedding-3-small"
KEY = "sk-canary-of-the-embedding-tests"
#: Requests of the probe: three texts alone, one batch.
N_PROBES = 4


def texts(n: int) -> list[str]:
    return [
        f"G{i} (gene number {i}) takes part in process {i % 7}. " + "It is known. " * (i % 5)
        for i in range(n)
    ]


def rows_of(given: list[str]) -> list[dict[str, Any]]:
    return [{"index": i, "embedding": [float(x) for x in fake_vector(t)]} for i, t in enumerate(given)]


def oracle(given: list[str], dim: int = 32, model: str = MODEL) -> np.ndarray:
    return np.array([fake_vector(t, dim, model=model) for t in given], np.float32).reshape(-1, dim)


def make(server: FakeServer, model: str = MODEL, **options: Any) -> RemoteBackbone:
    price = options.pop("price", None)
    timeout = options.pop("timeout", 60.0)
    settings = Settings(
        openai=ServiceSettings(api_key=Secret(KEY), base_url=f"{server.url}/v1", timeout=timeout),
        prices={} if price is None else {model: Price(price)},
    )
    options.setdefault("caller", lambda host: Caller(host, pace=0.002, seed=0))
    return RemoteBackbone(model, "default", settings=settings, **options)


class Kept:
    """What was given to ``keep``; no text twice."""

    def __init__(self, n: int, dim: int = 32) -> None:
        self.vectors = np.full((n, dim), np.nan, np.float32)
        self.sizes: list[int] = []

    def __call__(self, rows: list[int], vectors: np.ndarray) -> None:
        assert vectors.dtype == np.float32 and np.isnan(self.vectors[rows]).all()
        self.vectors[rows] = vectors
        self.sizes.append(len(rows))

    @property
    def rows(self) -> list[int]:
        return np.flatnonzero(~np.isnan(self.vectors).any(axis=1)).tolist()


def same(got: np.ndarray, given: list[str]) -> None:
    np.testing.assert_allclose(got, oracle(given), atol=1e-6)

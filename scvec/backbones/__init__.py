"""What ``--backbone`` means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.base.types import Backbone

if TYPE_CHECKING:
    from scvec.base.settings import Settings

__all__ = ["BackboneSpec", "load_backbone", "parse_spec"]

#: Options a kind of backbone takes: name -> what stands for the value in the grammar.
OPTIONS: dict[str, dict[str, str]] = {
    "minilm": {},
    "st": {},
    "hf": {"pooling": "mean|last|eol", "max_tokens": "N"},
    "openai": {"dimensions": "N", "max_tokens": "N"},
    "random": {},
    "stored": {},
    "use-lite": {},
}
#: What follows the colon, per kind; nothing may where it is empty.
ARGUMENTS = {
    "minilm": "",
    "st": "FOLDER_OR_ID",
    "hf": "FOLDER_OR_ID",
    "openai": "MODEL",
    "random": "DIM",
    "stored": "NAME",
    "use-lite": "",
}
#: Largest number that an option may have.
LARGEST = {"dimensions": 65536, "max_tokens": 1_000_000}


def _grammar(kind: str, *, full: bool = True) -> str:
    options = "".join(f"[,{key}={value}]" for key, value in OPTIONS[kind].items()) if full else ""
    return f"{kind}:{ARGUMENTS[kind]}{options}" if ARGUMENTS[kind] else kind


KINDS = ", ".join([*(_grammar(kind, full=False) for kind in OPTIONS), "permuted:SPEC", "name:SPEC"])


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """A parsed SPEC.

    Attributes
    ----------
    base
        ``minilm``, ``st``, ``hf``, ``openai``, ``random``, ``stored`` or ``use-lite``.
    argument
        Folder, hub id, model, dimension or name of a space of the store.
    permuted
        Each gene gets the vector of another: a control.
    template
        Text that is encoded; ``name:`` overrides the user's by ``name``.
    options
        ``(name, value)`` pairs as given, sorted.
    base_url
        Address of the server, for ``openai``; None for the one in the settings.
    """

    base: str
    argument: str
    permuted: bool
    template: str
    options: tuple[tuple[str, str], ...] = ()
    base_url: str | None = None

    @property
    def needs_text(self) -> bool:
        """Whether texts matter to the vectors."""
        return self.base not in ("random", "stored")

    @property
    def is_stored(self) -> bool:
        """Whether the vectors lie in the store already, and no text is encoded."""
        return self.base == "stored"

    @property
    def is_remote(self) -> bool:
        """Whether a server encodes, which may cost money."""
        return self.base == "openai"

    def option(self, name: str) -> str | None:
        """Return the value of an option, None if it is not given."""
        return dict(self.options).get(name)

    def number(self, name: str) -> int | None:
        """Return the value of an option that is a number, None if it is not given."""
        value = self.option(name)
        return None if value is None else int(value)


def parse_spec(spec: str, template: str = "default", base_url: str | None = None) -> BackboneSpec:
    """Parse a SPEC such as ``minilm``, ``st:/models/mpnet``, ``hf:gpt2,pooling=mean``, ``name:minilm``.

    Raises
    ------
    InputError
        If it is none of them, or has an option that its kind does not take.
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
    if head not in OPTIONS or bool(colon) != bool(ARGUMENTS[head]):
        raise InputError(
            f"there is no backbone {spec!r}", "--backbone", f"backbones: {KINDS}", code="unknown-choice"
        )
    argument, options = _split(spec, head, tail)
    if bool(argument) != bool(ARGUMENTS[head]) or (
        head == "random" and not (argument.isascii() and argument.isdigit())
    ):
        raise InputError(
            f"there is no backbone {spec!r}", "--backbone", f"backbones: {KINDS}", code="unknown-choice"
        )
    if base_url is not None and head != "openai":
        raise InputError(
            f"the backbone {spec!r} asks no server", "--base-url", "leave it out, or give openai:MODEL"
        )
    return BackboneSpec(head, argument, permuted, template, options, base_url)


def _split(spec: str, kind: str, tail: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return argument and options; folders may have commas in their names, options look like ``,word=``."""
    taken = OPTIONS[kind]
    if not taken:
        return tail, ()
    argument, *parts = re.split(r",(?=\w+=)" if ARGUMENTS[kind].startswith("FOLDER") else ",", tail)
    fix = f"write it as {_grammar(kind)}"
    options: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in taken:
            raise InputError(f"{kind}: takes no option {name!r}", f"--backbone {spec}", fix)
        if name in options:
            raise InputError(f"{name} is given twice", f"--backbone {spec}", fix)
        if taken[name] == "N":
            number = int(value) if re.fullmatch("[0-9]{1,9}", value) else 0
            if not 1 <= number <= LARGEST[name]:
                what = f"{name} must be a number from 1 to {LARGEST[name]:,}"
                raise InputError(what, f"--backbone {spec}", fix, code="option-out-of-range")
            value = str(number)
        elif value not in taken[name].split("|"):
            raise InputError(f"there is no {name} {value!r}", f"--backbone {spec}", fix)
        options[name] = value
    return argument.strip(), tuple(sorted(options.items()))


def load_backbone(
    spec: BackboneSpec,
    *,
    device: str = "auto",
    settings: Settings | None = None,
    max_cost: float | None = None,
) -> Backbone:
    """Return the backbone; weights are loaded, and servers asked, when the first text is encoded.

    The default model is looked for only then as well: shipped vectors need no model.

    Parameters
    ----------
    settings
        Keys, addresses and prices for ``openai``; by default from the environment and the config file.
    max_cost
        US dollars that ``openai`` may cost; None for no limit.

    Raises
    ------
    InputError
        If the model is not there, or the address cannot be used.
    AuthError
        If a key is needed and there is none.
    """
    return _LOADERS[spec.base](spec, device=device, settings=settings, max_cost=max_cost)


def _random(spec: BackboneSpec, **_: Any) -> Backbone:
    from scvec.backbones.controls import RandomBackbone

    return RandomBackbone(int(spec.argument), spec.template)


def _minilm(spec: BackboneSpec, *, device: str, **_: Any) -> Backbone:
    from scvec.backbones.minilm import MinilmBackbone

    return MinilmBackbone(spec.template, device=device)


def _use_lite(spec: BackboneSpec, **_: Any) -> Backbone:
    from scvec.backbones.use_lite import UseLiteBackbone

    return UseLiteBackbone(spec.template)


def _sentence(spec: BackboneSpec, *, device: str, **_: Any) -> Backbone:
    from scvec.backbones.sentence_transformer import SentenceBackbone

    folder, name = _folder(spec, "sentence-transformers")
    return SentenceBackbone(folder, name, spec.template, device=device)


def _hf(spec: BackboneSpec, *, device: str, **_: Any) -> Backbone:
    from scvec.backbones.hf import HfBackbone

    folder, name = _folder(spec, "transformers")
    return HfBackbone(
        folder,
        name,
        spec.template,
        pooling=spec.option("pooling"),  # type: ignore[arg-type]  # parse_spec knows no other
        max_tokens=spec.number("max_tokens"),
        device=device,
    )


def _openai(spec: BackboneSpec, *, settings: Settings | None, max_cost: float | None, **_: Any) -> Backbone:
    from scvec.backbones.remote import RemoteBackbone
    from scvec.base.settings import Settings

    return RemoteBackbone(
        spec.argument,
        spec.template,
        settings=Settings.load() if settings is None else settings,
        base_url=spec.base_url,
        dimensions=spec.number("dimensions"),
        max_tokens=spec.number("max_tokens"),
        max_cost=max_cost,
    )


def _stored(spec: BackboneSpec, **_: Any) -> Backbone:
    raise InputError(
        "the vectors of a stored space are as they are: no text can be encoded into it",
        f"--backbone stored:{spec.argument}",
        "give it to scvec ingest cells, or name a backbone that encodes",
    )


_LOADERS: dict[str, Callable[..., Backbone]] = {
    "minilm": _minilm,
    "st": _sentence,
    "hf": _hf,
    "openai": _openai,
    "random": _random,
    "stored": _stored,
    "use-lite": _use_lite,
}


def _folder(spec: BackboneSpec, library: str) -> tuple[Path, str]:
    """Return the model's folder, fetched if need be, and its name in the space.

    That name is the folder's own: where a model lies on one machine makes no other vectors.
    """
    given = Path(spec.argument).expanduser()
    name = f"{spec.base}:{Path(os.path.abspath(given)).name}"
    return (given if given.is_dir() else _fetch(spec.argument, spec.base, library)), name


def _fetch(hub_id: str, base: str, library: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not to be had
        raise InputError(
            f"{hub_id!r} is no folder, and the model hub did not give it ({type(error).__name__})",
            "--backbone",
            f"give the folder of a {library} model: --backbone {base}:FOLDER",
            code="model-not-found",
        ) from error

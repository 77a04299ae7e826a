"""Registry of backbones. A new backbone is one file with a registration, and one line in :data:`MODULES`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from scvec.base.errors import InputError

if TYPE_CHECKING:
    from scvec.base.settings import Settings
    from scvec.base.types import Backbone

__all__ = ["BackboneSpec", "LoadOptions", "backbone", "backbone_forms", "load_backbone", "parse_spec"]

#: Form of a backbone -> module that registers it, imported on first use. The argument after the colon is a
#: number (``DIM``), a folder or id (which may contain commas), or any text.
MODULES = {
    "minilm": "scvec.backbones.minilm",
    "st:FOLDER_OR_ID": "scvec.backbones.sentence_transformer",
    "hf:FOLDER_OR_ID": "scvec.backbones.hf",
    "openai:MODEL": "scvec.backbones.remote",
    "random:DIM": "scvec.backbones.controls",
    "stored:NAME": "scvec.backbones.controls",
    "use-lite": "scvec.backbones.use_lite",
}
_registered: dict[str, BackboneKind] = {}
C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Options for loading a backbone.

    Attributes
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.
    settings
        Keys, addresses and prices for a server; None reads the environment and the config file.
    max_cost
        Cost limit of a server in US dollars; None for no limit.
    """

    device: str = "auto"
    settings: Settings | None = None
    max_cost: float | None = None


@dataclass(frozen=True, slots=True)
class BackboneKind:
    """A registered kind of backbone.

    Attributes
    ----------
    form
        ``NAME`` or ``NAME:ARGUMENT``.
    made_by
        The class: a :class:`scvec.base.types.Backbone` with a class method ``load(spec, options)``. Its
        arguments are a :class:`BackboneSpec` and :class:`LoadOptions`.
    options
        Option -> its largest number, or its values as ``one|other``.
    reads_text
        True if the vector depends on the text.
    asks_server
        True if a server encodes the texts, which may cost money.
    is_stored
        True if the vectors are already in the store and no text is encoded.
    """

    form: str
    made_by: Any
    options: Mapping[str, int | str] = field(default_factory=dict)
    reads_text: bool = True
    asks_server: bool = False
    is_stored: bool = False

    @property
    def argument(self) -> str:
        """Placeholder of the argument, such as ``DIM``; empty if there is no argument."""
        return self.form.partition(":")[2]

    @property
    def grammar(self) -> str:
        """The form with all its options, for messages."""
        values = {name: "N" if isinstance(v, int) else v for name, v in self.options.items()}
        return self.form + "".join(f"[,{name}={value}]" for name, value in values.items())


def backbone(
    form: str,
    *,
    options: Mapping[str, int | str] | None = None,
    reads_text: bool = True,
    asks_server: bool = False,
    is_stored: bool = False,
) -> Callable[[C], C]:
    """Return a decorator that registers a class as a backbone (see :class:`BackboneKind`)."""

    def register(made_by: C) -> C:
        _registered[form] = BackboneKind(form, made_by, options or {}, reads_text, asks_server, is_stored)
        return made_by

    return register


def backbone_forms() -> list[str]:
    """Return the forms of all backbones without importing them."""
    return [*dict.fromkeys([*MODULES, *_registered]), "permuted:SPEC", "name:SPEC"]


def _kind(name: str) -> BackboneKind | None:
    """Return the kind of backbone with a name; None if there is none."""
    for form in dict.fromkeys([*MODULES, *_registered]):
        if form.partition(":")[0] == name:
            if form not in _registered:
                import_module(MODULES[form])
            return _registered[form]
    return None


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """A parsed SPEC.

    Attributes
    ----------
    base
        Name of the backbone: ``minilm``, ``st``, ``random``, ...
    argument
        Folder, hub id, model, dimension or name of a space of the store.
    permuted
        True if each gene gets the vector of another gene, as a control.
    template
        Name of the text template; the prefix ``name:`` sets it to ``name``.
    options
        Given ``(name, value)`` pairs, sorted.
    base_url
        Address of the server; None uses the address in the settings.
    """

    base: str
    argument: str
    permuted: bool
    template: str
    options: tuple[tuple[str, str], ...] = ()
    base_url: str | None = None

    @property
    def kind(self) -> BackboneKind:
        """The registered kind of this backbone."""
        kind = _kind(self.base)
        if kind is None:
            raise _unknown(self.base)
        return kind

    @property
    def needs_text(self) -> bool:
        """True if the vectors depend on the texts."""
        return self.kind.reads_text

    @property
    def is_stored(self) -> bool:
        """True if the vectors are already in the store and no text is encoded."""
        return self.kind.is_stored

    @property
    def is_remote(self) -> bool:
        """True if a server encodes the texts, which may cost money."""
        return self.kind.asks_server

    def option(self, name: str) -> str | None:
        """Return the value of an option; None if it is not given."""
        return dict(self.options).get(name)

    def number(self, name: str) -> int | None:
        """Return the value of a numeric option; None if it is not given."""
        value = self.option(name)
        return None if value is None else int(value)


def parse_spec(spec: str, template: str = "default", base_url: str | None = None) -> BackboneSpec:
    """Parse a SPEC such as ``minilm``, ``st:/models/mpnet``, ``hf:gpt2,pooling=mean``, ``name:minilm``.

    Parameters
    ----------
    spec
        The SPEC.
    template
        Name of the text template, unless the SPEC begins with ``name:``.
    base_url
        Address of the server, or None.

    Raises
    ------
    InputError
        The backbone is unknown, or does not have a given option.
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
    kind = _kind(head)
    if kind is None or bool(colon) != bool(kind.argument):
        raise _unknown(spec)
    argument, options = _split(spec, kind, tail)
    is_number = argument.isascii() and argument.isdigit()
    if bool(argument) != bool(kind.argument) or (kind.argument == "DIM" and not is_number):
        raise _unknown(spec)
    if base_url is not None and not kind.asks_server:
        raise InputError(
            f"the backbone {spec!r} does not use a server",
            "--base-url",
            "leave out --base-url, or give openai:MODEL",
        )
    return BackboneSpec(head, argument, permuted, template, options, base_url)


def _unknown(spec: str) -> InputError:
    return InputError(
        f"there is no backbone {spec!r}",
        "--backbone",
        f"backbones: {', '.join(backbone_forms())}",
        code="unknown-choice",
    )


def _split(spec: str, kind: BackboneKind, tail: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return argument and options. Names of folders may contain commas; options look like ``,word=``."""
    if not kind.options:
        return tail, ()
    argument, *parts = re.split(r",(?=\w+=)" if kind.argument.startswith("FOLDER") else ",", tail)
    fix = f"write it as {kind.grammar}"
    options: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        allowed = kind.options.get(name)
        if allowed is None:
            what = f"{kind.form.partition(':')[0]}: has no option {name!r}"
            raise InputError(what, f"--backbone {spec}", fix)
        if name in options:
            raise InputError(f"{name} is given twice", f"--backbone {spec}", fix)
        if isinstance(allowed, int):
            number = int(value) if re.fullmatch("[0-9]{1,9}", value) else 0
            if not 1 <= number <= allowed:
                what = f"{name} must be a number from 1 to {allowed:,}"
                raise InputError(what, f"--backbone {spec}", fix, code="option-out-of-range")
            value = str(number)
        elif value not in allowed.split("|"):
            what = f"there is no {name} {value!r}"
            raise InputError(what, f"--backbone {spec}", fix, code="unknown-choice")
        options[name] = value
    return argument.strip(), tuple(sorted(options.items()))


def load_backbone(
    spec: BackboneSpec,
    *,
    device: str = "auto",
    settings: Settings | None = None,
    max_cost: float | None = None,
) -> Backbone:
    """Return a backbone. Encoding the first text loads its weights or connects to its server.

    The default model is also searched only then, because shipped vectors need no model.

    Parameters
    ----------
    spec
        The parsed SPEC.
    device, settings, max_cost
        See :class:`LoadOptions`.

    Raises
    ------
    InputError
        The model does not exist, or the address is not valid.
    AuthError
        The server needs a key, and none is set.
    """
    loaded: Backbone = spec.kind.made_by.load(spec, LoadOptions(device, settings, max_cost))
    return loaded

"""Backbones by name. A new one is a file with one registration, and a line in :data:`MODULES`."""

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

#: How a backbone is written -> the module that registers it, imported when the backbone is asked for. What
#: follows the colon is a number (``DIM``), a folder or id, in which commas do not begin options, or any text.
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
    """How a backbone is loaded.

    Attributes
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.
    settings
        Keys, addresses and prices for a server; by default from the environment and the config file.
    max_cost
        US dollars that a server may cost; None for no limit.
    """

    device: str = "auto"
    settings: Settings | None = None
    max_cost: float | None = None


@dataclass(frozen=True, slots=True)
class BackboneKind:
    """A registered backbone: what is known of it before one is loaded.

    Attributes
    ----------
    form
        How it is written: ``NAME`` or ``NAME:ARGUMENT``.
    made_by
        The class, a :class:`scvec.base.types.Backbone` with ``load(spec, options)``, which get a
        :class:`BackboneSpec` and :class:`LoadOptions`.
    options
        Option -> its largest number, or its values as ``one|other``.
    reads_text
        Whether the text matters to a vector.
    asks_server
        Whether a server encodes, which may cost money.
    is_stored
        Whether the vectors are in the store already, and no text is encoded.
    """

    form: str
    made_by: Any
    options: Mapping[str, int | str] = field(default_factory=dict)
    reads_text: bool = True
    asks_server: bool = False
    is_stored: bool = False

    @property
    def argument(self) -> str:
        """What stands for the argument; empty where there is none."""
        return self.form.partition(":")[2]

    @property
    def grammar(self) -> str:
        """The form with all options."""
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
    """Return a decorator that registers a class (:class:`BackboneKind` says what it needs)."""

    def register(made_by: C) -> C:
        _registered[form] = BackboneKind(form, made_by, options or {}, reads_text, asks_server, is_stored)
        return made_by

    return register


def backbone_forms() -> list[str]:
    """Return how all backbones are written; imports none."""
    return [*dict.fromkeys([*MODULES, *_registered]), "permuted:SPEC", "name:SPEC"]


def _kind(name: str) -> BackboneKind | None:
    """Return the backbone of a name; None if there is none."""
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
        Each gene gets the vector of another: a control.
    template
        Text that is encoded; ``name:`` overrides the user's by ``name``.
    options
        ``(name, value)`` pairs as given, sorted.
    base_url
        Address of the server, where one is asked; None for the one in the settings.
    """

    base: str
    argument: str
    permuted: bool
    template: str
    options: tuple[tuple[str, str], ...] = ()
    base_url: str | None = None

    @property
    def kind(self) -> BackboneKind:
        """The backbone as it is registered."""
        kind = _kind(self.base)
        if kind is None:
            raise _unknown(self.base)
        return kind

    @property
    def needs_text(self) -> bool:
        """Whether texts matter to the vectors."""
        return self.kind.reads_text

    @property
    def is_stored(self) -> bool:
        """Whether the vectors are in the store already, and no text is encoded."""
        return self.kind.is_stored

    @property
    def is_remote(self) -> bool:
        """Whether a server encodes, which may cost money."""
        return self.kind.asks_server

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
        If it is none of them, or has an option that its backbone does not take.
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
            f"the backbone {spec!r} asks no server", "--base-url", "leave it out, or give openai:MODEL"
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
    """Return argument and options; folders may have commas in their names, options look like ``,word=``."""
    if not kind.options:
        return tail, ()
    argument, *parts = re.split(r",(?=\w+=)" if kind.argument.startswith("FOLDER") else ",", tail)
    fix = f"write it as {kind.grammar}"
    options: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        taken = kind.options.get(name)
        if taken is None:
            what = f"{kind.form.partition(':')[0]}: takes no option {name!r}"
            raise InputError(what, f"--backbone {spec}", fix)
        if name in options:
            raise InputError(f"{name} is given twice", f"--backbone {spec}", fix)
        if isinstance(taken, int):
            number = int(value) if re.fullmatch("[0-9]{1,9}", value) else 0
            if not 1 <= number <= taken:
                what = f"{name} must be a number from 1 to {taken:,}"
                raise InputError(what, f"--backbone {spec}", fix, code="option-out-of-range")
            value = str(number)
        elif value not in taken.split("|"):
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

    The default model is looked for only then as well: shipped vectors need no model. The keywords are those
    of :class:`LoadOptions`.

    Raises
    ------
    InputError
        If the model is not there, or the address cannot be used.
    AuthError
        If a key is needed and there is none.
    """
    loaded: Backbone = spec.kind.made_by.load(spec, LoadOptions(device, settings, max_cost))
    return loaded

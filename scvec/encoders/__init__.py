"""Encoders by name. A new one is a file with one registration, and a line in :data:`MODULES`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

from scvec.base.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from scvec.base.types import Backbone, CellChunk, CellEncoder, Float32, LanguageModel, RefittedEncoder

__all__ = [
    "EncoderKind",
    "Material",
    "Models",
    "encoder",
    "encoder_kind",
    "encoder_names",
    "load_encoder",
    "make_encoder",
    "refits",
]

#: Name -> the module that registers it, imported when the encoder is asked for.
MODULES = {
    "discriminant": "scvec.encoders.discriminant",
    "adapted": "scvec.encoders.adapted",
    "weighted": "scvec.encoders.weighted",
    "prompt": "scvec.encoders.prompt",
    "sentence": "scvec.encoders.sentence",
    "obsm": "scvec.encoders.obsm",
    "pca": "scvec.encoders.pca",
    "residual": "scvec.encoders.adapted",
}
_registered: dict[str, EncoderKind] = {}
C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Models:
    """The models that an encoder may read with. Each is loaded when the encoder asks for it.

    Attributes
    ----------
    backbone
        Returns the text model.
    language_model
        Returns the language model of a name, in ``fp32``, ``bf16`` or (None) what suits the device.
    device
        ``cpu`` or ``cuda``.
    """

    backbone: Callable[[], Backbone]
    language_model: Callable[[str, str | None], LanguageModel]
    device: str


@dataclass(frozen=True)
class Material:
    """What an untrained encoder is made from.

    Attributes
    ----------
    cells, labels
        The cells that it will be trained on, and their (n,) int64 class numbers, -1 for none.
    gene_vectors
        (n_genes, text_dim) float32, for an encoder that uses the texts of genes.
    variability
        (n_genes,) how variable each gene is over all cells; measured on ``cells`` when None.
    symbols
        Of the genes, in order.
    prepared
        What the ``prepare`` of the encoder returned.
    number, is_fold
        Number of the training, from 1, and whether it leaves out cells to calibrate on them.
    folder
        Where a long training may keep its progress.
    """

    cells: CellChunk
    labels: npt.NDArray[np.int64]
    gene_vectors: Float32 | None = None
    variability: npt.NDArray[np.floating] | None = None
    symbols: Sequence[str] = ()
    prepared: Any = None
    number: int = 1
    is_fold: bool = False
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """A registered encoder: what is known of it before one is made.

    Attributes
    ----------
    made_by
        The class, a :class:`scvec.base.types.CellEncoder` with ``new(material)`` and
        ``from_state(tensors, meta)``. One that reads with a model has ``prepare(models, *, OPTION, ...)``,
        called once before an ingest reads cells, and ``load(tensors, meta, models)`` in place of
        ``from_state``.
    texts
        What the backbone encodes for it: texts of ``genes``, texts of ``cells``, or none.
    uses_gpu
        It encodes with torch: on a GPU where there is one, and one chunk at a time.
    refits
        It is fitted again to the genes that a query measured (:class:`scvec.base.types.RefittedEncoder`).
    argument
        What follows its name and a colon, as ``KEY`` in ``obsm:KEY``; empty where nothing does.
    """

    name: str
    made_by: Any
    texts: Literal["", "genes", "cells"] = ""
    uses_gpu: bool = False
    refits: bool = False
    argument: str = ""

    @property
    def reads_models(self) -> bool:
        """Whether a model is needed to load it again."""
        return hasattr(self.made_by, "load")

    @property
    def options(self) -> frozenset[str]:
        """The options that ``prepare`` takes."""
        if not hasattr(self.made_by, "prepare"):
            return frozenset()
        taken = inspect.signature(self.made_by.prepare).parameters.values()
        return frozenset(p.name for p in taken if p.kind is p.KEYWORD_ONLY)

    def prepare(self, models: Models, options: Mapping[str, Any]) -> Any:
        """Return what the encoder needs besides cells, its models loaded; None where it needs nothing.

        Parameters
        ----------
        options
            Option -> value, None where it was not given.

        Raises
        ------
        InputError
            If an option is given that the encoder does not have or cannot use, or a model is not there.
        """
        taken = self.options
        for name, value in options.items():
            if value is not None and name not in taken:
                option = "--" + name.replace("_", "-")
                others = " or ".join(n for n in encoder_names() if name in encoder_kind(n).options)
                raise InputError(
                    f"the encoder {self.name!r} has no option {option}",
                    option,
                    f"leave it out, or give --encoder {others}",
                )
        if not hasattr(self.made_by, "prepare"):
            return None
        return self.made_by.prepare(models, **{name: options.get(name) for name in taken})


def encoder(
    name: str,
    *,
    texts: Literal["", "genes", "cells"] = "",
    uses_gpu: bool = False,
    refits: bool = False,
    argument: str = "",
) -> Callable[[C], C]:
    """Return a decorator that registers a class under a name (:class:`EncoderKind` says what it needs)."""

    def register(made_by: C) -> C:
        made_by.name, made_by.takes_turns = name, uses_gpu  # type: ignore[attr-defined]  # CellEncoder has both
        _registered[name] = EncoderKind(name, made_by, texts, uses_gpu, refits, argument)
        return made_by

    return register


def encoder_names() -> list[str]:
    """Return the names of all encoders; imports none."""
    return list(dict.fromkeys([*MODULES, *_registered]))


def encoder_kind(name: str) -> EncoderKind:
    """Return the encoder registered under a name, or under what precedes the first colon (``obsm:KEY``).

    Raises
    ------
    InputError
        If there is none.
    """
    name, colon, argument = name.partition(":")
    if name not in encoder_names():
        close = difflib.get_close_matches(name, encoder_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        fix = f"{hint}encoders: {', '.join(encoder_names())}"
        raise InputError(f"there is no encoder {name!r}", "--encoder", fix)
    if name not in _registered:
        import_module(MODULES[name])
    kind = _registered[name]
    if bool(colon) != bool(argument) or (argument and not kind.argument):
        form = f"{name}:{kind.argument}" if kind.argument else name
        raise InputError(
            f"the encoder is written {form}", f"--encoder {name}{colon}{argument}", f"give {form}"
        )
    return kind


def refits(encoder: CellEncoder) -> TypeGuard[RefittedEncoder]:
    """Return whether an encoder is of a kind that is fitted again to the genes of a query."""
    return encoder_kind(encoder.name).refits


def make_encoder(name: str, material: Material) -> CellEncoder:
    """Return an untrained encoder."""
    kind = encoder_kind(name)
    if kind.texts == "genes" and material.gene_vectors is None:
        raise ValueError(f"the encoder {name!r} needs gene vectors")
    made: CellEncoder = kind.made_by.new(material)
    return made


def load_encoder(
    name: str, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any], models: Models | None = None
) -> CellEncoder:
    """Return a trained encoder, rebuilt from its state."""
    made_by = encoder_kind(name).made_by
    if not hasattr(made_by, "load"):
        loaded: CellEncoder = made_by.from_state(tensors, meta)
    elif models is None:
        raise ValueError(f"the encoder {name!r} needs its models")
    else:
        loaded = made_by.load(tensors, meta, models)
    return loaded

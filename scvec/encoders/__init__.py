"""Registry of encoders. A new encoder is one file with one registration and a line in :data:`MODULES`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

from scvec.base.errors import InputError, check_choice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from scvec.base.types import Backbone, CellChunk, CellEncoder, Float32, LanguageModel, RefittedEncoder

__all__ = [
    "DEFAULT_ENCODER",
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

#: The encoder of ``ingest cells``, unless another one is asked for.
DEFAULT_ENCODER = "discriminant"
#: Name -> the module that registers it. The module is imported when its encoder is used.
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
    """The models that an encoder may use. Each model is loaded on first use.

    Attributes
    ----------
    backbone
        Returns the text model.
    language_model
        Returns the language model with a given name. The second argument is the precision: ``fp32``,
        ``bf16``, or None for the default of the device.
    device
        ``cpu`` or ``cuda``.
    """

    backbone: Callable[[], Backbone]
    language_model: Callable[[str, str | None], LanguageModel]
    device: str


@dataclass(frozen=True)
class Material:
    """Input for a new, untrained encoder.

    Attributes
    ----------
    cells, labels
        Training cells and their (n,) int64 class numbers; -1 marks an unlabelled cell.
    gene_vectors
        (n_genes, text_dim) float32 text vectors of the genes. None if the encoder does not use texts.
    variability
        (n_genes,) variability score of each gene over all cells. None: computed from ``cells``.
    symbols
        Gene symbols, in the order of the columns.
    prepared
        The result of the encoder's ``prepare``.
    is_fold
        Whether this training run is a fold of the cross-validation that calibrates confidence.
    """

    cells: CellChunk
    labels: npt.NDArray[np.int64]
    gene_vectors: Float32 | None = None
    variability: npt.NDArray[np.floating] | None = None
    symbols: Sequence[str] = ()
    prepared: Any = None
    is_fold: bool = False


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """A registered encoder and its properties.

    Attributes
    ----------
    made_by
        The class, a :class:`scvec.base.types.CellEncoder` with ``new(material)`` and
        ``from_state(tensors, meta)``. An encoder that uses a model also has
        ``prepare(models, *, OPTION, ...)``, which runs once before an ingest reads cells. It has
        ``load(tensors, meta, models)`` instead of ``from_state``.
    texts
        Which texts the backbone encodes for this encoder: ``genes``, ``cells``, or ``""`` for none.
    uses_gpu
        Whether it encodes with torch. It then uses a GPU if there is one, one chunk at a time.
    refits
        Whether it is fitted again to the genes that a query measured
        (:class:`scvec.base.types.RefittedEncoder`).
    argument
        Name of the argument after the colon, such as ``KEY`` in ``obsm:KEY``; empty if it takes none.
    """

    name: str
    made_by: Any
    texts: Literal["", "genes", "cells"] = ""
    uses_gpu: bool = False
    refits: bool = False
    argument: str = ""

    @property
    def reads_models(self) -> bool:
        """Whether loading a saved encoder needs a model."""
        return hasattr(self.made_by, "load")

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that ``prepare`` takes."""
        if not hasattr(self.made_by, "prepare"):
            return frozenset()
        parameters = inspect.signature(self.made_by.prepare).parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def prepare(self, models: Models, options: Mapping[str, Any]) -> Any:
        """Load the models of the encoder and check its options.

        Parameters
        ----------
        options
            Option -> value; None for an option that the user did not give.

        Returns
        -------
        object
            Passed to ``new`` as :attr:`Material.prepared`; None if the encoder needs nothing but cells.

        Raises
        ------
        InputError
            If the encoder does not have an option or cannot use its value, or a model is missing.
        """
        known = self.options
        for name, value in options.items():
            if value is not None and name not in known:
                option = "--" + name.replace("_", "-")
                others = " or ".join(n for n in encoder_names() if name in encoder_kind(n).options)
                raise InputError(
                    f"the encoder {self.name!r} has no option {option}",
                    option,
                    f"leave it out, or give --encoder {others}",
                    code="usage",
                )
        if not hasattr(self.made_by, "prepare"):
            return None
        return self.made_by.prepare(models, **{name: options.get(name) for name in known})


def encoder(
    name: str,
    *,
    texts: Literal["", "genes", "cells"] = "",
    uses_gpu: bool = False,
    refits: bool = False,
    argument: str = "",
) -> Callable[[C], C]:
    """Return a decorator that registers a class under a name (see :class:`EncoderKind`)."""

    def register(made_by: C) -> C:
        made_by.name, made_by.takes_turns = name, uses_gpu  # type: ignore[attr-defined]  # CellEncoder has both
        _registered[name] = EncoderKind(name, made_by, texts, uses_gpu, refits, argument)
        return made_by

    return register


def encoder_names() -> list[str]:
    """Return the names of all encoders, without importing their modules."""
    return list(dict.fromkeys([*MODULES, *_registered]))


def encoder_kind(name: str) -> EncoderKind:
    """Return the encoder registered under a name. ``NAME:ARGUMENT`` is allowed, as in ``obsm:KEY``.

    Raises
    ------
    InputError
        If no encoder has this name, or the argument is missing or not allowed.
    """
    name, colon, argument = name.partition(":")
    check_choice("--encoder", name, encoder_names())
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
    """Return whether an encoder is fitted again to the genes of a query."""
    return encoder_kind(encoder.name).refits


def make_encoder(name: str, material: Material) -> CellEncoder:
    """Return an untrained encoder.

    Raises
    ------
    ValueError
        If the encoder uses texts of genes and ``material`` has no gene vectors.
    """
    kind = encoder_kind(name)
    if kind.texts == "genes" and material.gene_vectors is None:
        raise ValueError(f"the encoder {name!r} needs gene vectors")
    made: CellEncoder = kind.made_by.new(material)
    return made


def load_encoder(
    name: str, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any], models: Models | None = None
) -> CellEncoder:
    """Return a trained encoder, rebuilt from its saved state.

    Raises
    ------
    ValueError
        If the encoder uses models and ``models`` is None, or the state does not fit the encoder.
    """
    made_by = encoder_kind(name).made_by
    if not hasattr(made_by, "load"):
        loaded: CellEncoder = made_by.from_state(tensors, meta)
    elif models is None:
        raise ValueError(f"the encoder {name!r} needs its models")
    else:
        loaded = made_by.load(tensors, meta, models)
    return loaded

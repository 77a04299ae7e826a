"""The options of ``scvec ingest cells``, with and without ``--append``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError

if TYPE_CHECKING:
    from scvec.backbones import BackboneSpec
    from scvec.encoders import EncoderKind
    from scvec.engines import Engine

__all__ = ["AppendOptions", "IngestOptions"]

#: Options that only some encoders have (:attr:`scvec.encoders.EncoderKind.options`).
OF_ENCODERS = ("llm", "n_genes", "prompt_order", "lora", "epochs", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class AppendOptions:
    """How :func:`scvec.append_cells` reads cells and adds them to a reference.

    Attributes
    ----------
    name
        What the reference is called.
    label_key
        Column of obs with the labels.
    species
        ``human``, ``mouse`` or ``auto``.
    layer
        Layer with the counts; found by itself where not given.
    values
        What the values are: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`); ``auto`` finds it out, in a note.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given. It bounds
        the cells that are handled at once, which changes no result, and below about 3G the cells that are
        trained on, which does.
    label_map
        Label -> the label it becomes, for files that call one type by two names; a mapping, or a JSON, csv or
        tsv file of it. Labels that are missing stay; an empty name takes the label from its cells.
    force
        Go on where few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Language model of the encoder ``prompt``: a folder, a GGUF file, ``smollm2`` or an id of the hub.

    Raises
    ------
    InputError
        If an option cannot be used.
    """

    name: str
    label_key: str
    species: str = "auto"
    layer: str | None = None
    values: str = "auto"
    memory: str | int | None = None
    label_map: Mapping[str, str] | Path | str | None = None
    force: bool = False
    device: str = "auto"
    llm: str | None = None

    def __post_init__(self) -> None:
        from scvec.base.resources import check_device

        check_device(self.device)


@dataclass(frozen=True, kw_only=True)
class IngestOptions(AppendOptions):
    """How :func:`scvec.ingest_cells` makes a reference; one of that ``name`` is replaced.

    Attributes
    ----------
    batch_key
        Column of obs with donors or batches: whole ones are held out to calibrate the confidence.
    min_cells
        Labels of fewer cells are left out: their cells are neighbours without a vote.
    backbone
        Where gene vectors come from (:func:`scvec.backbones.parse_spec`).
    base_url, max_cost
        Address of the server that ``openai:`` asks, and US dollars that it may cost.
    encoder
        How cells become vectors: a name of :func:`scvec.encoders.encoder_names`; ``obsm:KEY`` takes those of
        ``obsm[KEY]``.
    seed
        Two runs with one seed give the same reference.
    n_genes
        Genes of a cell that ``prompt`` and ``sentence`` read, highest expression first.
    prompt_order, lora, epochs
        Of ``prompt``: ``paper``, ``code`` or ``none``; rank of adapters inside the language model; epochs.
    checkpoint
        Folder in which ``prompt`` keeps the progress of its training; in the store by default.
    engine, ray_address
        ``ray`` encodes the cells by workers of a Ray cluster; training stays here.
    origin
        Where the cells come from, for the card of the reference: JSON values, of which ``citations``,
        ``license`` and ``tissue`` are shown.
    index, recall
        ``auto``, ``flat`` or ``ivf``; fraction (0-1) of neighbours that the last finds (docs/neighbors.md).

    Raises
    ------
    InputError
        If an option cannot be used.
    """

    batch_key: str | None = None
    min_cells: int = 1
    backbone: str = "minilm"
    base_url: str | None = None
    max_cost: float | None = None
    encoder: str = "discriminant"
    seed: int = 0
    n_genes: int | None = None
    prompt_order: str | None = None
    lora: int | None = None
    epochs: int | None = None
    checkpoint: Path | str | None = None
    engine: str = "local"
    ray_address: str | None = None
    index: str = "auto"
    recall: float = 0.95
    origin: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        from scvec.model.cell_index import check_index
        from scvec.stores.store.files import check_reference_name

        check_reference_name(self.name)
        check_index(self.index, self.recall)
        _ = self.spec, self.kind  # parsed once, and refused here
        if self.encoder == "obsm":
            raise InputError(
                "the encoder obsm needs a key", "--encoder obsm", "give obsm:KEY, as obsm:X_scVI"
            )
        super().__post_init__()
        for name, least in (("min_cells", 1), ("seed", 0)):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise InputError(
                    f"{option} must be {least} or more",
                    option,
                    "leave it out for the default",
                    code="option-out-of-range",
                )

    @cached_property
    def spec(self) -> BackboneSpec:
        """The backbone, parsed."""
        from scvec.backbones import parse_spec

        return parse_spec(self.backbone, base_url=self.base_url)

    @cached_property
    def kind(self) -> EncoderKind:
        """The encoder, as it is registered."""
        from scvec.encoders import encoder_kind

        return encoder_kind(self.encoder)

    @property
    def obsm(self) -> str | None:
        """Key of ``obsm`` with the vectors of the cells; None where they are made of genes."""
        name, _, key = self.encoder.partition(":")
        return key if name == "obsm" else None

    @property
    def cluster(self) -> Engine:
        """Where cells are encoded."""
        from scvec.engines import Engine

        return Engine(
            self.engine,
            self.ray_address,
            memory=self.memory,
            device=self.device,
            llm=self.llm,
            backbone=self.portable_backbone,
        )

    @property
    def of_encoder(self) -> dict[str, Any]:
        """Options that only some encoders have -> values, None where not given."""
        return {name: getattr(self, name) for name in OF_ENCODERS}

    @property
    def portable_backbone(self) -> str:
        """The backbone as it is called from any folder: with the absolute path of its model's folder."""
        path = Path(self.spec.argument).expanduser()
        if not self.spec.argument or not path.is_dir():
            return self.backbone
        return self.backbone.replace(self.spec.argument, os.path.abspath(path), 1)

    def record(self) -> dict[str, Any]:
        """Return what a reference keeps of its options."""
        return {
            "name": self.name,
            "label_key": self.label_key,
            "encoder": self.encoder,
            # An encoder that reads cells with the backbone needs it again.
            "backbone": self.portable_backbone if self.kind.texts == "cells" else self.backbone,
            "batch_key": self.batch_key,
            "seed": self.seed,
        }

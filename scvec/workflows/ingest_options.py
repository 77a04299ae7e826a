"""Options of ``scvec ingest cells``, with and without ``--append``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, check_range
from scvec.encoders import DEFAULT_ENCODER

if TYPE_CHECKING:
    from scvec.backbones import BackboneSpec
    from scvec.encoders import EncoderKind
    from scvec.engines import Engine

__all__ = ["AppendOptions", "IngestOptions"]

#: Options that only some encoders have (:attr:`scvec.encoders.EncoderKind.options`).
OF_ENCODERS = ("llm", "n_genes", "prompt_order", "epochs")


@dataclass(frozen=True, kw_only=True)
class AppendOptions:
    """Options of :func:`scvec.append_cells`.

    Attributes
    ----------
    name
        Name of the reference.
    label_key
        Column of obs with the labels.
    species
        ``human``, ``mouse`` or ``auto``.
    layer
        Layer with the values; None to detect it.
    values
        Scale of the values: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`). ``auto`` detects it and adds a note.
    memory
        Memory limit, in bytes or as text such as ``"4G"``; None for half of the free memory. It limits the
        cells in a chunk, which does not change the result. Below about 3G it also limits the training cells,
        which does.
    label_map
        Label -> new label, for files with two names for one type: a mapping, or a JSON, csv or tsv file.
        Other labels do not change. Cells whose label maps to an empty name become unlabelled.
    force
        Continue even if few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Language model of the encoder ``prompt``: a folder, a GGUF file, ``smollm2`` or an id on the hub.

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
    """Options of :func:`scvec.ingest_cells`. An existing reference with this ``name`` is replaced.

    Attributes
    ----------
    batch_key
        Column of obs with donors or batches. Whole batches are held out to calibrate confidence.
    min_cells
        Cells of labels with fewer cells than this become unlabelled. They are neighbours without a vote.
    backbone
        Source of the gene vectors (:func:`scvec.backbones.parse_spec`).
    base_url, max_cost
        Address of the server for ``openai:``, and limit on its cost in US dollars.
    encoder
        Encoder of the cells, one of :func:`scvec.encoders.encoder_names`. ``obsm:KEY`` uses the vectors in
        ``obsm[KEY]``.
    vectors_only
        With ``obsm:KEY``, use no genes. Else a reference whose files hold values of genes too also learns the
        members of the default encoder, and a query joins both.
    seed
        Random seed. Two runs with the same seed give the same reference.
    n_genes
        Number of genes per cell that ``prompt`` and ``sentence`` read, highest expression first.
    prompt_order, epochs
        Options of ``prompt``: ``paper``, ``code`` or ``none``; number of epochs.
    engine, ray_address
        ``ray`` encodes the cells with workers of a Ray cluster. Training stays on this machine.
    origin
        Origin of the cells, for the card of the reference: JSON values. The card shows ``citations``,
        ``license`` and ``tissue``.
    index, recall
        ``auto``, ``flat`` or ``ivf``; requested recall (0-1) of ``ivf`` (docs/neighbors.md).

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
    encoder: str = DEFAULT_ENCODER
    vectors_only: bool = False
    seed: int = 0
    n_genes: int | None = None
    prompt_order: str | None = None
    epochs: int | None = None
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
        _ = self.spec, self.kind  # raises an error for an unknown backbone or encoder
        if self.encoder == "obsm":
            raise InputError(
                "the encoder obsm needs a key", "--encoder obsm", "give obsm:KEY, such as obsm:X_scVI"
            )
        super().__post_init__()
        for name, least in (("min_cells", 1), ("seed", 0)):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), least)

    @cached_property
    def spec(self) -> BackboneSpec:
        """The backbone, parsed."""
        from scvec.backbones import parse_spec

        return parse_spec(self.backbone, base_url=self.base_url)

    @cached_property
    def kind(self) -> EncoderKind:
        """The registered encoder."""
        from scvec.encoders import encoder_kind

        return encoder_kind(self.encoder)

    @property
    def obsm(self) -> str | None:
        """Key of ``obsm`` with the vectors of the cells; None if vectors are computed from genes."""
        name, _, key = self.encoder.partition(":")
        return key if name == "obsm" else None

    @property
    def cluster(self) -> Engine:
        """The engine that encodes the cells."""
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
        """Options that only some encoders have -> values; None for options that were not given."""
        return {name: getattr(self, name) for name in OF_ENCODERS}

    @property
    def portable_backbone(self) -> str:
        """The backbone with the absolute path of its model folder, which is valid in any working folder."""
        path = Path(self.spec.argument).expanduser()
        if not self.spec.argument or not path.is_dir():
            return self.backbone
        return self.backbone.replace(self.spec.argument, os.path.abspath(path), 1)

    def record(self) -> dict[str, Any]:
        """Return the options that the store keeps with a reference."""
        return {
            "name": self.name,
            "label_key": self.label_key,
            "encoder": self.encoder,
            # A query needs the backbone again, from any working folder, if it encodes cells.
            "backbone": self.portable_backbone if self.kind.texts == "cells" else self.backbone,
            "batch_key": self.batch_key,
            "seed": self.seed,
        }

"""Looking into a store, proving it whole, taking things out and throwing things away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvec.api.reports import (
    CompactReport,
    ExportReport,
    InfoReport,
    ReferenceInfo,
    RmReport,
    SpaceInfo,
    VerifyReport,
)
from scvec.errors import InputError, ScvecError
from scvec.protocols import Progress, no_progress

if TYPE_CHECKING:
    from scvec.api.reports import DoctorReport
    from scvec.stores.store import Store

__all__ = ["compact", "doctor", "export", "info", "rm", "verify"]

#: Largest difference between a stored vector and a fresh one that is rounding and not another encoder.
PARITY = 1e-4
_ENDINGS = {"parquet": ".parquet", "h5ad": ".h5ad"}


def info(store: Path | str, reference: str | None = None) -> InfoReport:
    """Say what is inside a store; with ``reference``, more about that one.

    Raises
    ------
    InputError
        If there is no store, or no reference of that name.
    """
    from scvec.stores.manifest import FORMAT
    from scvec.stores.store import Store

    opened = Store(store)
    names = [reference] if reference is not None else sorted(opened.generation.manifest.references)
    genes: dict[str, int] = {}
    if opened.generation.manifest.knowledge is not None:
        with opened.knowledge() as kb:
            counts = kb.counts()
        genes = {k.removeprefix("genes "): n for k, n in counts.items() if k.startswith("genes ")}
    return InfoReport(
        store=opened.path,
        generation=str(opened.generation.number),
        format_version=FORMAT,
        size_bytes=_size(opened.path),
        genes=genes,
        spaces=[
            SpaceInfo(
                fingerprint=fingerprint,
                backbone=space.space.backbone,
                dim=space.space.dim,
                n_genes=space.n,
                template=space.space.template,
            )
            for fingerprint, space in opened.spaces().items()
        ],
        references=[_reference_info(opened, name) for name in names],
        detailed=reference is not None,
    )


def verify(
    store: Path | str, *, device: str = "auto", llm: str | None = None, progress: Progress = no_progress
) -> VerifyReport:
    """Check every file of the current generation, and that encoders still give the vectors that are stored.

    Parameters
    ----------
    device, llm
        Where encoders compute, and where the language model of ``prompt`` references lies if it was moved.

    Raises
    ------
    InputError
        If there is no store.
    StoreError
        If not even the manifest can be read.
    """
    from scvec.stores.store import Store

    started = time.monotonic()
    opened = Store(store)
    found = opened.verify(progress=progress)
    problems, parity = list(found.problems), {}
    for name in sorted(opened.generation.manifest.references):
        try:
            parity[name], allowed = _parity(opened, name, device, llm)
        except ScvecError as error:
            if not problems:  # else it is the consequence of what was found already
                problems.append(f"reference {name!r}: {error.what}")
            continue
        if not parity[name] <= allowed:
            problems.append(
                f"reference {name!r}: its encoder differs by {parity[name]:.2g} from stored vectors"
            )
    return VerifyReport(
        store=opened.path,
        generation=str(found.generation),
        n_files=found.n_files,
        n_bytes=found.n_bytes,
        seconds=time.monotonic() - started,
        encoder_parity=parity,
        problems=problems,
        notes=[f"{len(found.unreferenced)} files of older generations: scvec compact removes them"]
        if found.unreferenced
        else [],
    )


def doctor(store: Path | str | None = None) -> DoctorReport:
    """Look at the machine, the libraries, the default model and the store."""
    from scvec.api.checkup import examine

    return examine(None if store is None else Path(store))


def export(store: Path | str, reference: str, *, to: str, output: Path | str) -> ExportReport:
    """Write a reference to a file: its cells with obs, labels and vectors.

    Parameters
    ----------
    to
        ``parquet`` (obs columns, then ``vector`` as a fixed-size list of float32) or ``h5ad`` (vectors in
        ``obsm['X_scvec']``, no expression).

    Raises
    ------
    InputError
        If there is no such reference or format.
    """
    from scvec.api.references import CODE_COLUMN
    from scvec.ingest.h5ad_output import check_output, replacing
    from scvec.stores.store import Store

    if to not in ("parquet", "h5ad"):
        raise InputError(f"{to!r} is no format to export to", fix="formats: parquet, h5ad")
    target = check_output(output)
    if target.suffix in _ENDINGS.values() and target.suffix != _ENDINGS[to]:
        raise InputError(
            f"the output ends in {target.suffix}, but {to} is to be written",
            str(target),
            f"give -o NAME{_ENDINGS[to]}, or another --to",
        )
    stored = Store(store).reference(reference)
    classes = np.array([*stored.meta["classes"], ""], dtype=object)
    obs = stored.obs.copy()
    obs["scvec_class"] = classes[obs.pop(CODE_COLUMN).to_numpy()]  # -1 takes the empty one at the end
    vectors = np.ascontiguousarray(stored.vectors)
    fingerprint = stored.meta["space"]["fingerprint"] if stored.meta["space"] else "none"
    with replacing(target) as part:
        if to == "h5ad":
            import anndata

            adata = anndata.AnnData(obs=obs, obsm={"X_scvec": vectors})
            adata.uns["scvec"] = {"reference": reference, "space": fingerprint}
            adata.write_h5ad(part)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.Table.from_pandas(obs.reset_index(names="cell"), preserve_index=False)
            rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            table = table.append_column("vector", rows)
            tags = {"scvec.reference": reference, "scvec.space": fingerprint}
            pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **tags}), part)
    return ExportReport(
        reference=reference, to=to, files=[target], n_cells=stored.n, size_bytes=target.stat().st_size
    )


def rm(store: Path | str, reference: str) -> RmReport:
    """Drop a reference. Its space is given back by :func:`compact`.

    Raises
    ------
    InputError
        If there is no such reference.
    LockedError
        If another process writes to the store.
    """
    from scvec.stores.store import Store

    opened = Store(store)
    opened.reference(reference)  # names those there are
    with opened.begin("rm", {"reference": reference}) as txn:
        txn.remove_reference(reference)
        generation = txn.commit()
    return RmReport(
        reference=reference,
        generation=str(generation.number),
        remaining=sorted(generation.manifest.references),
    )


def compact(store: Path | str) -> CompactReport:
    """Delete older generations and files that nothing uses.

    Raises
    ------
    LockedError
        If another process writes to the store.
    """
    from scvec.stores.store import Store

    opened = Store(store)
    before = _size(opened.path)
    done = opened.compact()
    return CompactReport(
        before_bytes=before,
        after_bytes=_size(opened.path),
        n_files_removed=done.n_files,
        generation=str(done.generation),
        notes=[f"generation {number} is kept: it is being read" for number in done.kept],
    )


def _reference_info(opened: Store, name: str) -> ReferenceInfo:
    from scvec.api.references import species_of

    stored = opened.reference(name)
    meta = stored.meta
    calibration = meta["model"]["calibration"]
    species = species_of(meta)
    return ReferenceInfo(
        name=name,
        n_cells=stored.n,
        species=" and ".join(species),
        encoder=meta["model"]["encoder"]["name"],
        space=meta["space"]["fingerprint"] if meta["space"] else "none",
        classes=meta["counts"],
        details={
            "genes": len(meta["genes"]),
            **({"cells": species} if len(species) > 1 else {}),
            "embed_dim": stored.dim,
            "options": meta["options"],
            "sources": meta["sources"],
            "held out": calibration["held_out"],
            "record": {k: v["record"] for k, v in calibration["regimes"].items()},
        },
    )


def _parity(opened: Store, name: str, device: str, llm: str | None) -> tuple[float, float]:
    """Return how far fresh vectors of a few cells are from the stored ones, and how far they may be.

    The largest difference of a number; for encoders that read with a model, whose rounding goes with device
    and precision, the largest cosine distance.
    """
    from scvec.api.probe import probe_cells
    from scvec.api.references import load_model

    stored = opened.reference(name)
    cells, rows = probe_cells(stored.tensors, len(stored.meta["genes"]))
    used = llm if stored.meta["model"]["encoder"].get("llm") else None
    encoder = load_model(stored, device=device, llm=used).voices.encoder
    fresh, kept = encoder.encode(cells).astype(np.float64), np.asarray(stored.vectors[rows], dtype=np.float64)
    allowed = getattr(encoder, "parity", None)
    if allowed is None:
        return float(np.abs(fresh - kept).max()), PARITY
    lengths = np.linalg.norm(fresh, axis=1) * np.linalg.norm(kept, axis=1)
    return float((1.0 - (fresh * kept).sum(axis=1) / np.maximum(lengths, 1e-12)).max()), float(allowed)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())

"""Where cells are encoded and searched: in this process, or on a Ray cluster."""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from scvec.base.errors import InputError, NetworkError
from scvec.base.parallel import n_cores, side_by_side

if TYPE_CHECKING:
    from scvec.base.types import CellEncoder, Float32, Progress
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.matching import MatchedSource

__all__ = ["AT_ONCE", "ENGINES", "Engine", "check_answers", "check_engine", "encode_cells"]

ENGINES = ("local", "ray")
#: Chunks that this process works on at once, at most: each takes the memory of one.
AT_ONCE = 4
#: Seconds that a cluster has to take a connection.
CONNECT_TIMEOUT = 10.0


def check_engine(engine: str, ray_address: str | None = None) -> None:
    """Refuse at once what cannot work, before files are read.

    Parameters
    ----------
    ray_address
        ``HOST:PORT`` of a cluster's head, ``auto`` for the cluster of this node, or None.

    Raises
    ------
    InputError
        No such engine, an address without it, an address that is none, or Ray is not installed.
    NetworkError
        Nothing listens at the address.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", "--engine", f"engines: {', '.join(ENGINES)}")
    if engine == "local":
        if ray_address is not None:
            what = "an address of a Ray cluster is of use with the engine ray only"
            raise InputError(what, f"--ray-address {ray_address}", "add --engine ray")
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "Ray is not installed",
            "--engine ray",
            'run: pip install "scvec[ray]"',
            code="extra-not-installed",
        )
    if ray_address is None or ray_address == "auto":
        return
    if ray_address.startswith("ray://"):
        what = "scvec does not speak the protocol of Ray clients (ray://)"
        fix = "run it on a node of the cluster with --ray-address auto (docs/cluster.md)"
        raise InputError(what, f"--ray-address {ray_address}", fix, code="bad-address")
    check_answers(ray_address, f"--ray-address {ray_address}")


def check_answers(address: str, where: str) -> None:
    """Refuse an address that nothing listens at, which Ray itself would try for minutes.

    Parameters
    ----------
    address
        ``HOST:PORT``.
    where
        What to call it in messages.

    Raises
    ------
    InputError
        If it is no address.
    NetworkError
        If nothing answers.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^\s:/\[\]]+)):(\d{1,5})", address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(
            "this is no address of a Ray cluster",
            where,
            "give HOST:PORT of its head, or auto on a node of it",
            code="bad-address",
        )
    try:
        socket.create_connection((match[1] or match[2], int(match[3])), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise NetworkError(
            f"no Ray cluster answers ({error.strerror or error})",
            where,
            "start one: ray start --head; docs/cluster.md",
        ) from error


class Engine(NamedTuple):
    """Who encodes, and with what.

    Attributes
    ----------
    name, ray_address, memory
        As of the command.
    device, llm, backbone
        What workers of a cluster rebuild the encoder with, if it reads with a model.
    """

    name: str
    ray_address: str | None
    memory: str | int | None
    device: str
    llm: str | None
    backbone: str


def encode_cells(
    encoder: CellEncoder,
    matched: Sequence[MatchedSource],
    maps: Sequence[GeneMap],
    engine: Engine,
    progress: Progress,
) -> Float32:
    """Return the vectors (n, embed_dim) float32 of all cells, in the order of the sources and their cells."""
    import numpy as np

    if engine.name == "ray":
        from scvec.engines.ray_engine import encode_by_ray

        return encode_by_ray(
            encoder,
            matched,
            maps,
            address=engine.ray_address,
            memory=engine.memory,
            backbone=engine.backbone,
            device=engine.device,
            llm=engine.llm,
            progress=progress,
        )
    total = sum(m.source.n_obs for m in matched)
    vectors = np.empty((total, encoder.embed_dim), dtype=np.float32)
    n_workers = 1 if getattr(encoder, "takes_turns", False) else min(n_cores(), AT_ONCE)
    done = 0
    for source, genes in zip(matched, maps, strict=True):
        jobs = (partial(encoder.encode, chunk) for chunk in source.chunks(genes))
        with closing(side_by_side(jobs, n_workers)) as encoded:
            for block in encoded:
                vectors[done : done + len(block)] = block
                done += len(block)
                progress("encoding cells", done, total)
    return vectors

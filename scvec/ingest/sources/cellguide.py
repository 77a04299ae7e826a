"""CellGuide of CZ CELLxGENE: markers of cell types, from its corpus and from the literature (ASCT+B).

The source reads the static files of one snapshot, like CellGuide's page
(chanzuckerberg/single-cell-data-portal, ``backend/cellguide``)::

    latest_snapshot_identifier                                              the snapshot, a number
    SNAPSHOT/tissue_metadata.json                                           UBERON id -> {"name": ...}
    SNAPSHOT/ontology_tree/NCBITaxon_9606/celltype_to_tissue_mapping.json   CL id -> [UBERON ids]
    SNAPSHOT/computational_marker_genes/CL_0000084.json                     [{"symbol", "marker_score", ...}]
    SNAPSHOT/canonical_marker_genes/CL_0000084.json                         [{"symbol", "tissue", ...}], human

For a file that does not exist, the service returns an empty body or 404.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from scvec.base.errors import InputError
from scvec.base.types import Answer, Failure, Job, Marker, Note
from scvec.ingest.sources import marker_source
from scvec.ingest.sources.facts import text_field
from scvec.ingest.sources.http import MarkerSource
from scvec.ingest.sources.retry import ServiceError

__all__ = ["CellGuideSource"]

#: Species -> its name in the computed markers, and its folder of the ontology tree.
_NAMES = {"human": "Homo sapiens", "mouse": "Mus musculus"}
_FOLDERS = {"human": "NCBITaxon_9606", "mouse": "NCBITaxon_10090"}
#: Number of markers kept per type, tissue and species, the best by score.
BEST = 25
#: Limits on the rows of a file, and on the types or tissues of an index.
ROWS, ENTRIES = 500_000, 20_000
_CL = re.compile(r"CL:\d{7}")
_GENE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,39}")


@marker_source("cellguide")
class CellGuideSource(MarkerSource):
    """Requests all markers of a type, in every tissue, for human and mouse."""

    url = "https://cellguide.cellxgene.cziscience.com"
    # CellGuide documents no limit; this rate is low.
    limit = 5.0
    requests = 2

    async def index(self, species: Sequence[str], tissues: Sequence[str]) -> tuple[str, list[str]]:
        snapshot = await self.client.get_read("latest_snapshot_identifier", _snapshot)
        wanted = {t.strip().lower() for t in tissues}
        names = await self.client.get_json(f"{snapshot}/tissue_metadata.json", dict) if wanted else {}
        known = {}
        for uberon, about in list((names or {}).items())[:ENTRIES]:
            name = text_field(about.get("name"), 200).lower() if isinstance(about, Mapping) else ""
            if name:
                known[name] = str(uberon)
        if wanted - set(known):
            listed = ", ".join(sorted(known)[:12]) or "none"
            raise InputError(
                f"CellGuide has no tissue {min(wanted - set(known))!r}",
                "--tissue",
                f"it has: {listed}, and others",
                code="unknown-choice",
            )
        ids, types = {known[name] for name in wanted}, set()
        for kind in species:
            path = f"{snapshot}/ontology_tree/{_FOLDERS[kind]}/celltype_to_tissue_mapping.json"
            found: dict[Any, Any] = await self.client.get_json(path, dict) or {}
            for cl_id, places in list(found.items())[:ENTRIES]:
                there = places if isinstance(places, list) else []
                if _CL.fullmatch(str(cl_id)) and (not ids or any(p in ids for p in map(str, there))):
                    types.add(str(cl_id))
        if not types:
            # Otherwise a changed format of the files would look like an empty answer.
            raise ServiceError("address", f"cellguide lists no types of {' and '.join(species)} there")
        return snapshot, sorted(types)

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        answers: list[Answer] = []
        failures: list[Failure] = []
        for job in jobs:
            name = job.gene_id.replace(":", "_")
            computed = await self.client.get_json(
                f"{job.prompt}/computational_marker_genes/{name}.json", list
            )
            canonical = await self.client.get_json(f"{job.prompt}/canonical_marker_genes/{name}.json", list)
            markers = [*_computed(job.gene_id, computed or []), *_canonical(job.gene_id, canonical or [])]
            if not markers:
                failures.append(Failure(job, "CellGuide has no markers of this type", final=True))
                continue
            now = datetime.now(UTC).isoformat(timespec="seconds")
            note = Note(job.gene_id, self.name, job.prompt, now, {"n_markers": len(markers)})
            answers.append(Answer(job, note=note, markers=tuple(markers)))
        return answers, failures


def _snapshot(body: bytes) -> str:
    text = body[:200].decode("ascii", "replace").strip().strip('"')
    # Check it strictly, because it becomes part of an address.
    if not re.fullmatch(r"\d{1,20}", text):
        raise ServiceError("address", "cellguide did not return the number of the latest snapshot")
    return text


def _computed(cl_id: str, rows: list[Any]) -> list[Marker]:
    """Return the best markers of each species and tissue; the tissue is empty for all tissues combined."""
    species = {name: kind for kind, name in _NAMES.items()}
    best: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows[:ROWS]:
        if not isinstance(row, Mapping):
            continue
        place = row.get("groupby_dims")
        place = place if isinstance(place, Mapping) else {}
        kind = species.get(text_field(place.get("organism_ontology_term_label"), 60), "")
        gene, score = text_field(row.get("symbol"), 60), row.get("marker_score")
        if not kind or not _GENE.fullmatch(gene) or isinstance(score, bool):
            continue
        if isinstance(score, int | float) and math.isfinite(score) and 0 < score < 1e6:
            scores = best[kind, _tissue(place.get("tissue_ontology_term_label"))]
            scores[gene] = max(float(score), scores.get(gene, 0.0))
    return [
        Marker(cl_id, tissue, kind, gene, weight=scores[gene], source="cellguide: computed")
        for (kind, tissue), scores in sorted(best.items())
        for gene in sorted(scores, key=lambda g: (-scores[g], g))[:BEST]
    ]


def _canonical(cl_id: str, rows: list[Any]) -> list[Marker]:
    """Return the markers from the literature, which are human."""
    found: dict[tuple[str, str], None] = {}
    for row in rows[:ROWS]:
        gene = text_field(row.get("symbol"), 60) if isinstance(row, Mapping) else ""
        if _GENE.fullmatch(gene):
            found[_tissue(row.get("tissue")), gene] = None
    return [Marker(cl_id, tissue, "human", gene, source="cellguide: canonical") for tissue, gene in found]


def _tissue(value: object) -> str:
    name = text_field(value, 80).lower()
    return "" if name == "all tissues" else name

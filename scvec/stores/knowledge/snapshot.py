"""The gene snapshot that ships with the package."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SNAPSHOT_SOURCE", "Snapshot"]

#: What ``source`` says of rows that come from the snapshot.
SNAPSHOT_SOURCE = "scvec-snapshot"

_FORMAT = 1
_FIX = "reinstall scvec, or build the snapshot again with tools/build_snapshot.py"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Parquet tables and the manifest that says what they are and where they come from."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | None = None) -> Snapshot:
        """Read the manifest of a snapshot folder; by default the one in the package.

        Raises
        ------
        StoreError
            The folder has no manifest, or one of another format.
        """
        folder = path or Path(str(resources.files("scvec").joinpath("data", "snapshot")))
        try:
            manifest = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise StoreError("the gene snapshot cannot be read", f"{folder}: {err}", _FIX) from err
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise StoreError("the gene snapshot is of another format", str(folder), _FIX)
        return cls(folder, manifest)

    @property
    def version(self) -> str:
        """Version of the snapshot, such as ``2026.06``."""
        return str(self.manifest["version"])

    @property
    def date(self) -> str:
        """Newest date among the sources (ISO 8601)."""
        return str(self.manifest["date"])

    @property
    def sources(self) -> list[dict[str, str]]:
        """Name, version, licence and URL of each source."""
        return list(self.manifest["sources"])

    def table(self, name: str) -> pa.Table:
        """Read one table, after checking its SHA-256.

        Raises
        ------
        StoreError
            The file is missing or not what the manifest says.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        entry = self.manifest["tables"].get(name)
        file = self.path / f"{name}.parquet"
        if entry is None:
            raise StoreError(f"the gene snapshot has no table {name!r}", str(self.path), _FIX)
        try:
            raw = file.read_bytes()
        except OSError as err:
            raise StoreError("a table of the gene snapshot cannot be read", f"{file}: {err}", _FIX) from err
        if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
            raise StoreError("a table of the gene snapshot is damaged (SHA-256 differs)", str(file), _FIX)
        try:
            return pq.read_table(io.BytesIO(raw))
        except pa.ArrowException as err:
            raise StoreError("a table of the gene snapshot cannot be read", f"{file}: {err}", _FIX) from err

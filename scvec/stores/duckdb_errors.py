"""What DuckDB raises, as errors a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scvec.errors import LockedError, ResourceError, ScvecError, StoreError

__all__ = ["translate"]


@contextmanager
def translate(path: Path) -> Iterator[None]:
    """Turn what DuckDB raises about the file or the machine into errors a user can act on."""
    import duckdb

    try:
        yield
    except ScvecError:
        raise
    except duckdb.OutOfMemoryException as err:
        raise ResourceError("out of memory in the knowledge base", str(path), "close other programs") from err
    except (
        duckdb.IOException,
        duckdb.FatalException,
        duckdb.InternalException,
        duckdb.SerializationException,
    ) as err:
        text = str(err)
        if "lock" in text.lower():
            raise LockedError(
                f"the knowledge base is in use: {text}", str(path), "wait, or end that process"
            ) from err
        if "No space left" in text:
            raise ResourceError("the disk is full", str(path), "free some space and run again") from err
        raise StoreError(
            f"the knowledge base is damaged: {text}", str(path), "remove the file and run: scvec ingest genes"
        ) from err

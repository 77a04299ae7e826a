"""What DuckDB raises, as errors a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scvec.base.errors import LockedError, ResourceError, ScvecError, StoreError

__all__ = ["is_damage", "translate"]


@contextmanager
def translate(
    path: Path, what: str = "the knowledge base", mend: str = "remove the file and run: scvec ingest genes"
) -> Iterator[None]:
    """Turn what DuckDB raises about the file or the machine into errors a user can act on.

    ``what`` names the file, ``mend`` says what to do where it is damaged.
    """
    import duckdb

    try:
        yield
    except ScvecError:
        raise
    except duckdb.OutOfMemoryException as err:
        raise ResourceError(f"out of memory in {what}", str(path), "close other programs") from err
    except (
        duckdb.IOException,
        duckdb.FatalException,
        duckdb.InternalException,
        duckdb.SerializationException,
    ) as err:
        text = str(err)
        if "set lock" in text:  # not "lock" alone: that is in "block" too
            raise LockedError(f"{what} is in use: {text}", str(path), "wait, or end that process") from err
        if "No space left" in text:
            raise ResourceError("the disk is full", str(path), "free some space and run again") from err
        raise StoreError(f"{what} is damaged: {text}", str(path), mend) from err
    except duckdb.Error as err:
        # What DuckDB 2 says of damage has no class of its own; all else of this kind is a mistake of ours.
        if not is_damage(err):
            raise
        raise StoreError(f"{what} is damaged: {err}", str(path), mend) from err


def is_damage(error: Exception) -> bool:
    """True if DuckDB speaks of a damaged file."""
    import duckdb

    if isinstance(error, duckdb.FatalException | duckdb.InternalException | duckdb.SerializationException):
        return True
    text = str(error).lower()
    return any(word in text for word in ("corrupt", "checksum", "replaying wal", "not a valid duckdb"))

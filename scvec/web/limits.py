"""What those who upload may use."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server.

    Attributes
    ----------
    upload
        Bytes of one file.
    memory
        Bytes that a job may use.
    seconds
        Wall-clock time of a job.
    jobs
        Jobs that are kept; the oldest that has ended gives way. No more may wait at once.
    """

    upload: int = 2 * 2**30
    memory: int = 8 * 2**30
    seconds: float = 1800.0
    jobs: int = 20

    def __post_init__(self) -> None:
        if min(self.upload, self.memory, self.seconds, self.jobs) <= 0:
            raise ValueError(f"limits must be positive: {self}")

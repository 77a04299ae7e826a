"""The knowledge base that every command stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvec.base.protocols import Progress, no_progress
from scvec.base.types import SPECIES

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["ensure_knowledge"]


def ensure_knowledge(kb: KnowledgeBase, *, progress: Progress = no_progress) -> bool:
    """Load the shipped snapshot where the knowledge base is empty; return whether it was."""
    if kb.counts()["genes"]:
        return False
    progress("loading gene knowledge", 0, None)
    kb.load_snapshot(SPECIES)
    progress("loading gene knowledge", 1, 1)
    return True

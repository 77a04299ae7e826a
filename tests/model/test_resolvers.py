"""The resolver that queries of one process share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pandas as pd

from scvec.model.resolvers import stored_resolver


class FakeStore:
    """A store that knows one gene, under the name given."""

    def __init__(self, name: str, digest: str) -> None:
        entry = SimpleNamespace(digest=digest)
        self.generation = SimpleNamespace(manifest=SimpleNamespace(knowledge=entry))
        self.name, self.n_opened = name, 0

    @contextmanager
    def knowledge(self) -> Iterator[Any]:
        self.n_opened += 1
        row = {"gene_id": "g1", "species": "human", "name": self.name, "kind": "symbol"}
        pairs = pd.DataFrame(
            columns=["gene_id", "species", "other_id", "other_species", "kind", "confidence"]
        )
        yield SimpleNamespace(aliases=lambda: pd.DataFrame([row]), orthologs=lambda: pairs)


def known(store: Any, name: str) -> bool:
    return stored_resolver(store).resolve([name], "human").n_matched == 1


def test_it_is_built_once_for_one_knowledge() -> None:
    first, again = FakeStore("INS", "digest-a"), FakeStore("INS", "digest-a")
    assert known(first, "INS") and known(again, "INS") and known(again, "INS")
    assert (first.n_opened, again.n_opened) == (1, 0)


def test_other_knowledge_has_its_own() -> None:
    old, new = FakeStore("INS", "digest-b"), FakeStore("GCG", "digest-c")
    assert known(old, "INS") and not known(old, "GCG")
    assert known(new, "GCG") and not known(new, "INS")
    assert known(old, "INS") and old.n_opened == 2  # only the last one is kept


def test_names_are_resolved_without_a_store():
    import scvec

    match = scvec.resolve(["INS", "ENSG00000115263.15", "MARCH1", "HLA-A_ENSG00000206503", "nonsense-1"])
    assert match.species == "human" and match.how[0] == "symbol"
    assert match.gene_ids[:2] == ("HGNC:6081", "HGNC:4191")
    assert match.gene_ids[2] is not None and match.gene_ids[3] == "HGNC:4931" and match.gene_ids[4] is None
    assert scvec.resolve(["Ins1", "Gcg", "Trp53"]).species == "mouse"

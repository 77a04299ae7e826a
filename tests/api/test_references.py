"""References as they are stored: what an earlier version made is refused, with a remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scvec.api.references import genes_of
from scvec.errors import StoreError


def test_a_reference_of_an_earlier_version_says_what_to_do() -> None:
    old: Any = SimpleNamespace(name="old", meta={"genes": ["HGNC:1"]})
    with pytest.raises(StoreError, match="earlier version") as caught:
        genes_of(old)
    assert "ingest it again" in str(caught.value.fix)
    new: Any = SimpleNamespace(name="new", meta={"genes": ["HGNC:1"], "all_genes": ["HGNC:1", "HGNC:2"]})
    assert genes_of(new) == ["HGNC:1", "HGNC:2"]

"""Without a GPU, the device is found without loading torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scvec.base import resources
from scvec.base.errors import InputError
from scvec.base.resources import expanded


def test_torch_is_not_loaded_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(resources.glob, "glob", lambda pattern: [])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert resources.resolved_device("auto") == "cpu"
    assert resources.resolved_device("cpu") == "cpu"
    assert "torch" not in sys.modules
    with pytest.raises(InputError, match="'gpu'", check=lambda e: e.code == "unknown-choice"):
        resources.resolved_device("gpu")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_on_other_systems_torch_finds_the_gpu(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resources.glob, "glob", lambda pattern: [])
    assert resources._may_have_gpu()
    monkeypatch.setattr(sys, "platform", "linux")
    assert not resources._may_have_gpu()
    monkeypatch.setattr(resources.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert resources._may_have_gpu()


def test_paths_of_unknown_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCVEC_HERE", "/there")
    assert expanded("~/a b") == tmp_path / "a b" and expanded(Path("$SCVEC_HERE/x")) == Path("/there/x")
    for given in ("~nobody-here/s", "$SCVEC_NOWHERE/s", "${SCVEC_NOWHERE}/s", "a/$SCVEC_NOWHERE"):
        with pytest.raises(InputError) as caught:
            expanded(given)
        assert caught.value.code == "file-not-found" and given in caught.value.where
    (tmp_path / "~odd$name").touch()
    assert expanded("~odd$name") == Path("~odd$name")

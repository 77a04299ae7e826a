"""Which device computes is known without torch where there is no GPU."""

from __future__ import annotations

import sys

import pytest

from scvec.base import device
from scvec.base.errors import InputError


def test_torch_is_not_loaded_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device.glob, "glob", lambda pattern: [])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert device.resolved_device("auto") == "cpu"
    assert device.resolved_device("cpu") == "cpu"
    assert "torch" not in sys.modules
    with pytest.raises(InputError, match="no device 'gpu'"):
        device.resolved_device("gpu")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_only_torch_knows(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(device.glob, "glob", lambda pattern: [])
    assert device._may_have_gpu()
    monkeypatch.setattr(sys, "platform", "linux")
    assert not device._may_have_gpu()
    monkeypatch.setattr(device.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert device._may_have_gpu()

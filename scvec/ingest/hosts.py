"""Which hosts are this machine."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

__all__ = ["is_loopback"]


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine itself."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    return host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost")

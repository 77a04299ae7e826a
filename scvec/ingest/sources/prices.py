"""What models cost, as far as it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from scvec.ingest.hosts import is_loopback
from scvec.settings import Price

__all__ = ["PRICES", "PRICES_AS_OF", "price_of"]

#: Month of the table below.
PRICES_AS_OF = "2026-03"

#: OpenAI's standard prices, https://developers.openai.com/api/docs/pricing and the pages of the models,
#: US dollars per million tokens. Cached input, batches and priority have other prices; cached input is
#: cheaper, so that what is paid is at most what is said here.
PRICES: Mapping[str, Price] = {
    "gpt-3.5-turbo": Price(0.50, 1.50),
    "gpt-4-turbo": Price(10.00, 30.00),
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.40),
    "gpt-5": Price(1.25, 10.00),
    "gpt-5-mini": Price(0.25, 2.00),
    "gpt-5-nano": Price(0.05, 0.40),
    "gpt-5-pro": Price(15.00, 120.00),
    "gpt-5.1": Price(1.25, 10.00),
    "gpt-5.2": Price(1.75, 14.00),
    "gpt-5.4": Price(2.50, 15.00),
    "gpt-5.4-mini": Price(0.75, 4.50),
    "o3": Price(2.00, 8.00),
    "o3-mini": Price(1.10, 4.40),
    "o4-mini": Price(1.10, 4.40),
    "text-embedding-3-small": Price(0.02),
    "text-embedding-3-large": Price(0.13),
    "text-embedding-ada-002": Price(0.10),
}
# The first gpt-4o cost twice as much, and still does under its date.
_DATED = {"gpt-4o-2024-05-13": Price(5.00, 15.00)}
_DATE = re.compile(r"-(?:20\d\d-\d\d-\d\d|\d{4})$")


def price_of(model: str, prices: Mapping[str, Price], host: str = "") -> Price | None:
    """Return what a model costs, or None if that is not known.

    Parameters
    ----------
    prices
        Of the user's config: they come first. A price of ``gpt-4o`` is that of ``gpt-4o-2024-08-06`` too.
    host
        Where it is asked, a host or an address; OpenAI's own if empty. This machine's own models cost
        nothing; elsewhere than at OpenAI the shipped table does not hold.
    """
    plain = _DATE.sub("", model)
    for name in (model, plain):
        if name in prices:
            return prices[name]
    host = _host_name(host)
    if is_loopback(host):
        return Price(0.0)
    if host != "openai.com" and not host.endswith(".openai.com"):
        return None
    return _DATED.get(model) or PRICES.get(plain)


def _host_name(host: str) -> str:
    text = host.strip() or "api.openai.com"
    try:
        return urlsplit(text if "//" in text else f"//{text}").hostname or ""
    except ValueError:
        return ""

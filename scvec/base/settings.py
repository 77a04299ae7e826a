"""Keys, addresses and prices from the environment or the config file."""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError

__all__ = ["Price", "Secret", "ServiceSettings", "Settings", "config_path", "is_loopback", "redact"]

HIDDEN = "[hidden]"

_known: set[str] = set()
_lock = threading.Lock()

# Users also paste keys into addresses and headers, where no Secret hides them. These patterns find such keys:
# by the names of the parameters that carry keys, and by the form of the keys themselves.
_SHAPES = (
    re.compile(r"(?i)((?:api[_-]?key|token|secret|password|access[_-]?key)\s*[=:]\s*)[^\s&,;'\"]{4,}"),
    re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"),
    # Not "basic" alone: gene summaries mention basic helix-loop-helix proteins.
    re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?basic\s+)[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"()\b(?:sk|rk|pk|gsk|hf|ghp)[-_][A-Za-z0-9_-]{16,}"),
    re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


class Secret:
    """A key. Printing or formatting hides it and pickling fails; :meth:`reveal` returns it.

    :func:`redact` removes every secret of this process from texts.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.strip()
        # Removing very short texts would make messages unreadable.
        if len(self._value) >= 4:
            with _lock:
                _known.add(self._value)

    def reveal(self) -> str:
        """Return the key itself. Use it only in the header or field that needs it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN if self._value else ''})"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a secret must not be stored")


def redact(text: str) -> str:
    """Return ``text`` without keys: without every :class:`Secret`, and without texts that look like keys."""
    from urllib.parse import quote

    for value in sorted(_known, key=len, reverse=True):
        for form in {value, quote(value, safe="")}:
            text = text.replace(form, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(lambda m: m.group(1) + HIDDEN, text)
    return text


#: Environment variables for each service. The services' own tools read the same names.
_ENVIRONMENT = {
    "ncbi": {
        "api_key": "NCBI_API_KEY",
        "email": "NCBI_EMAIL",
        "tool": "NCBI_TOOL",
        "base_url": "SCVEC_NCBI_URL",
    },
    "mygene": {"email": "NCBI_EMAIL", "base_url": "SCVEC_MYGENE_URL"},
    "cellguide": {"base_url": "SCVEC_CELLGUIDE_URL"},
    "openai": {"api_key": "OPENAI_API_KEY", "base_url": "OPENAI_BASE_URL"},
}
_KEYS = {"api_key", "email", "tool", "base_url", "requests_per_second", "timeout"}


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.input < 1e6 and 0 <= self.output < 1e6):
            raise ValueError("a price must be a number of dollars, 0 or more")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of one service; unset ones are empty or None.

    Attributes
    ----------
    requests_per_second
        Largest number of requests in a second; 0 for no limit.
    timeout
        Seconds to wait for an answer.
    """

    api_key: Secret = field(default_factory=lambda: Secret(""))
    email: str = ""
    tool: str = ""
    base_url: str = ""
    requests_per_second: float | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings.

    Attributes
    ----------
    prices
        Model name -> price. These override the price table that ships with scvec.
    """

    ncbi: ServiceSettings = field(default_factory=ServiceSettings)
    mygene: ServiceSettings = field(default_factory=ServiceSettings)
    cellguide: ServiceSettings = field(default_factory=ServiceSettings)
    openai: ServiceSettings = field(default_factory=ServiceSettings)
    prices: Mapping[str, Price] = field(default_factory=dict)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment and the config file (see :func:`config_path`); the environment wins.

        Raises
        ------
        InputError
            If the file cannot be read, or a setting is unknown or not valid.
        """
        environ = os.environ if environ is None else environ
        path = config_path(environ)
        data = _read(path, required="SCVEC_CONFIG" in environ)
        unknown = set(data) - {*_ENVIRONMENT, "prices"}
        if unknown:
            listed = ", ".join((*_ENVIRONMENT, "prices"))
            raise InputError(
                f"the config has an unknown table {min(unknown)!r}", str(path), f"known: {listed}"
            )
        services = {name: _service(name, _table(data, name, path), environ, path) for name in _ENVIRONMENT}
        return cls(prices=_prices(_table(data, "prices", path), path), **services)


def config_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return the config file's path: ``$SCVEC_CONFIG``, else ``config.toml`` in the user's config folder."""
    environ = os.environ if environ is None else environ
    if environ.get("SCVEC_CONFIG"):
        return Path(environ["SCVEC_CONFIG"]).expanduser()
    from platformdirs import user_config_path

    return user_config_path("scvec", appauthor=False) / "config.toml"


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            what = "the config file does not exist"
            raise InputError(what, str(path), "unset SCVEC_CONFIG", code="file-not-found") from None
        return {}
    except (OSError, ValueError) as error:
        # The parser's message is left out: it may quote a line with a key.
        fix = "correct it: it is TOML, with tables [ncbi], [mygene], [openai], [prices]"
        raise InputError("the config file cannot be read", str(path), fix, code="wrong-format") from error


def _table(data: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = data.get(name, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{name} must be a table", str(path), f"write it as [{name}]")
    return found


def _service(name: str, table: Mapping[str, Any], environ: Mapping[str, str], path: Path) -> ServiceSettings:
    unknown = set(table) - _KEYS
    if unknown:
        fix = f"known: {', '.join(sorted(_KEYS))}"
        raise InputError(f"unknown setting {min(unknown)!r} in [{name}]", str(path), fix)
    values: dict[str, Any] = dict(table)
    for key, variable in _ENVIRONMENT[name].items():
        if environ.get(variable, "").strip():
            values[key] = environ[variable].strip()
    for key in ("requests_per_second", "timeout"):
        value = values.get(key)
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 1e6):
            raise InputError(f"{key} in [{name}] must be a number", str(path), "0 or more")
    for key in ("api_key", "email", "tool", "base_url"):
        if not isinstance(values.get(key, ""), str):
            raise InputError(f"{key} in [{name}] must be a string", str(path), f'write {key} = "..."')
    values["api_key"] = Secret(values.get("api_key", ""))
    return ServiceSettings(**values)


def _prices(table: Mapping[str, Any], path: Path) -> dict[str, Price]:
    prices = {}
    for model, value in table.items():
        try:
            prices[model] = Price(**{k: float(v) for k, v in dict(value).items()})
        except (TypeError, ValueError) as error:
            fix = f'write [prices."{model}"] with input = and output = dollars per million tokens'
            raise InputError(f"the price of {model!r} cannot be read", str(path), fix) from error
    return prices


def is_loopback(host: str) -> bool:
    """Return whether a host name or address refers to this machine."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    return host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost")

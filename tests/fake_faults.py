"""What goes wrong with the requests to a fake server, and when."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from aiohttp import web

#: Faults that need no handler.
GENERIC = ("429", "429-after", "429-date", "429-ms", "500", "503", "timeout", "reset", "drip", "malformed")
#: Generic faults that pass quickly: none of them waits for a time-out of the client.
QUICK = ("429", "429-after", "429-date", "429-ms", "500", "503", "reset", "malformed")


class Faults:
    """Says which fault the next request meets, or None."""

    def __init__(self, draw: Callable[[int], str | None]) -> None:
        self._draw = draw
        self.n_drawn = 0

    def next(self) -> str | None:
        self.n_drawn += 1
        return self._draw(self.n_drawn - 1)

    @classmethod
    def none(cls) -> Faults:
        return cls(lambda n: None)

    @classmethod
    def always(cls, kind: str | None) -> Faults:
        return cls(lambda n: kind)

    @classmethod
    def script(cls, kinds: Iterable[str | None], then: str | None = None) -> Faults:
        """One fault after the other, then ``then`` for ever."""
        listed = list(kinds)
        return cls(lambda n: listed[n] if n < len(listed) else then)

    @classmethod
    def after(cls, n_good: int, kind: str) -> Faults:
        """``n_good`` requests are answered, all later ones meet the fault."""
        return cls(lambda n: kind if n >= n_good else None)

    @classmethod
    def random(cls, share: float, seed: int = 0, kinds: Sequence[str] = QUICK) -> Faults:
        rng = random.Random(seed)
        return cls(lambda n: rng.choice(kinds) if rng.random() < share else None)


def key_of(request: web.Request) -> str:
    """The key that a request shows, or ""."""
    body = request["body"]
    key = str(body.get("api_key", "")) if isinstance(body, dict) else ""
    return key or request.headers.get("Authorization", "").removeprefix("Bearer ")


def status_fault(request: web.Request) -> web.Response | None:
    """The answer to a fault that is nothing but a status, for handlers."""
    status = {"400": 400, "401": 401, "403": 403, "404": 404, "413": 413, "414": 414, "422": 422}
    if request["fault"] not in status:
        return None
    # Like NCBI, say the key back: what shows this body shows the key.
    body = {"error": f"refused ({request['fault']})", "api-key": key_of(request)}
    return web.json_response(body, status=status[request["fault"]])

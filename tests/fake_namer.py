"""A fake chat server that answers questions about groups of cells: truly, or as liars do.

with FakeServer(extra=[namer(honest)]) as server:
    ...  # base_url = f"{server.url}/v1"
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from fake_openai import fake_tokens, refusal
from fake_server import FakeServer

#: The group that is told -> what the model writes, or a whole message.
Says = Callable[[dict[str, Any]], Any]


def answer(id: str = "none", **fields: Any) -> str:
    """An answer of the right form; ``fields`` in place of its own."""
    return json.dumps({"id": id, "term": "", "confidence": 0.9, "genes": [], "reason": "", **fields})


def first_gene(told: dict[str, Any]) -> list[str]:
    return [told["genes"][0]["symbol"]]


def by_name(name: str) -> Says:
    """Chooses the candidate of this name, wherever it stands; none where there is none."""

    def says(told: dict[str, Any]) -> str:
        ids = [c["id"] for c in told["candidates"] if c["name"] == name]
        return answer(ids[0] if ids else "none", genes=first_gene(told), reason=f"They are of {name}s.")

    return says


def namer(says: Says, *, finish: str = "stop", refuses: tuple[str, ...] = ()) -> Any:
    """Routes that answer each question by ``says``; ``refuses``: types of response_format."""

    def add(app: web.Application, server: FakeServer) -> None:
        async def chat(request: web.Request) -> web.Response:
            if (refused := refusal(request)) is not None:
                return refused
            body = request["body"]
            form = body.get("response_format", {}).get("type", "text")
            if form in refuses:
                return web.json_response({"error": {"message": f"no response_format {form}"}}, status=400)
            user = next(m["content"] for m in body["messages"] if m["role"] == "user")
            said = says(json.loads(user.split("\n", 1)[1]))
            message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
            n_in = sum(fake_tokens(m["content"]) for m in body["messages"])
            usage = {"prompt_tokens": n_in, "completion_tokens": fake_tokens(str(said))}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return web.json_response({"model": "fake-1", "choices": [choice], "usage": usage})

        app.router.add_post("/v1/chat/completions", chat)

    return add

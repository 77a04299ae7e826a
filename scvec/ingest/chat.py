"""Ask a chat model for one JSON object, in whichever manner its server understands."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scvec.ingest.budget import Budget
from scvec.ingest.sources.openai import LlmError, LlmService
from scvec.ingest.sources.tokens import count_tokens
from scvec.secrets import redact

__all__ = ["Chat", "Reply", "is_reasoning", "prompt_tokens"]

Format = Literal["json_schema", "json_object", "text"]
#: Tokens that servers add around the messages: roles, separators, the schema.
AROUND = 120


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, unchecked, and what that took."""

    content: str
    refusal: str
    finish_reason: str
    model: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class _Manner:
    """What the server is asked for besides the messages."""

    format: Format = "json_schema"
    temperature: bool = True
    limit: str = "max_completion_tokens"


class Chat:
    """One model on one server.

    It is first asked for an answer that a JSON schema describes, with temperature 0. What the server refuses
    is left away from then on: the schema, then JSON mode, the temperature, the newer name of the limit.

    Parameters
    ----------
    service
        Entered before :meth:`ask`.
    schema
        JSON schema of the answer.
    budget
        Pays every call that was answered.

    Attributes
    ----------
    notes
        What was left away.
    """

    def __init__(self, service: LlmService, model: str, schema: Mapping[str, Any], budget: Budget) -> None:
        self.service, self.model, self.schema, self.budget = service, model, schema, budget
        self.notes: list[str] = []
        self._manner = _Manner()
        # Servers other than OpenAI's know the older name, not all the newer one.
        if not service.is_openai:
            self._manner = _Manner(limit="max_tokens")
        self._answered = False
        self._renamed = False
        self._refused: LlmError | None = None
        self._first = asyncio.Lock()

    @property
    def format(self) -> Format:
        """How JSON is asked for now."""
        return self._manner.format

    async def ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Reply:
        """Return the model's answer to some messages.

        Raises
        ------
        ServiceError
            If there is none. Of kind ``address`` if the server, which never answered before, refuses even the
            plainest request.
        BudgetSpentError
            If it might cost more than is left.
        """
        if self._answered:
            return await self._ask(messages, max_tokens)
        # One task finds out what the server understands; the others wait for it.
        async with self._first:
            if self._refused is not None:
                raise self._refused
            reply = await self._ask(messages, max_tokens)
            self._answered = True
            return reply

    async def _ask(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Reply:
        while True:
            manner = self._manner
            try:
                return await self.service.call(lambda m=manner: self._once(messages, max_tokens, m))  # type: ignore[misc]
            except LlmError as error:
                if error.kind != "rejected":
                    raise
                if self._manner == manner and not self._plainer(error.reason):
                    if self._answered or error.status == 413:
                        raise
                    self._refused = LlmError("address", error.reason, status=error.status)
                    raise self._refused from None

    def _plainer(self, reason: str) -> bool:
        """Leave away what was refused; False if there is nothing left to leave away."""
        manner, said = self._manner, reason.lower()
        if "temperature" in said and manner.temperature:
            self._manner = dataclasses.replace(manner, temperature=False)
            self.notes.append(f"{self.model} takes no temperature: answers vary from run to run")
        elif ("max_tokens" in said or "max_completion_tokens" in said) and not self._renamed:
            other = "max_tokens" if manner.limit == "max_completion_tokens" else "max_completion_tokens"
            self._manner, self._renamed = dataclasses.replace(manner, limit=other), True
        elif manner.format == "json_schema":
            self._manner = dataclasses.replace(manner, format="json_object")
            self.notes.append(f"{self.service.host} takes no JSON schema: JSON mode was used")
        elif manner.format == "json_object":
            self._manner = dataclasses.replace(manner, format="text")
            self.notes.append(f"{self.service.host} has no JSON mode: JSON was asked for in words")
        else:
            return False
        return True

    async def _once(self, messages: Sequence[Mapping[str, str]], max_tokens: int, manner: _Manner) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(m) for m in messages],
            manner.limit: max_tokens,
        }
        if manner.temperature:
            body["temperature"] = 0
        if manner.format == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": dict(self.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif manner.format == "json_object":
            body["response_format"] = {"type": "json_object"}
        expected = prompt_tokens(messages, self.model)
        reserve = self.budget.reserve(expected, max_tokens)
        sent = True
        try:
            answer = await self.service.send("/chat/completions", body)
            reply = _read(answer, self.service.host, expected, self.model)
            reserve.settle(reply.tokens_in, reply.tokens_out)
        except LlmError as error:
            sent = error.may_cost
            if error.status == 404:  # no such model, or nothing at this address: no gene will do
                raise LlmError("address", error.reason, status=404) from None
            raise
        finally:
            # Settled, this does nothing. Cancelled (Ctrl-C) the call may be counted all the same.
            reserve.keep() if sent else reserve.release()
        return reply


def is_reasoning(model: str) -> bool:
    """Whether a model of OpenAI thinks before it answers, in tokens that count and are not shown."""
    name = model.removeprefix("openai/")
    return name.startswith(("o1", "o3", "o4")) or (name.startswith("gpt-5") and "chat" not in name)


def prompt_tokens(messages: Sequence[Mapping[str, str]], model: str) -> int:
    """Return the most tokens that some messages are."""
    return count_tokens([m["content"] for m in messages], model).total + AROUND


def _read(answer: Mapping[str, Any], host: str, expected: int, model: str) -> Reply:
    """Check the shape of a chat completion; nothing in it is trusted."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    if not isinstance(first, dict) or not isinstance(message, dict) or not isinstance(content, str | None):
        reason = f"the answer of {host} is no chat completion"
        raise LlmError("transient", reason, status=200, may_cost=True)
    content = content or ""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        content=content,
        refusal=_plain(message.get("refusal")),
        finish_reason=_plain(first.get("finish_reason")),
        model=_plain(answer.get("model")),
        tokens_in=_count(usage.get("prompt_tokens"), expected),
        # Where the server says nothing, count what came.
        tokens_out=_count(usage.get("completion_tokens"), count_tokens([content], model).total),
    )


def _count(value: object, otherwise: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10_000_000
    return value if good else otherwise  # type: ignore[return-value]


def _plain(value: object, limit: int = 100) -> str:
    text = redact(value[:4000]) if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]

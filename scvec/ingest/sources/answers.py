"""Answers of language models, which are untrusted: a source that asks for them, and their checks."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from scvec.base.types import Answer, Failure, Job
from scvec.ingest.sources.openai import Chat, LlmService, Reply, is_reasoning
from scvec.ingest.sources.prices import Budget
from scvec.ingest.sources.retry import ServiceError

__all__ = ["ChatSource", "Question", "UnfitError", "foreign", "json_object", "prompted", "tidy", "whole"]


class UnfitError(ValueError):
    """An answer was rejected. The message never quotes the answer."""


_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]*://|\bwww\.|\bdoi\b|\b(?:mailto|javascript|data):|\S@\S+\.\w|"
    r"\b[a-z0-9-]+\.(?:com|org|net|gov|edu|info|html?|php|io|ai|dev|app)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"`|\*\*|__|^\s*#{1,6}\s|^\s*[-*•·]\s|^\s*\d{1,2}[.)]\s|\]\(|</?[a-z!]|<\||&#?\w{1,8};|[{}\\|]|~~",
    re.IGNORECASE | re.MULTILINE,
)
_COMMANDS = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.]{0,40}\b(?:previous|prior|above|earlier|all|any|"
    r"rules?|instructions?|prompts?)\b|\binstructions?\b|\bsystem prompt\b|\byou(?:r|rs|rself|'re)?\b|"
    r"\bplease\b|\bclick\b|\bdownload\b|\bsubscribe\b|\bpassword|\bcredentials?\b|\bapi[ _-]?keys?\b|"
    r"^\s*(?:system|user|assistant|human|ai)\s*:",
    re.IGNORECASE | re.MULTILINE,
)


def foreign(text: str) -> str:
    """Return, in words, what in a text cannot be a fact of biology; empty if there is nothing."""
    for pattern, what in (
        (_ADDRESS, "an address"),
        (_MARKUP, "markup or code"),
        (_COMMANDS, "instructions, or speaks to its reader"),
    ):
        if pattern.search(text):
            return what
    return ""


def json_object(content: str, fields: Collection[str], *, most: int) -> dict[str, Any]:
    """Return the first JSON object in a text, if it has these fields and no others.

    Parameters
    ----------
    most
        Number of characters of the text that are parsed.
    """
    content = content[:most]
    start = content.find("{")
    if start < 0:
        raise UnfitError("the answer has no JSON object")
    try:
        found, _ = json.JSONDecoder(object_pairs_hook=_once_each).raw_decode(content, start)
    except UnfitError:
        raise
    except (ValueError, RecursionError):
        raise UnfitError("the JSON of the answer cannot be read") from None
    if not isinstance(found, dict) or set(found) != set(fields):
        raise UnfitError("the JSON object of the answer does not have exactly the requested fields")
    return found


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise UnfitError("the JSON object repeats a field")
    return dict(pairs)


def whole(reply: Reply) -> str:
    """Return the text of a complete reply; raise UnfitError otherwise."""
    if reply.refusal:
        raise UnfitError("the model refused to answer")
    if reply.finish_reason == "length":
        raise UnfitError("the answer was cut off at the token limit")
    if reply.finish_reason != "stop":
        filtered = reply.finish_reason == "content_filter"
        raise UnfitError("the answer was filtered" if filtered else "the answer is incomplete")
    if not reply.content.strip():
        raise UnfitError("the answer is empty")
    return reply.content


def tidy(text: str, limit: int) -> str:
    """Return a text on one line, without control characters, of at most ``limit`` characters."""
    kept = text[: 4 * limit]
    if not kept.isprintable():
        kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in kept)
    return " ".join(kept.split())[:limit].rstrip()


class Question(Protocol):
    """A question of one job to a chat model."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON schema of an answer."""
        ...

    def messages(self, reason: str = "") -> list[dict[str, str]]:
        """Return the messages; ``reason`` says why an earlier answer could not be used."""
        ...

    def read(self, reply: Reply) -> Any:
        """Return the content of a reply; raise UnfitError if it cannot be used."""
        ...


def prompted(prompt: str, question: str, reason: str = "") -> list[dict[str, str]]:
    """Return messages: the prompt, the question, and why an earlier answer could not be used."""
    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": question}]
    if reason:
        # The earlier answer is not sent back, because it may contain instructions.
        text = f"An earlier answer could not be used: {reason}. Answer anew, in the form asked for."
        messages.append({"role": "user", "content": text})
    return messages


Q = TypeVar("Q", bound=Question)


class ChatSource(Generic[Q]):
    """A chat model as a source of answers (:class:`~scvec.ingest.sources.run.Source`).

    It is an async context manager that enters the service. ``budget`` pays all attempts. A reply that cannot
    be used is requested again. It is kept if a later call fails and the job is repeated.
    """

    batch_size = 1
    #: Largest number of replies to a job.
    tries: ClassVar[int]
    #: Limit on tokens of a reply in the first attempt, and in any attempt; hidden reasoning counts too.
    limits: ClassVar[tuple[int, int]]
    limits_reasoning: ClassVar[tuple[int, int]] = (4000, 16_000)

    def __init__(self, service: LlmService, model: str, questions: Mapping[Job, Q], budget: Budget) -> None:
        self.service, self.model, self.questions, self.budget = service, model, questions, budget
        self.caller = service.caller
        self.n_unfit = 0
        self._chat = Chat(service, model, {}, budget)
        self._begun: dict[Job, list[Reply]] = {}

    async def __aenter__(self) -> Self:
        await self.service.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.service.__aexit__(*exc)

    @property
    def notes(self) -> list[str]:
        """Notes on unsupported features of the server, and the number of rejected answers."""
        rejected = f"{self.n_unfit:,} answers were rejected and requested again"
        return [*self._chat.notes, *([rejected] if self.n_unfit else [])]

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        """Ask for answers, one at a time."""
        done = [await self._ask(job, self.questions[job]) for job in jobs]
        return [d for d in done if isinstance(d, Answer)], [d for d in done if isinstance(d, Failure)]

    def kept(self, reply: Reply) -> Reply:
        """Return the parts of a reply to keep."""
        return reply

    def outcome(self, job: Job, question: Q, replies: Sequence[Reply], reason: str) -> Answer | Failure:
        """Return the outcome of a job; ``reason`` says why the last reply cannot be used, if it cannot."""
        raise NotImplementedError

    async def _ask(self, job: Job, question: Q) -> Answer | Failure:
        limit, most = self.limits_reasoning if is_reasoning(self.model) else self.limits
        replies = self._begun.setdefault(job, [])
        reason = _unfit(question, replies[-1]) if replies else ""
        while len(replies) < self.tries:
            try:
                reply = await self._chat.ask(question.messages(reason), limit, question.schema)
            except ServiceError as error:
                if error.kind == "rejected":
                    return Failure(job, error.reason, attempts=len(replies) + 1)
                raise
            replies.append(self.kept(reply))
            reason = _unfit(question, replies[-1])
            if not reason:
                break
            self.n_unfit += len(replies) < self.tries
            if reply.finish_reason == "length":
                limit = min(2 * limit, most)
        return self.outcome(job, question, replies, reason)


def _unfit(question: Question, reply: Reply) -> str:
    """Return the reason why a reply cannot be used; empty if it can."""
    try:
        question.read(reply)
    except UnfitError as error:
        return str(error)
    return ""

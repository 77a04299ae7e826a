"""Options of workflows, given as an options object or as keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from scvec.base.errors import did_you_mean

__all__ = ["options_of", "takes_options"]

O = TypeVar("O")  # noqa: E741
F = TypeVar("F", bound=Callable[..., Any])


def options_of(kind: type[O], options: O | None, keywords: Mapping[str, Any]) -> O:
    """Return an options object in which keywords replace fields.

    Parameters
    ----------
    kind
        Dataclass of the options; all its fields are keyword-only.
    options
        Object of that class; None makes a new one from the keywords.
    keywords
        Field name -> value.

    Raises
    ------
    TypeError
        If ``options`` is of another class, a keyword is not a field, or a required field is missing.
    """
    if options is not None and not isinstance(options, kind):
        raise TypeError(f"options are a {kind.__name__} object, not {type(options).__name__}")
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in keywords:
        if name not in names:
            hint = did_you_mean(name, names).strip() or f"options: {', '.join(names)}"
            raise TypeError(f"there is no option {name!r}: {hint}")
    return kind(**keywords) if options is None else replace(options, **keywords)  # type: ignore[type-var]


def takes_options(kind: type[Any]) -> Callable[[F], F]:
    """Return a decorator that shows the fields of an options class in the signature of a function.

    ``help()``, ``inspect.signature`` and completion in notebooks then list the fields in place of
    ``**keywords``. A parameter of the function hides a field of the same name. A required field has the
    default ``...``, because the options object may hold it.
    """

    def show(function: F) -> F:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {p.name for p in kept}
        more = [
            p.replace(default=...) if p.default is p.empty else p
            for p in inspect.signature(kind).parameters.values()
            if p.name not in names
        ]
        function.__signature__ = own.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
        return function

    return show

"""What ``-vv`` shows: the log of scvec and of the libraries that talk to services, without keys."""

from __future__ import annotations

import logging
import sys

__all__ = ["show_logs"]

#: Loggers of which every word is shown; of others, what is worth a warning.
TALKATIVE = ("scvec", "aiohttp", "openai", "httpx", "httpx2", "httpcore", "httpcore2")


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        from scvec.base.secrets import redact

        # After formatting, so that arguments and tracebacks are covered too.
        return redact(super().format(record))


def show_logs() -> None:
    """Write logs to stderr; a second call does nothing."""
    root = logging.getLogger()
    if any(isinstance(h.formatter, _Redacting) for h in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(relativeCreated)8.0f ms %(name)s: %(message)s"))
    root.addHandler(handler)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.DEBUG)

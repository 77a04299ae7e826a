"""Child process for one job or for searches: ``python -m scvec.web.child`` with requests on stdin.

Only this process reads uploaded files, with limits on memory, time and disk. It writes messages to stdout as
lines of JSON: ``{"stage", "done", "total"}`` for progress, and finally ``{"result"}`` or ``{"error"}``. It
ends when stdin closes, which also happens when the server is killed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

__all__ = ["FILES", "main"]

#: Result files of a job -> media type.
FILES = {
    "annotated.h5ad": "application/x-hdf5",
    "labels.csv": "text/csv; charset=utf-8",
    "report.html": "text/html; charset=utf-8",
    "report.json": "application/json",
    "annotate.sh": "text/x-shellscript; charset=utf-8",
}
UPLOAD = "upload"
#: Formats of uploads. R's files are left out: what parses them is Python without bounds of its own.
UPLOADED = ("h5ad", "10x", "loom", "h5mu", "table")


def requests() -> queue.SimpleQueue[str]:
    """Return a queue of the lines of stdin. When stdin closes, the process ends at once."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        # os.read, because a thread blocked in sys.stdin would delay the end of the interpreter.
        rest = b""
        while chunk := os.read(0, 1 << 16):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode())
        os._exit(1)

    threading.Thread(target=read, name="scvec-parent", daemon=True).start()
    return lines


def end_with_stdin() -> None:
    """Let the system end this process when stdin closes, even while a library blocks all Python threads."""
    try:
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        # Any event on stdin now sends SIGIO, which ends the process. Only the end of stdin is still expected.
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError):
        return  # then the thread of requests() ends the process, perhaps a little later


def limit(memory: int, n_bytes: int, seconds: float | None) -> None:
    """Limit memory, file size and CPU time of this process, if the system supports it.

    Parameters
    ----------
    memory
        Memory in bytes.
    n_bytes
        Largest size of a written file, in bytes.
    seconds
        Wall-clock limit of the job, from which the limit on CPU time follows; None for no limit.
    """
    try:
        import resource
    except ImportError:  # Windows; the parent process still watches memory and time
        return
    bounds = {
        "RLIMIT_CORE": 0,
        # Twice the limit, because memory may be reserved without being used. The parent watches its use.
        "RLIMIT_DATA": 2 * memory,
        "RLIMIT_FSIZE": n_bytes,
    }
    if seconds is not None:
        bounds["RLIMIT_CPU"] = int(seconds) * 4 + 60
    for name, value in bounds.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        hard = resource.getrlimit(number)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(number, (wanted, wanted))
        except (OSError, ValueError):
            continue


def annotate(request: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Annotate the upload and write the result files; return the summary of the annotation."""
    from scvec.base.errors import InputError
    from scvec.ingest.cells.readers import kind_of

    folder = Path(request["folder"])
    # The query checks the file, too. Here the check runs before large libraries are loaded.
    tell({"stage": "checking the file", "done": 0, "total": None})
    kind = kind_of(folder / UPLOAD, int(request["memory"]) // 2)
    if kind not in UPLOADED:
        raise InputError(
            f"the server reads no files of the format {kind}",
            str(folder / UPLOAD),
            "upload an h5ad, h5mu or loom file, an .h5 of Cell Ranger or a table of text, or use scvec query",
            code="wrong-format",
        )
    from scvec.ingest.cells.write import write_tables
    from scvec.model.query_options import QueryOptions
    from scvec.workflows.query import query_one as query

    options = QueryOptions(
        **request["options"],
        output=folder / "annotated.h5ad",
        report=folder / "report.html",
        title=request["name"],
        # The other half is for everything except reading the file.
        memory=int(request["memory"]) // 2,
    )
    found = query(
        request["store"],
        folder / UPLOAD,
        options,
        progress=lambda stage, done, total, detail="": tell({"stage": stage, "done": done, "total": total}),
    )
    write_tables((part.rename_axis("cell") for part in found.tables()), folder / "labels.csv")
    (folder / "annotate.sh").write_text(request["script"], encoding="utf-8")
    summary = found.to_dict()
    summary.pop("output")
    summary.pop("report")
    return summary


def search(request: dict[str, Any]) -> dict[str, Any]:
    """Search genes or cells; return the report."""
    if request["verb"] == "genes":
        from scvec.workflows.search_genes import search_genes

        return search_genes(request["store"], request["text"], **request["options"]).to_dict()
    from scvec.workflows.search_cells import search_cells

    return search_cells(request["store"], request["text"], **request["options"]).to_dict()


def main() -> None:
    """Process requests from stdin: one job, or any number of searches."""
    lines = requests()
    out = sys.stdout
    # Output that a library prints must not appear among the messages.
    sys.stdout = sys.stderr

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, allow_nan=False) + "\n")
        out.flush()

    from scvec.base.errors import ResourceError, ScvecError
    from scvec.base.results import plain

    while True:
        request = json.loads(lines.get())
        is_job = request["what"] == "job"
        if is_job:
            end_with_stdin()
        limit(int(request["memory"]), int(request["n_bytes"]), request["seconds"] if is_job else None)
        try:
            tell({"result": plain(annotate(request, tell) if is_job else search(request))})
        except ScvecError as error:
            tell({"error": error.body(), "exit_code": error.exit_code})
        except MemoryError:
            too_large = ResourceError(f"the {request['what']} needs more memory than its limit")
            tell({"error": too_large.body(), "exit_code": too_large.exit_code})
        except Exception as error:  # report bugs as messages, too
            bug = ScvecError(f"this is a bug in scvec: {type(error).__name__}", code="bug")
            tell({"error": bug.body(), "exit_code": bug.exit_code})
            traceback.print_exc()
        if is_job:
            return


if __name__ == "__main__":
    main()

"""A job, or searches, in a process of their own: ``python -m scvec.web.child`` with requests on stdin.

A file that somebody uploads is read here and nowhere else, under limits. What happens is told on stdout, a
line of JSON each: ``{"stage", "done", "total"}``, and at last ``{"result"}`` or ``{"error"}``. The
process ends when stdin closes, thus with the server, however that ends.
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

#: What a job leaves behind, and what each is.
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
    """Return the lines of stdin as they come; when it closes, this process ends, whatever it does then."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        # Bytes from the system: a thread that waits in sys.stdin would hold up the end of the interpreter.
        rest = b""
        while chunk := os.read(0, 1 << 16):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                lines.put(line.decode())
        os._exit(1)

    threading.Thread(target=read, name="scvec-parent", daemon=True).start()
    return lines


def end_with_stdin() -> None:
    """Let the system end this process when stdin closes, also where a library does not let threads run."""
    try:
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        # SIGIO, which ends a process, comes with whatever happens to stdin: nothing but its end is to come.
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError):
        return  # the thread of requests() does so a little later


def limit(memory: int, n_bytes: int, seconds: float | None) -> None:
    """Keep this process within its bounds, as far as the system can."""
    try:
        import resource
    except ImportError:  # not on Windows; the parent watches all the same
        return
    bounds = {
        "RLIMIT_CORE": 0,
        # What a file claims is mapped before it is filled: what is watched by the parent is what is filled.
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
    """Annotate the upload and write the files of the job; returns the summary of the annotation."""
    from scvec.base.errors import InputError
    from scvec.ingest.cells.readers import kind_of

    folder = Path(request["folder"])
    # The query does so too; here it comes before anything large is loaded.
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
        # Half is left for what is not the reading of the file.
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
    """Search genes or cells; returns the report."""
    if request["verb"] == "genes":
        from scvec.workflows.search_genes import search_genes

        return search_genes(request["store"], request["text"], **request["options"]).to_dict()
    from scvec.workflows.search_cells import search_cells

    return search_cells(request["store"], request["text"], **request["options"]).to_dict()


def main() -> None:
    """Read requests, do them, and tell how it went; one job, or searches without end."""
    lines = requests()
    out = sys.stdout
    # Whatever a library prints must not look like a message.
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
            wants = ResourceError(f"the {request['what']} needs more memory than it may use")
            tell({"error": wants.body(), "exit_code": wants.exit_code})
        except Exception as error:  # a bug must end as a message, too
            bug = ScvecError(f"this is a bug in scvec: {type(error).__name__}", code="bug")
            tell({"error": bug.body(), "exit_code": bug.exit_code})
            traceback.print_exc()
        if is_job:
            return


if __name__ == "__main__":
    main()

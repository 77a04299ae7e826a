"""One job, in a process of its own: ``python -m scvec.web.child`` with a request on stdin.

A file that somebody uploads is read here and nowhere else, under limits. What happens is told on stdout, a
line of JSON each: ``{"stage", "done", "total"}``, and at last ``{"result"}`` or ``{"error"}``.
"""

from __future__ import annotations

import json
import sys
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
UPLOAD = "upload.h5ad"


def limit(memory: int, seconds: float, n_bytes: int) -> None:
    """Keep this process within its bounds, as far as the system can."""
    try:
        import resource
    except ImportError:  # not on Windows; the parent watches all the same
        return
    bounds = {
        "RLIMIT_CORE": 0,
        # What a file claims is mapped before it is filled: what is watched by the parent is what is filled.
        "RLIMIT_DATA": 2 * memory,
        "RLIMIT_CPU": int(seconds) * 4 + 60,
        "RLIMIT_FSIZE": n_bytes,
    }
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
    from scvec.ingest.cells.readers.checks import check_h5ad

    folder = Path(request["folder"])
    # The query does so too; here it comes before anything large is loaded.
    tell({"stage": "checking the file", "done": 0, "total": None})
    check_h5ad(folder / UPLOAD, memory=int(request["memory"]) // 2)
    from scvec.ingest.cells.write import write_tables
    from scvec.model.query_options import QueryOptions
    from scvec.workflows.query import query_one

    options = QueryOptions(
        **request["options"],
        output=folder / "annotated.h5ad",
        report=folder / "report.html",
        title=request["name"],
        # Half is left for what is not the reading of the file.
        memory=int(request["memory"]) // 2,
    )
    found = query_one(
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


def main() -> None:
    """Read a request, do it, and tell how it went."""
    request = json.loads(sys.stdin.readline())
    out = sys.stdout
    # Whatever a library prints must not look like a message.
    sys.stdout = sys.stderr

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, allow_nan=False) + "\n")
        out.flush()

    limit(int(request["memory"]), float(request["seconds"]), int(request["n_bytes"]))
    from scvec.base.errors import ResourceError, ScvecError
    from scvec.base.results import plain

    try:
        tell({"result": plain(annotate(request, tell))})
    except ScvecError as error:
        tell({"error": error.body()})
    except MemoryError:
        tell({"error": ResourceError("the job needs more memory than it may use").body()})
    except Exception as error:  # a bug must end as a message, too
        what = f"this is a bug in scvec: {type(error).__name__}"
        tell({"error": {"code": "bug", "what": what, "where": "", "fix": ""}})
        raise


if __name__ == "__main__":
    main()

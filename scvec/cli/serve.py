"""``scvec serve`` and ``scvec mcp``: the store for browsers, programs and assistants."""

from __future__ import annotations

import json
from pathlib import Path

import click

from scvec.cli.options import FilePath, Session, global_options, memory_option, pass_session

__all__ = ["mcp", "serve"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 for any free one.",
)
@click.option(
    "--token/--no-token", default=True, show_default=True, help="Require the token of the printed address."
)
@click.option(
    "--max-upload", default="2G", show_default=True, metavar="SIZE", help="Largest size of an uploaded file."
)
@click.option(
    "--memory", metavar="SIZE", help="Memory of a job, such as 4G.  [default: half of the free memory]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of a job or a search.",
)
@global_options
@pass_session
def serve(
    session: Session, host: str, port: int, token: bool, max_upload: str, memory: str | None, timeout: float
) -> None:
    """Start a web page for annotation and searches.

    The page annotates files of cells and searches genes and cells. Programs can use the REST interface.

    \b
    Examples:
      scvec serve
      scvec serve --port 0 --max-upload 500M
    """
    from scvec.web.server import serve as run

    def announce(address: str) -> None:
        click.echo(json.dumps({"url": address}) if session.as_json else f"open {address}")

    run(
        session.store,
        host=host,
        port=port,
        token=token,
        max_upload=max_upload,
        memory=memory,
        timeout=timeout,
        announce=announce,
    )


@click.command()
@click.option(
    "--root",
    type=FilePath(),
    required=True,
    metavar="FOLDER",
    help="The only folder whose files may be read.",
)
@click.option("--allow-write", is_flag=True, help="Let annotate_file write new files in the folder.")
@click.option(
    "--max-file", default="2G", show_default=True, metavar="SIZE", help="Largest file that is read."
)
@memory_option
@global_options
@pass_session
def mcp(session: Session, root: Path, allow_write: bool, max_file: str, memory: str | None) -> None:
    """Let an assistant use scvec through the Model Context Protocol.

    A client starts this command and communicates on stdin and stdout (docs/mcp.md). Needs the extra mcp.

    \b
    Example:
      scvec mcp --root ~/cells
    """
    from scvec.web.mcp import serve_mcp

    serve_mcp(session.store, root, allow_write=allow_write, max_file=max_file, memory=memory)

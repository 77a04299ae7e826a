"""``scvec demo``: annotate the cells that ship with scvec."""

from __future__ import annotations

from pathlib import Path

import click

from scvec.cli.options import Session, global_options, pass_session

__all__ = ["demo"]


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    metavar="DIR",
    help="Folder for the annotated files.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@global_options
@pass_session
def demo(session: Session, out: Path, seed: int) -> None:
    """Annotate real pancreas cells, of held-out donors and of mice, and compare with the true labels.

    These are pancreas cells of held-out donors and of mice. The output shows how many labels are right.
    The demo makes its store inside DIR, unless you give --store.

    \b
    Example:
      scvec demo --out demo-out
    """
    from scvec.workflows.demo import demo as demo_

    with session.progress() as progress:
        report = demo_(out, store=session.store_option, seed=seed, progress=progress)
    session.show(report)

"""``scvec demo``, ``scvec eval`` and ``scvec labels``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scvec.base.errors import InputError
from scvec.cli.options import (
    FilePath,
    Session,
    any_species_option,
    device_option,
    false_novel_option,
    global_options,
    layer_option,
    llm_option,
    memory_option,
    method_option,
    n_neighbors_option,
    novelty_option,
    pass_session,
    reference_option,
    unmatched_option,
    values_option,
    vectors_only_option,
    where_option,
)
from scvec.model.query_options import QueryOptions

__all__ = ["demo", "evaluate", "labels"]


@click.command()
@click.option(
    "--out",
    type=FilePath(),
    default=Path("demo-out"),
    show_default=True,
    metavar="DIR",
    help="Folder for the annotated files.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@global_options
@pass_session
def demo(session: Session, out: Path, seed: int) -> None:
    """Annotate real pancreas cells and compare with the true labels.

    The cells come from held-out human donors and from mice. The output shows how many labels are correct.
    The demo makes its store inside DIR, unless you give --store.

    \b
    Example:
      scvec demo --out demo-out
    """
    from scvec.workflows.demo import demo as demo_

    with session.progress() as progress:
        report = demo_(out, store=session.store_option, seed=seed, progress=progress)
    session.show(report)


@click.command()
@click.argument("reference")
@click.option(
    "--set", "set_", multiple=True, metavar="LABEL=CL:ID", help="Set the term of a label; may be repeated."
)
@click.option("--unset", multiple=True, metavar="LABEL", help="Remove the term of a label; may be repeated.")
@global_options
@pass_session
def labels(session: Session, reference: str, set_: tuple[str, ...], unset: tuple[str, ...]) -> None:
    """Show or change the Cell Ontology terms of the labels of REFERENCE.

    \b
    Examples:
      scvec labels pancreas
      scvec labels pancreas --set "B=CL:0000236" --unset "cluster 7"
    """
    from scvec.workflows.labels import labels as labels_

    wanted = {}
    for text in set_:
        # A label may hold an equals sign; an id does not.
        label, sign, cl_id = text.rpartition("=")
        if not sign or not label:
            raise InputError(
                f"{text!r} is not LABEL=CL:ID", "--set", 'write it like --set "B=CL:0000236"', code="bad-name"
            )
        wanted[label] = cl_id
    session.show(labels_(session.store, reference, set=wanted, unset=unset))


@click.command("eval")
@click.argument("query", metavar="QUERY", type=FilePath())
@click.option("--truth-key", required=True, metavar="COLUMN", help="Column of obs with the true labels.")
@reference_option
@click.option(
    "--label-map",
    type=FilePath(),
    metavar="FILE",
    help="Old and new labels, to merge labels: a JSON object, or a csv or tsv file with two columns.",
)
@click.option("-o", "--output", type=FilePath(), metavar="OUT.json", help="File for the numbers.")
@click.option(
    "--plot",
    type=FilePath(),
    metavar="OUT.png",
    help="File for a figure: .png, .pdf or .svg; needs matplotlib.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    metavar="FRACTION",
    help="Coverage of the label sets.",
)
@n_neighbors_option
@method_option
@vectors_only_option
@any_species_option
@layer_option
@values_option
@memory_option
@where_option
@false_novel_option
@novelty_option
@unmatched_option
@click.option("--force", is_flag=True, help="Continue even if few genes match.")
@device_option
@llm_option("Path of the language model of the reference, if it moved.")
@global_options
@pass_session
def evaluate(
    session: Session, /, query: Path, truth_key: str, label_map: Path | None, plot: Path | None, **chosen: Any
) -> None:
    """Annotate labelled cells and compare with the true labels of QUERY.

    \b
    Examples:
      scvec eval new.h5ad --truth-key cell_type --reference pancreas -o eval.json
      scvec eval new.h5ad --truth-key cell_type --label-map names.csv --plot eval.png
    """
    from scvec.workflows.evaluate import evaluate as evaluate_file

    with session.progress() as progress:
        report = evaluate_file(
            session.store,
            query,
            QueryOptions(**chosen),
            truth_key=truth_key,
            label_map=label_map,
            plot=plot,
            progress=progress,
        )
    session.show(report)

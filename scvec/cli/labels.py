"""``scvec labels``: what the labels of a reference are in the Cell Ontology."""

from __future__ import annotations

import click

from scvec.base.errors import InputError
from scvec.cli.options import Session, global_options, pass_session

__all__ = ["labels"]


@click.command()
@click.argument("reference")
@click.option(
    "--set",
    "set_",
    multiple=True,
    metavar="LABEL=CL:ID",
    help="Give a label this term; may be given several times.",
)
@click.option("--unset", multiple=True, metavar="LABEL", help="Leave a label without a term; several times.")
@global_options
@pass_session
def labels(session: Session, reference: str, set_: tuple[str, ...], unset: tuple[str, ...]) -> None:
    """Show which Cell Ontology term each label of REFERENCE stands for, and change some.

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
            raise InputError(f"{text!r} is not LABEL=CL:ID", "--set", 'write it like --set "B=CL:0000236"')
        wanted[label] = cl_id
    session.show(labels_(session.store, reference, set=wanted, unset=unset))

"""How long text vectors should be beside the learned residuals.

    python benchmarks/text_scale.py [--publish]

Head alone, so that the encoder is seen without the voices that do not depend on it.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from baron import pairs, score
from tables import markdown, publish

from scvec.encoders import Material, encoder
from scvec.encoders.adapted import AdaptedEncoder, AdaptedOptions
from scvec.encoders.statistics import Profile
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query

COLUMNS = ("pair", "text_scale", "accuracy", "macro_f1")
SCALES = (1.0, 0.3, 0.1, 0.03)


def register(scale: float) -> None:
    """Register the encoder ``adapted`` with another length of the text vectors: no user needs this option."""

    @encoder("adapted", texts="genes")
    class Scaled(AdaptedEncoder):
        @classmethod
        def new(cls, material: Material) -> AdaptedEncoder:
            profile = Profile.from_cells(material.cells.X, material.labels)
            return cls(material.gene_vectors, profile, options=AdaptedOptions(text_scale=scale))


def run() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair, (reference, new) in pairs().items():
            truth = new.obs["cell_type"].to_numpy().astype(str)
            for scale in SCALES:
                register(scale)
                ingest_cells(
                    folder,
                    [reference],
                    name="r",
                    label_key="cell_type",
                    batch_key="donor",
                    encoder="adapted",
                )
                found = query(folder, new, reference="r", method="head")
                values = score(truth, found.label, found.confidence)
                rows.append({"pair": pair, "text_scale": scale, **values})
    return rows


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    rows = run()
    print(markdown(COLUMNS, rows))
    if options.publish:
        publish("text_scale", "python benchmarks/text_scale.py --publish", COLUMNS, rows)


if __name__ == "__main__":
    main()

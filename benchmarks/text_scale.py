"""How long text vectors should be beside the learned residuals.

    python benchmarks/text_scale.py [--publish]

Head alone, so that the encoder is seen without the voices that do not depend on it.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

from baron import pairs, score
from tables import markdown, publish

from scvec import encoders as registry
from scvec.encoders.adapted import AdaptedEncoder
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query

COLUMNS = ("pair", "text_scale", "accuracy", "macro_f1")
SCALES = (1.0, 0.3, 0.1, 0.03)


def run() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair, (reference, new) in pairs().items():
            truth = new.obs["cell_type"].to_numpy().astype(str)
            for scale in SCALES:
                # The one place where another value can come in: users have no use for this option.
                registry.AdaptedEncoder = partial(AdaptedEncoder, text_scale=scale)  # type: ignore[misc]
                try:
                    ingest_cells(folder, [reference], name="r", label_key="cell_type", batch_key="donor")
                finally:
                    registry.AdaptedEncoder = AdaptedEncoder  # type: ignore[misc]
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

"""Make the references that ship with scvec: scvec/data/packs, from the cells that ship with it.

    python tools/build_references.py

Baron et al. 2016 (GSE84133): all human donors that ship, and all mice. The demo's labels are merged as they
are, nothing is left out. The same code, cells and libraries give the same files.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import scvec
from scvec.model.card import CardOptions
from scvec.workflows.pack import pack

OUT = Path(str(files("scvec"))) / "data" / "packs"
#: Name -> file of cells, batches, what the card and the list say.
REFERENCES = {
    "pancreas-human": ("baron_human.h5ad", "donor", "human pancreas, inDrop (Baron et al. 2016)"),
    "pancreas-mouse": ("baron_mouse.h5ad", "donor", "mouse pancreas, inDrop (Baron et al. 2016)"),
}
CARD = {
    "license": "MIT",
    "sources": (
        "Baron et al. 2016, Cell Systems 3:346-360, doi:10.1016/j.cels.2016.08.011",
        "GEO GSE84133, through the Python package came 0.1.13 (MIT)",
    ),
    "tissue": "pancreas",
    "assay": "inDrop",
}


def main() -> None:
    """Write the packs, compressed, and their list."""
    OUT.mkdir(exist_ok=True)
    listed = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (cells, batch, about) in REFERENCES.items():
            with as_file(files("scvec") / "data" / cells) as path:
                scvec.ingest_cells(folder, [path], name=name, label_key="cell_type", batch_key=batch)
            packed = Path(folder) / f"{name}.scvec"
            report = pack(folder, name, output=packed, card=CardOptions(**CARD))
            data = packed.read_bytes()
            # A pack is not compressed; what ships is, since every installation carries it.
            small = lzma.compress(data, preset=9)
            (OUT / f"{name}.scvec.xz").write_bytes(small)
            listed[name] = {
                "file": f"{name}.scvec.xz",
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "about": about,
            }
            print(f"{name}: {report.n_cells:,} cells, {len(data):,} bytes, {len(small):,} compressed")
    text = json.dumps(listed, indent=1, sort_keys=True)
    (OUT / "packs.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

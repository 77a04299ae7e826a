"""Read the RNA of a MuData file (.h5mu), which holds several AnnData objects."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pandas as pd

from scvec.base.errors import InputError, reading
from scvec.ingest.cells.readers import Contents, reader, unnamed
from scvec.ingest.cells.readers.anndata import contents_of_group, read_table
from scvec.ingest.cells.readers.checks import Given, hard_items

__all__ = ["read_h5mu"]

#: Names of modalities that are gene expression, in any case of their letters, best first.
_RNA = ("rna", "gex", "gene expression", "gene_expression", "expression", "scrna", "transcriptome", "genes")


def _is_mudata(given: Given) -> bool:
    return given.file is not None and "mod" in given.file and "X" not in given.file


@reader("h5mu", "an .h5mu file", sniff=_is_mudata, parts=("mod", "obs", "obsmap"))
def read_h5mu(given: Given, memory: int) -> Contents:
    """Read the gene expression of a checked, open MuData file, with the obs columns of all modalities.

    Raises
    ------
    InputError
        If there is no modality, or none of several is gene expression.
    """
    file, path = given.hdf5, str(given.path)
    with reading(path, "mod"):
        parts = {n: g for n, g in hard_items(file["mod"]).items() if isinstance(g, h5py.Group) and "var" in g}
    name = _expression(parts, path, memory)
    contents = contents_of_group(parts[name], given.path, memory)
    contents.close = file.close
    others = ", ".join(other for other in parts if other != name)
    note = f"read {name} of the MuData file" + (f", not {others}" if others else "")
    contents.notes = (note, *contents.notes)
    if "obs" in file and isinstance(file["obs"], h5py.Group):
        shared, notes = read_table(file["obs"], path, memory)
        if shared.index.is_unique:
            own = contents.obs
            # MuData repeats the columns of a modality as "rna:n_counts".
            new = [c for c in shared if c not in own and f"{c}".partition(":")[0] not in parts]
            rows = shared[new].reindex(own.index)
            contents.table, contents.names = unnamed(pd.concat([own, rows], axis=1))
            contents.notes = (*contents.notes, *notes)
    return contents


def _expression(parts: dict[str, Any], path: str, memory: int) -> str:
    """Return the modality of gene expression: by its name, by its features, or as the only one."""
    if not parts:
        fix = "write one with mudata.MuData({'rna': adata}).write(FILE)"
        raise InputError("this MuData file (.h5mu) holds no AnnData objects", path, fix, code="wrong-format")
    by_name = sorted((_RNA.index(n.lower()), n) for n in parts if n.lower() in _RNA)
    if by_name:
        return by_name[0][1]
    typed = []
    for name, group in parts.items():
        var, _ = read_table(group["var"], path, memory)
        for column in ("feature_types", "feature_type"):
            if column in var and np.mean(var[column].astype(str).str.lower() == "gene expression") > 0.5:
                typed.append(name)
    if len(set(typed)) == 1 or len(parts) == 1:
        return (typed or list(parts))[0]
    fix = f"write the RNA to a file: mudata.read(FILE)['{next(iter(parts))}'].write_h5ad('out.h5ad')"
    raise InputError(f"no modality of this MuData file is recognised as RNA: {', '.join(parts)}", path, fix)

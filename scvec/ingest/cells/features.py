"""Tell genes from the other features that share a matrix with them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import numpy.typing as npt
import pandas as pd

from scvec.base.borders import count_text

__all__ = ["gene_name_candidates", "genes_of_one_genome", "is_gene"]

# Values of var['feature_types'] and its kin that are no genes. Anything else is kept: cellxgene, for one,
# writes biotypes (protein_coding, lncRNA) there.
_OTHER_TYPES = {
    "antibody capture",
    "antibody",
    "protein",
    "protein expression",
    "proteins",
    "adt",
    "hto",
    "crispr guide capture",
    "multiplexing capture",
    "antigen capture",
    "custom",
    "peaks",
    "spike-in",
}
_TYPE_COLUMNS = ("feature_types", "feature_type", "feature_biotype", "modality")
_OTHER_NAMES = re.compile(
    r"_?Total-?Seq-?[ABCD]?\d*$|^(ADT|HTO|CITE|AB|prot)[_-]|^Hash-?tag[_-]?\w*$"
    r"|^ERCC-\d{5}$|^chr[\dXYM]+[:-]\d+-\d+$",
    re.IGNORECASE,
)
_GENOME = re.compile(r"^(GRCh\d+|hg\d+|human|GRCm\d+|mm\d+|mouse)_{1,6}(?=\S)", re.IGNORECASE)
_NAME_COLUMNS = re.compile(
    r"^(gene|feature|hgnc|mgi|ensembl|ensg|entrez|symbol)[ _.-]?"
    r"(s|ids?|names?|symbols?|gene[ _.-]?ids?|short_name)?$"
    r"|^(original_gene_symbols|gene_symbols-\d|gene_ids-\d|geneid|genename|name|names|id|ids|features)$",
    re.IGNORECASE,
)


def is_gene(names: pd.Index[str], var: pd.DataFrame) -> tuple[npt.NDArray[np.bool_], str]:
    """Return a mask (n_features,) of the features that are genes, and a note (empty if all are)."""
    keep = np.ones(len(names), dtype=bool)
    why: Counter[str] = Counter()
    for column in _TYPE_COLUMNS:
        if column in var.columns:
            types = var[column].astype(str)
            other = types.str.lower().isin(_OTHER_TYPES).to_numpy() & keep
            why.update(types[other])
            keep &= ~other
    by_name = np.fromiter((_OTHER_NAMES.search(name) is not None for name in names), bool, len(names)) & keep
    why.update({"by their names": int(by_name.sum())})
    keep &= ~by_name
    if keep.all():
        return keep, ""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in why.most_common(3) if n)
    example = names[int(np.flatnonzero(~keep)[0])]
    dropped = count_text(int((~keep).sum()), "non-gene feature")
    return keep, f"dropped {dropped} ({kinds}), such as {example}"


def genes_of_one_genome(
    names: list[str], var: pd.DataFrame, totals: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], list[str], str]:
    """Keep the genes of the genome with most counts where several are mixed, and strip its prefix.

    Parameters
    ----------
    totals
        (n_features,) counts of each feature, of a sample of the cells.

    Returns
    -------
    Mask (n_features,), names without a genome prefix, and a note (empty where there is one genome).
    """
    prefixes = [match[1] if (match := _GENOME.match(name)) else "" for name in names]
    genome = np.array(prefixes, dtype=object)
    if not any(prefixes) and "genome" in var.columns:
        genome = var["genome"].astype(str).to_numpy(dtype=object)
    shares = {str(g): float(totals[genome == g].sum()) for g in dict.fromkeys(genome) if g and g != "nan"}
    bare = [name[_GENOME.match(name).end() :] if p else name for name, p in zip(names, prefixes, strict=True)]  # type: ignore[union-attr]
    if not shares:
        return np.ones(len(names), dtype=bool), bare, ""
    most = max(shares, key=lambda g: shares[g])
    keep = (genome == most) | (genome == "") | (genome == "nan")
    if keep.all():
        return keep, bare, ""
    share = 100 * shares[most] / max(sum(shares.values()), 1e-300)
    note = (
        f"the genes are of several genomes ({', '.join(sorted(shares))}): kept those of {most}, which hold "
        f"{share:.1f}% of the counts, and dropped {int((~keep).sum()):,} others"
    )
    return keep, bare, note


def gene_name_candidates(names: list[str], var: pd.DataFrame) -> dict[str, list[str]]:
    """Return the columns that may name the genes: the index first (``"index"``), then columns of var.

    Each list has one entry per gene; missing values are empty strings.
    """
    found = {"index": list(names)}
    for column in var.columns:
        if not _NAME_COLUMNS.match(str(column)):
            continue
        values = var[column]
        if values.dtype.kind == "f":
            whole = np.isfinite(values) & (values == np.rint(values))
            texts = [str(int(v)) if ok else "" for v, ok in zip(values, whole, strict=True)]
        else:
            texts = ["" if missing else str(v) for v, missing in zip(values, values.isna(), strict=True)]
        if any(texts) and values.dtype.kind != "b":
            found[str(column)] = texts
    return found

"""Describe the scale of a matrix, and normalise it to log1p of counts per ten thousand."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = [
    "BASES",
    "CP10K",
    "LARGEST_COUNT",
    "TRANSFORMS",
    "Codes",
    "ExpressionState",
    "MatrixProfile",
    "Transform",
    "linearise",
    "normalize",
    "row_sums",
    "undo",
    "undone",
]

CP10K = 1e4
#: No cell has more molecules than this.
LARGEST_COUNT = 1e9

Kind = Literal[
    "counts", "estimated_counts", "log1p_cp10k", "log", "linear", "sqrt", "arcsinh", "scaled", "vectors"
]
Codes = npt.NDArray[np.uint8]
Transform = Literal["linear", "log1p", "log2", "log10", "sqrt", "arcsinh"]
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
BASES: dict[Transform, float] = {"log1p": math.e, "log2": 2.0, "log10": 10.0}


@dataclass(frozen=True, slots=True)
class ExpressionState:
    """The scale of the values of a matrix, or of some of its cells.

    Attributes
    ----------
    kind
        ``counts``; ``estimated_counts`` (not whole: estimated by RSEM or salmon, or corrected for ambient
        RNA); ``log1p_cp10k`` (natural log1p of counts per ten thousand); ``log`` (another base or target, or
        part of the genes only); ``linear`` (CPM, TPM, RPKM); ``sqrt`` and ``arcsinh`` of one of these;
        ``scaled`` (has negative values: z-scores, residuals), which cannot be used; ``vectors`` (of
        ``obsm``), which are used unchanged.
    where
        ``X``, ``raw`` or ``layers/NAME``.
    base
        Base of the logarithm, if known.
    target_sum
        Sum of a cell's values on the linear scale, if all cells have the same.
    message
        One line for the user: the scale, and the conversion.
    per
        Sum over all genes of a cell, if the matrix holds only part of the genes (1e6 for CPM). If this and
        ``target_sum`` are both None, each cell is divided by its own sum.
    made_of
        The values on the linear scale: ``counts``, ``multiples`` of a cell's smallest value (counts
        times a factor per cell), or empty if unknown.
    candidates
        The other transforms (such as ``log2``) that fit equally well.
    others
        The other scales, if the cells of a file are on several. This scale has number 0.
    """

    kind: Kind
    where: str
    base: float | None = None
    target_sum: float | None = None
    message: str = ""
    per: float | None = None
    made_of: Literal["", "counts", "multiples"] = ""
    candidates: tuple[Transform, ...] = ()
    others: tuple[ExpressionState, ...] = ()

    @property
    def scales(self) -> tuple[ExpressionState, ...]:
        """All scales, in the order of their numbers."""
        return (self, *self.others)

    @property
    def transform(self) -> Transform:
        """The transform of linear values; logarithms of unknown base are treated as natural."""
        if self.kind == "sqrt" or self.kind == "arcsinh":
            return self.kind
        if self.kind not in ("log", "log1p_cp10k"):
            return "linear"
        return next((name for name, base in BASES.items() if base == self.base), "log1p")

    @property
    def divisor(self) -> float | None:
        """Sum of a whole cell on the linear scale; None if each cell is divided by its own sum."""
        return self.per or (self.target_sum if self.base else None)

    @property
    def rule(self) -> tuple[Any, ...]:
        """All fields that change the conversion (not the message)."""
        own = (self.kind, self.base, self.target_sum, self.per)
        return (*own, *(other.rule for other in self.others))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass
class MatrixProfile:
    """Statistics of rows of a matrix that do not depend on its scale.

    Add blocks of CSR rows (no stored zeros) with :meth:`add`.
    """

    n_rows: int = 0
    n_values: int = 0
    n_nonfinite: int = 0
    first_nonfinite: int = -1
    n_negative: int = 0
    first_negative: int = -1
    minimum: float = math.inf
    maximum: float = -math.inf
    all_integer: bool = True
    _kept: list[sp.csr_matrix[Any]] = field(default_factory=list)
    _n_kept: int = 0

    def add(self, block: sp.csr_matrix[Any], first_row: int = 0, keep: int = 1024) -> None:
        """Add rows; ``first_row`` is the number of the first, ``keep`` the largest size of the sample."""
        values = block.data
        finite = np.isfinite(values)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            if self.first_nonfinite < 0:
                self.first_nonfinite = first_row + _row_of(block, int(bad[0]))
            self.n_nonfinite += len(bad)
            values = values[finite]
        if len(values):
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))
            self.all_integer = self.all_integer and bool(np.all(values == np.rint(values)))
        negative = np.flatnonzero(block.data < 0)
        if len(negative) and self.first_negative < 0:
            self.first_negative = first_row + _row_of(block, int(negative[0]))
        self.n_negative += len(negative)
        self.n_rows += block.shape[0]
        self.n_values += block.nnz
        self.remember(block, keep)

    def remember(self, block: sp.csr_matrix[Any], keep: int) -> None:
        """Add rows to the sample until it has ``keep``."""
        if self._n_kept < keep:
            rows = block[: keep - self._n_kept]
            self._kept.append(rows)
            self._n_kept += rows.shape[0]

    def same_sample(self) -> MatrixProfile:
        """Return an empty profile with the same sample of rows."""
        return MatrixProfile(_kept=list(self._kept), _n_kept=self._n_kept)

    def tells_more_than(self, sample: MatrixProfile) -> bool:
        """Return whether this profile could lead to another scale than ``sample`` did."""
        return (
            self._n_kept > sample._n_kept
            or bool(self.n_negative) != bool(sample.n_negative)
            or self.all_integer != sample.all_integer
            or self.maximum > max(sample.maximum, LARGEST_COUNT)
        )

    @property
    def n_sampled(self) -> int:
        """Number of rows in the sample."""
        return self._n_kept

    def first_rows(self) -> sp.csr_matrix[Any]:
        """Return the first rows of the sample."""
        return self._kept[0]

    def sample(self) -> sp.csr_matrix[Any]:
        """Return the sample, with non-finite values as 0."""
        rows = sp.vstack(self._kept, format="csr") if len(self._kept) > 1 else self._kept[0].copy()
        rows.data[~np.isfinite(rows.data)] = 0
        return rows


def _row_of(block: sp.csr_matrix[Any], position: int) -> int:
    return int(np.searchsorted(block.indptr, position, side="right") - 1)


def row_sums(block: sp.csr_matrix[Any]) -> npt.NDArray[np.float64]:
    """Return (n,) float64 sums of rows."""
    # A product with ones adds each row from left to right, so that the sum of a cell is the same to the
    # last bit alone and in any block.
    return np.asarray(block @ np.ones(block.shape[1]), dtype=np.float64)


def undo(values: npt.NDArray[np.float64], transform: Transform) -> npt.NDArray[np.float64]:
    """Return values on the linear scale."""
    if transform == "linear":
        return values
    if transform == "sqrt":
        return np.square(values)
    # A value that overflows is not of this transform; callers compare the result with LARGEST_COUNT.
    with np.errstate(over="ignore"):
        if transform == "arcsinh":
            return np.asarray(np.sinh(values))
        return np.asarray(np.expm1(values * math.log(BASES[transform])))


def undone(block: sp.csr_matrix[Any], transform: Transform) -> sp.csr_matrix[Any]:
    """Return rows on the linear scale, float64."""
    linear = block.astype(np.float64)
    linear.data = undo(linear.data, transform)
    return linear


def linearise(
    block: sp.csr_matrix[Any], state: ExpressionState, codes: Codes | None = None
) -> sp.csr_matrix[Any]:
    """Return the values before the logarithm, float64; counts and linear values stay unchanged.

    ``codes`` (n,) are the numbers of the rows' scales, if there are several.
    """
    linear = block.astype(np.float64)
    for at, scale in _parts(linear, state, codes):
        linear.data[at] = undo(linear.data[at], scale.transform)
    return linear


def normalize(
    block: sp.csr_matrix[Any],
    state: ExpressionState,
    totals: npt.NDArray[np.float64] | None = None,
    codes: Codes | None = None,
) -> sp.csr_matrix[Any]:
    """Normalise rows to log1p of counts per ten thousand.

    Each row is computed by itself: a cell alone gets the same values as in any block.

    Parameters
    ----------
    block
        (n, n_genes) CSR, as stored.
    state
        The scale of the values.
    totals
        (n,) sums of each cell over all its genes on the linear scale; by default the sums of the rows.
        Used if a cell is divided by its own sum.
    codes
        (n,) uint8 numbers of the cells' scales in ``state.scales``; None if all are on the first.

    Returns
    -------
    (n, n_genes) CSR float32. A cell without counts stays an empty row.

    Raises
    ------
    ValueError
        If the state is ``scaled``: scaling cannot be undone.
    """
    if state.kind == "scaled":
        raise ValueError("scaled values cannot be normalised")
    if state.kind == "vectors":
        return sp.csr_matrix(block, dtype=np.float32, copy=True)
    out = sp.csr_matrix(block, dtype=np.float64, copy=True)
    factors: npt.NDArray[np.float64] | None = None
    if any(scale.divisor is None for scale in state.scales):
        totals = row_sums(linearise(block, state, codes)) if totals is None else np.asarray(totals)
        factor = np.divide(CP10K, totals, out=np.zeros(len(totals)), where=totals > 0)
        factors = np.repeat(factor, np.diff(out.indptr))
    for at, scale in _parts(out, state, codes):
        values, divisor = out.data[at], scale.divisor
        if divisor is None and factors is not None:
            out.data[at] = np.log1p(undo(values, scale.transform) * factors[at])
        elif divisor == CP10K and scale.transform in BASES:
            # log_b(x + 1) times ln(b): a natural logarithm stays as it is to the last bit.
            out.data[at] = values if scale.transform == "log1p" else values * math.log(BASES[scale.transform])
        elif divisor is not None:
            out.data[at] = np.log1p(undo(values, scale.transform) * (CP10K / divisor))
    return out.astype(np.float32)


def _parts(
    block: sp.csr_matrix[Any], state: ExpressionState, codes: Codes | None
) -> list[tuple[Any, ExpressionState]]:
    """Return, for each scale, the positions of its stored values and the scale."""
    if codes is None or not state.others:
        return [(slice(None), state)]
    code = np.repeat(codes, np.diff(block.indptr))
    return [(np.flatnonzero(code == k), scale) for k, scale in enumerate(state.scales)]

"""Find out what the numbers of a matrix are, and bring them to log1p of counts per ten thousand."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["CP10K", "ExpressionState", "MatrixProfile", "detect_state", "linearise", "normalize"]

CP10K = 1e4
BASES = (math.e, 2.0, 10.0)
#: log2 of a million is 19.9: nothing on a log scale is larger, and whole-genome linear data always are.
MAX_LOG = 20.0
#: Relative spread of per-cell sums that still counts as constant (float32 and later gene filters move them).
SPREAD = 0.02

Kind = Literal["counts", "log1p_cp10k", "log", "linear", "scaled"]


@dataclass(frozen=True, slots=True)
class ExpressionState:
    """What the values of a matrix are.

    Attributes
    ----------
    kind
        ``counts``; ``log1p_cp10k`` (natural log1p of counts per ten thousand); ``log`` (another base or
        target, or part of the genes only); ``linear`` (no counts, no log: TPM, RPKM, corrected counts);
        ``scaled`` (has negative values: z-scores, residuals), which cannot be used.
    where
        ``X``, ``raw`` or ``layers/NAME``.
    base
        Base of the logarithm where it is known.
    target_sum
        What the values of a cell add up to on the linear scale, where it is one number for all cells.
    message
        One line for people: what was found and what is done about it.
    """

    kind: Kind
    where: str
    base: float | None = None
    target_sum: float | None = None
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass
class MatrixProfile:
    """What can be learnt from rows of a matrix without knowing what they are.

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
    _sums: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _kept: list[sp.csr_matrix[Any]] = field(default_factory=list)
    _n_kept: int = 0

    def add(self, block: sp.csr_matrix[Any], first_row: int = 0, keep: int = 1024) -> None:
        """Take in rows; ``first_row`` is the number of the first, ``keep`` how many to remember in all."""
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
        if self._n_kept < keep:
            rows = block[: keep - self._n_kept]
            self._kept.append(rows)
            self._n_kept += rows.shape[0]

    def same_sample(self) -> MatrixProfile:
        """Return an empty profile that remembers the same rows."""
        return MatrixProfile(_kept=self._kept, _n_kept=self._n_kept)

    def sample(self) -> sp.csr_matrix[Any]:
        """Return the remembered rows, non-finite values as 0."""
        rows = sp.vstack(self._kept, format="csr") if len(self._kept) > 1 else self._kept[0].copy()
        rows.data[~np.isfinite(rows.data)] = 0
        return rows


def _row_of(block: sp.csr_matrix[Any], position: int) -> int:
    return int(np.searchsorted(block.indptr, position, side="right") - 1)


def detect_state(profile: MatrixProfile, where: str = "X") -> ExpressionState:
    """Decide what the values are.

    Parameters
    ----------
    profile
        Of some or all rows, at least one.
    where
        The place to put into the answer.
    """
    if profile.n_negative:
        low = f"{profile.minimum:,.0f}" if profile.all_integer else f"{profile.minimum:.3g}"
        return ExpressionState("scaled", where, message=f"{where} holds negative values (down to {low})")
    if profile.all_integer:
        done = f"{where} holds raw counts; normalised a private copy to log1p CP10k"
        return ExpressionState("counts", where, message=done)
    sample = profile.sample()
    linear_target = _constant_sum(_row_sums(sample))
    if profile.maximum > MAX_LOG or linear_target is not None:
        done = (
            f"{where} holds linear values that are no counts (TPM, RPKM or corrected counts, largest "
            f"{_number(profile.maximum)}); rescaled a private copy to log1p CP10k"
        )
        return ExpressionState("linear", where, target_sum=linear_target, message=done)
    for base in BASES:
        target = _constant_sum(_row_sums(_power(sample, base)))
        if target is not None:
            return _known_target(where, base, target)
    return _known_base(where, _base_by_ratios(sample))


def _known_target(where: str, base: float, target: float) -> ExpressionState:
    if base == math.e and abs(target / CP10K - 1) < SPREAD:
        done = f"{where} holds log1p CP10k values; used as they are"
        return ExpressionState("log1p_cp10k", where, base, CP10K, done)
    done = (
        f"{where} holds {_log_name(base)} values of {_number(target)} counts per cell; "
        "converted a private copy to log1p CP10k"
    )
    return ExpressionState("log", where, base, target, done)


def _known_base(where: str, base: float | None) -> ExpressionState:
    if base is None:
        done = f"{where} holds logarithms of unknown base and target; taken as log1p CP10k as they are"
    elif base == math.e:
        done = f"{where} holds natural log values whose sums differ (part of the genes?); used as they are"
    else:
        done = f"{where} holds {_log_name(base)} values whose sums differ; converted a private copy to log1p"
    return ExpressionState("log", where, base, None, done)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _log_name(base: float) -> str:
    return "natural log1p" if base == math.e else f"log{base:.0f}(x + 1)"


def _row_sums(block: sp.csr_matrix[Any]) -> npt.NDArray[np.float64]:
    # A product with ones adds each row from left to right by itself, so that a cell's sum is the same to
    # the last bit alone and in any block.
    return np.asarray(block @ np.ones(block.shape[1]), dtype=np.float64)


def _power(block: sp.csr_matrix[Any], base: float) -> sp.csr_matrix[Any]:
    """Undo log_base(x + 1)."""
    linear = block.astype(np.float64)
    linear.data = np.expm1(linear.data * math.log(base))
    return linear


def _constant_sum(sums: npt.NDArray[np.float64]) -> float | None:
    """Return the one value that all sums have, or None if they differ.

    Fewer than five cells could agree by chance: there the sum must also be a power of ten.
    """
    sums = sums[sums > 0]
    if len(sums) == 0:
        return None
    low, middle, high = np.percentile(sums, [2.5, 50, 97.5])
    if high - low > SPREAD * middle:
        return None
    digits = math.log10(middle)
    power = round(digits)
    is_power = abs(digits - power) < 0.004
    if len(sums) < 5 and not (is_power and power >= 3):
        return None
    return 10.0**power if is_power else float(middle)


def _base_by_ratios(sample: sp.csr_matrix[Any], n_cells: int = 256) -> float | None:
    """Find the base of logs of part of the genes.

    The smallest value of a cell is nearly always one count. Undone with the right base, the other values
    are then whole multiples of it; with a wrong base they are not.
    """
    best, best_share = None, 0.8
    for base in BASES:
        linear = _power(sample[:n_cells], base)
        units = np.full(linear.shape[0], np.inf)
        row = np.repeat(np.arange(linear.shape[0]), np.diff(linear.indptr))
        np.minimum.at(units, row, linear.data)
        ratio = linear.data / units[row]
        ratio = ratio[(ratio > 1.5) & (ratio < 20)]
        if len(ratio) < 20:
            continue
        share = float(np.mean(np.abs(ratio - np.rint(ratio)) < 0.03))
        if share > best_share:
            best, best_share = base, share
    return best


def linearise(block: sp.csr_matrix[Any], state: ExpressionState) -> sp.csr_matrix[Any]:
    """Return the values before the logarithm, float64; counts and linear values as they are."""
    if state.kind in ("counts", "linear"):
        return block.astype(np.float64)
    return _power(block, state.base or math.e)


def normalize(
    block: sp.csr_matrix[Any], state: ExpressionState, totals: npt.NDArray[np.float64] | None = None
) -> sp.csr_matrix[Any]:
    """Bring rows to log1p of counts per ten thousand.

    Each row is worked out by itself: a cell alone gets the same values as in any block.

    Parameters
    ----------
    block
        (n, n_genes) CSR, as stored.
    state
        What the values are.
    totals
        (n,) counts of each cell over all of its own genes; the sums of the rows where not given. Used for
        ``counts`` and ``linear`` only.

    Returns
    -------
    (n, n_genes) CSR float32. A cell without counts stays an empty row.

    Raises
    ------
    ValueError
        If the state is ``scaled``: that cannot be undone.
    """
    if state.kind == "scaled":
        raise ValueError("scaled values cannot be normalised")
    out = sp.csr_matrix(block, dtype=np.float64, copy=True)
    if state.kind in ("counts", "linear"):
        totals = _row_sums(out) if totals is None else np.asarray(totals, dtype=np.float64)
        factor = np.divide(CP10K, totals, out=np.zeros_like(totals), where=totals > 0)
        out.data = np.log1p(out.data * np.repeat(factor, np.diff(out.indptr)))
    elif state.kind == "log" and state.base is not None:
        if state.target_sum is not None:
            out.data = np.log1p(np.expm1(out.data * math.log(state.base)) * (CP10K / state.target_sum))
        else:
            out.data = out.data * math.log(state.base)
    return out.astype(np.float32)

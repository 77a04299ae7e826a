"""Training loop of the encoders and heads that learn by gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scvec.base.types import Progress, no_progress

if TYPE_CHECKING:
    import torch

__all__ = ["Schedule", "class_weights", "train"]

#: Fewer steps than this leave the result close to its random start, also for small references.
MIN_STEPS = 100


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length of a training.

    Attributes
    ----------
    epochs, batch_size
        Passes over the cells, and cells per step.
    lr
        Largest learning rate of the schedule.
    min_steps, max_steps
        Limits on the number of steps. Small references see each cell in more epochs, large ones in fewer.
    """

    epochs: int
    batch_size: int
    lr: float
    min_steps: int = MIN_STEPS
    max_steps: int = 4000

    def n_steps(self, n: int) -> int:
        """Return the number of steps for n cells."""
        return max(self.min_steps, min(self.max_steps, self.epochs * -(-n // self.batch_size)))


def class_weights(labels: npt.NDArray[np.int64], n_classes: int) -> npt.NDArray[np.float64]:
    """Return (n,) float64 sampling weights: one over the square root of the number of cells of the label.

    This is a compromise: natural frequencies neglect rare types, and equal frequencies exaggerate them.
    Unlabelled cells (-1) get weight 0. The weights sum to 1.
    """
    labelled = labels >= 0
    counts = np.bincount(labels[labelled], minlength=n_classes)
    weights = np.zeros(len(labels))
    weights[labelled] = 1.0 / np.sqrt(counts[labels[labelled]])
    return np.asarray(weights / weights.sum())


def train(
    parameters: list[dict[str, object]],
    loss: Callable[[torch.Tensor], torch.Tensor],
    weights: npt.NDArray[np.float64],
    schedule: Schedule,
    *,
    seed: int,
    stage: str = "training",
    progress: Progress = no_progress,
) -> None:
    """Minimise ``loss`` with AdamW and a one-cycle schedule (Smith and Topin 2017, arXiv:1708.07120).

    Parameters
    ----------
    parameters
        Parameter groups for AdamW.
    loss
        Takes the row numbers (batch_size,) int64 of a batch and returns a scalar tensor.
    weights
        (n,) float64 sampling weights that sum to 1.
    """
    import torch

    n_steps = schedule.n_steps(len(weights))
    rng = np.random.default_rng(seed)
    # Draws the same rows as rng.choice(p=weights), but checks and sums the weights only once.
    upto = np.cumsum(weights)
    upto /= upto[-1]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.lr, total_steps=n_steps)
    for step in range(n_steps):
        rows = upto.searchsorted(rng.random(schedule.batch_size), side="right")
        value = loss(torch.from_numpy(rows))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()
        if step % 10 == 9 or step == n_steps - 1:
            progress(stage, step + 1, n_steps)

"""Tests of the colours of labels."""

from __future__ import annotations

import re

import numpy as np

from scvec.base.display import GREY, PALETTE, label_colors

#: Linear RGB as seen without red or green receptors (Machado et al. 2009, severity 1).
SIGHT = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def oklab(colors: list[str], sight: np.ndarray) -> np.ndarray:
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ sight.T, 0, 1)
    to_lms = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696],
              [0.08830246, 0.28171884, 0.62997870]]  # fmt: skip
    to_lab = [[0.21045426, 0.79361778, -0.00407205], [1.97799850, -2.42859220, 0.45059371],
              [0.02590404, 0.78277177, -0.80867577]]  # fmt: skip
    return np.cbrt(seen @ np.array(to_lms).T) @ np.array(to_lab).T


def test_colours_are_told_apart_by_everyone():
    assert len(set(PALETTE)) == len(PALETTE) == 40
    assert all(re.fullmatch("#[0-9A-F]{6}", c) for c in PALETTE)
    for sight, least in (("normal", 0.07), ("deuteranopia", 0.05), ("protanopia", 0.05)):
        for n, factor in ((12, 1.5), (40, 1.0)):
            lab = oklab(list(PALETTE[:n]), SIGHT[sight])
            apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 9 * np.eye(n)
            assert apart.min() >= least * factor * 0.9, (sight, n)


def test_a_label_has_one_colour_whatever_else_a_query_holds():
    classes = ["a", "b", "c"]
    assert label_colors(classes, ["c"]) == [label_colors(classes, classes)[2]]
    assert label_colors(classes, ["new"]) == [GREY]
    assert len(label_colors([str(i) for i in range(90)], [str(i) for i in range(90)])) == 90

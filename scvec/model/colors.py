"""Colours of labels that people with any colour vision can tell apart, as far as there are so many."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["GREY", "PALETTE", "STATUS_COLORS", "label_colors"]

#: Okabe and Ito's colours (2008, https://jfly.uni-koeln.de/color), then those that lie farthest, in Oklab,
#: from all before them as people with normal vision, deuteranopia and protanopia see them (Machado et al.
#: 2009, doi:10.1109/TVCG.2009.113). The first dozen are told apart at once; more take a look at the legend.
PALETTE = tuple(
    "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #700033 #3D00A3 #00EBAD #7014FF #854700 #8F7AFF #AD1470 "
    "#D6D600 #8FB885 #B8CCFF #D600C2 #5C0A70 #145C5C #0000D6 #474799 #00CCC2 #F54766 #EBC27A #5C66E0 #AD523D "
    "#A35C85 #70290A #99003D #7A528F #F57047 #858FD6 #FF85FF #8F0085 #52335C #66E0D6 #003DB8 #1F85D6 #E0A3AD "
    "#EB9966".split()
)
#: What has no label.
GREY = "#BBBBBB"
STATUS_COLORS = {"confident": "#0072B2", "ambiguous": "#E69F00", "novel": "#D55E00", "low_quality": GREY}


def label_colors(classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return a colour for each label: the same for one reference whichever of its labels a query has.

    Parameters
    ----------
    classes
        All labels of the reference. Beyond 40 colours repeat.
    """
    number = {name: i for i, name in enumerate(classes)}
    return [PALETTE[number[name] % len(PALETTE)] if name in number else GREY for name in labels]

"""What is masked is not looked at, at any size."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.masks import Masks, Rectangle
from tests.pictures import picture

CORNER: Rectangle = (0.75, 0.0, 1.0, 0.2)


def test_nothing_is_copied_without_masks() -> None:
    shown = picture()
    assert Masks(()).unchanging(shown) is shown and Masks(()).unlit(shown) is shown


@pytest.mark.parametrize(("height", "width"), [(90, 160), (45, 80), (1, 1), (7, 3)])
def test_every_pixel_that_a_mask_touches_is_masked(height: int, width: int) -> None:
    masked = Masks([CORNER]).unchanging(np.full((height, width), 50, np.uint8)) == 0
    rows, columns = np.nonzero(masked)
    assert (
        rows.max() == -(-height * 20 // 100) - 1 and columns.min() == int(width * 0.75) and columns.max() == width - 1
    )


def test_a_masked_clock_does_not_move_and_does_not_shine() -> None:
    masks = Masks([CORNER, (0.0, 0.9, 1.0, 1.0)])
    shown = [picture((slice(0, 18), slice(120, 160), level), base=30) for level in (90, 200)]
    assert (masks.unchanging(shown[0]) == masks.unchanging(shown[1])).all()
    assert (masks.unlit(shown[0]) == 30).all()


def test_all_may_be_masked() -> None:
    assert not Masks([(0.0, 0.0, 1.0, 1.0)]).unlit(picture()).any()

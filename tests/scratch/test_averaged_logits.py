"""Means over an image, its mirror image and shifted copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quickstudy.scratch.evaluation import averaged_logits


class Corner(nn.Module):
    """The pixel at row 1, column 2 of each image."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 1, 2]


IMAGES = torch.arange(2 * 1 * 5 * 5, dtype=torch.float32).reshape(2, 1, 5, 5)
SEEN = IMAGES[:, 0]


@pytest.mark.parametrize("shifted", [1, 2])
def test_shifted_copies_have_a_quarter_of_the_weight_each(shifted: int) -> None:
    found = averaged_logits(Corner(), IMAGES, mirrored=False, shifted=shifted)[:, 0]
    # Moved to the lower right, the pixel shows what lies up and left of it; beyond the border that is the mirror image.
    up_left = SEEN[:, abs(1 - shifted), 2 - shifted]
    down_right = SEEN[:, 1 + shifted, 2 + shifted]
    torch.testing.assert_close(found, SEEN[:, 1, 2] / 2 + (up_left + down_right) / 4)


def test_the_mirror_image_counts_as_much_as_the_image() -> None:
    image = IMAGES.clone()
    image[:, :, 1, 4] = 100.0
    shifted = averaged_logits(Corner(), image.roll(2, dims=-1), mirrored=True, shifted=0)[:, 0]
    rolled = image.roll(2, dims=-1)
    torch.testing.assert_close(shifted, (rolled[:, 0, 1, 2] + rolled.flip(-1)[:, 0, 1, 2]) / 2)


def test_nothing_asked_for_is_the_network_itself() -> None:
    assert torch.equal(averaged_logits(Corner(), IMAGES, mirrored=False, shifted=0), Corner()(IMAGES))

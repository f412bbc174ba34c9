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


class Sure(nn.Module):
    """Two classes whose logits differ by the pixel at row 1, column 2; counts the images that pass."""

    passed = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passed += len(images)
        pixel = images[:, 0, 1, 2]
        return torch.stack([pixel, -pixel], dim=1)


def test_copies_count_for_the_unsure_only() -> None:
    images = torch.zeros(4, 1, 5, 5)
    images[:, 0, 1, 2] = torch.tensor([0.1, -3.0, -0.2, 3.0])  # leads of 0.10, 0.995, 0.20 and 0.995
    images[:, 0, 0, 1] = 5.0  # what the copy that is moved to the lower right has there
    network = Sure()
    found = averaged_logits(network, images, mirrored=False, shifted=1, lead=0.5)
    assert network.passed == 4 + 2 * 2
    everywhere, nowhere = (averaged_logits(Sure(), images, mirrored=False, shifted=n) for n in (1, 0))
    expected = torch.stack([everywhere[0], nowhere[1], everywhere[2], nowhere[3]])
    torch.testing.assert_close(found, expected)
    for image, one in zip(images, found, strict=True):  # whatever images are beside it
        torch.testing.assert_close(averaged_logits(Sure(), image[None], mirrored=False, shifted=1, lead=0.5)[0], one)


@pytest.mark.parametrize("lead", [0.0, 1.0])
def test_all_are_unsure_or_only_ties_are(lead: float) -> None:
    images = torch.randn(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    images[0, 0, 1, 2] = 0.0
    network = Sure()
    averaged_logits(network, images, mirrored=True, shifted=1, lead=lead)
    assert network.passed == 2 * 8 + 4 * (8 if lead else 1)


def test_one_class_is_never_ahead_of_another() -> None:
    both = [averaged_logits(Corner(), IMAGES, mirrored=False, shifted=1, lead=lead) for lead in (0.5, 1.0)]
    assert torch.equal(*both)


def test_the_mirror_image_counts_as_much_as_the_image() -> None:
    image = IMAGES.clone()
    image[:, :, 1, 4] = 100.0
    shifted = averaged_logits(Corner(), image.roll(2, dims=-1), mirrored=True, shifted=0)[:, 0]
    rolled = image.roll(2, dims=-1)
    torch.testing.assert_close(shifted, (rolled[:, 0, 1, 2] + rolled.flip(-1)[:, 0, 1, 2]) / 2)


def test_nothing_asked_for_is_the_network_itself() -> None:
    assert torch.equal(averaged_logits(Corner(), IMAGES, mirrored=False, shifted=0), Corner()(IMAGES))

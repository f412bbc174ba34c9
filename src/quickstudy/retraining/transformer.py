"""`Bottleneck` is a scikit-learn transformer from images to cached bottlenecks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import OptionError, UnusableImageError
from quickstudy.files import cache_folder
from quickstudy.images.decoding import USUAL_BITS
from quickstudy.images.fits import FITS, Fit
from quickstudy.images.given import ImageLike, as_png, file_of, one_by_one, pixels_of
from quickstudy.progress import silent


class Bottleneck(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns images into their bottlenecks, computed once and kept in the store.

    `make_pipeline(Bottleneck(), LogisticRegression())` is an image classifier that `cross_val_score` can score without
    a second forward pass. Nothing is learned from the images, so `fit` does nothing.

    Args:
        backbone: name of the pretrained network, or of two or three side by side, such as `a+b`.
        levels: give all levels, what several blocks know of an image, of which the features are the beginning.
        image_fit: what becomes of images that are not square: `crop`, `pad`, `squash`, `tiles2` or `tiles3`; see
            `quickstudy.images.fits`; left out, as the network was trained, mostly `crop`. (`fit` is a method, as in all
            of scikit-learn.)
        cache: folder of the store; the user's cache folder if left out.
        dtype: `float16` or `float32`, as the store keeps them. `transform` gives float32 either way.
        engine: what computes bottlenecks: `onnxruntime`, `onnxruntime-int8` or `openvino` on the processor, or `cuda`.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        levels: bool = False,
        image_fit: Fit | None = None,
        cache: str | Path | None = None,
        dtype: str = "float16",
        engine: str = "onnxruntime",
    ) -> None:
        self.backbone = backbone
        self.levels = levels
        self.image_fit = image_fit
        self.cache = cache
        self.dtype = dtype
        self.engine = engine

    def fit(self, X: Sequence[ImageLike], y: object = None) -> Self:  # noqa: ARG002, N803 (scikit-learn's names)
        """Do nothing; the backbone is trained already."""
        return self

    def transform(self, X: Iterable[ImageLike]) -> NDArray[np.float32]:  # noqa: N803
        """Compute the bottlenecks (N×features, float32) of images, in any of the forms that `ImageLike` names.

        Files go through the store by content; pictures and arrays as the PNG files that they would make.

        Raises:
            UnusableImageError: an image cannot be used; the message names it.
            BackboneError: the engine cannot be had.
            OptionError: there is no such fit.
        """
        if self.image_fit is not None and self.image_fit not in FITS:
            raise OptionError(f"image_fit is {self.image_fit!r}; expected {', '.join(FITS[:-1])} or {FITS[-1]}")
        folder = cache_folder(self.cache)
        extraction = extract(
            _files(X),
            load_backbone(self.backbone, folder).reading(USUAL_BITS, self.image_fit),
            Store(folder / "bottlenecks"),
            dtype=self.dtype,
            engine=engine_for(self.engine),
            progress=silent,
        )
        if extraction.reasons:
            number = min(extraction.reasons)
            raise UnusableImageError(f"Cannot use image {number} of X: {extraction.reasons[number]}")
        digests = [digest for digest in extraction.digests if digest is not None]
        return extraction.gather(digests, levels=self.levels).astype(np.float32)

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn that the transformer is always ready."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that X holds no table of numbers, and that `fit` is not needed."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        return tags


def _files(images: Iterable[ImageLike]) -> list[Path | bytes]:
    files = []
    for number, image in enumerate(one_by_one(images)):
        try:
            files.append(_as_file(image))
        except UnusableImageError as error:
            raise UnusableImageError(f"Cannot use image {number} of X: {error}") from None
    return files


def _as_file(image: ImageLike) -> Path | bytes:
    file = file_of(image)
    return as_png(pixels_of(image)) if file is None else file

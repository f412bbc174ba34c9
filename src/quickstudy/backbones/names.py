"""Names of classes as vectors to compare photos with, by the other tower of a network that was trained on both.

CLIP (Radford et al., 2021, arXiv:2103.00020) and SigLIP (Zhai et al., 2023, arXiv:2303.15343) have a tower for images,
which is a backbone like any other, and one for text. A name is put into a sentence, whose vector is compared with a
photo's: the cosine, times a scale that was learned with the network, is the logit. The text tower lies beside the other
in the same repository at the same commit, as `text_model.onnx` beside `vision_model.onnx`, or in the same file.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import HUB, Backbone
from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.graphs.cleaning import choose_output, widen
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.graphs.tokens import without_the_rest
from quickstudy.backbones.graphs.untrusted import read_onnx
from quickstudy.backbones.sources.hub import WEIGHTS, Fetched, NoSuchFileError, fetched, kept_config, parse_place
from quickstudy.errors import BackboneError, OptionError, first_line
from quickstudy.extras import require

TEMPLATES = ("a photo of a {}.",)
"""The sentences that a name is put into where nobody gives others; that of CLIP's authors (section 3.1.4)."""
_OUTPUTS = ("text_embeds", "pooler_output")
# What CLIP's authors bound the scale by, and near what it ends up; ONNX files of one tower do not have it.
_USUAL_SCALE = 100.0
_LONGEST = 77

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedClasses:
    """Classes by their names alone, K in all, as vectors of F features."""

    names: tuple[str, ...]
    """Names of the classes, in the order of the vectors."""
    vectors: Floats
    """A vector of length 1 for each name (K×F)."""
    scale: float
    """What the cosine is multiplied by."""
    bias: float
    """What is then added; 0 for CLIP."""

    def of(self, names: Sequence[str]) -> NamedClasses:
        """Give some of the classes, in this order."""
        rows = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), vectors=self.vectors[rows])

    @property
    def as_weights(self) -> Floats:
        """What features of length 1 are multiplied by for logits (F×K), all but the bias, which is the same for all."""
        return np.asarray(self.scale * self.vectors.T, np.float32)

    def logits(self, features: Floats) -> Floats:
        """Compare photos by their features (N×F) with the names: N×K, as the network's own `logits_per_image`."""
        photos = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return np.asarray(self.scale * (photos @ self.vectors.T) + self.bias, np.float32)

    def probabilities(self, features: Floats) -> Floats:
        """Give the softmax of the logits (N×K): how probable each name is, if one of them is right."""
        logits = self.logits(features)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float32)


def embed_names(backbone: Backbone, names: Sequence[str], *, templates: Sequence[str] = TEMPLATES) -> NamedClasses:
    """Make vectors of names by the text tower that belongs to a backbone.

    Args:
        backbone: the image tower of a network of two towers, from the hub, whose features are its own embedding.
        names: of the classes; `_` stands for a space.
        templates: sentences with `{}` for the name; with several, the mean of their vectors counts.

    Raises:
        BackboneError: the backbone has no text tower.
        OptionError: a template has no `{}`.
        DownloadError: the hub cannot be reached, and its cache has not got the tower.
        MissingExtraError: an extra is not installed.
    """
    check_templates(templates)
    origin = backbone.origin.rpartition(", ")[2]
    if not origin.startswith(HUB):
        raise _no_tower(backbone)
    image_tower = parse_place(origin)
    sentences = [template.replace("{}", name.replace("_", " ")) for name in names for template in templates]
    path = (image_tower.path or "").replace("vision_model", "text_model")
    scale, bias = _USUAL_SCALE, 0.0
    try:
        with fetched(replace(image_tower, path=path), tokenizer=True) as hub:
            tokens = list(_tokens(hub, sentences, image_tower.repository))
            if path.endswith(WEIGHTS):
                from quickstudy.backbones.sources.transformers_models import embed_texts

                vectors, scale, bias = embed_texts(hub.config, hub.file, tokens, name=image_tower.repository)
            elif (given := _run_tower(hub.file, tokens)) is not None:
                vectors = given
            else:
                raise _no_tower(backbone)
    except NoSuchFileError:
        raise _no_tower(backbone) from None
    if vectors.shape[1:] != backbone.at(FEATURES).cut_shape:
        raise BackboneError(
            f"'{backbone.name}' gives {backbone.at(FEATURES).cut_shape[0]:,} features, but the text tower beside it "
            f"{vectors.shape[1]:,}; add the network again without --output, --tokens and --features"
        )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    means = vectors.reshape(len(names), len(templates), -1).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return NamedClasses(names=tuple(names), vectors=means.astype(np.float32), scale=scale, bias=bias)


def reads_names(backbone: Backbone) -> bool:
    """Tell, as far as it is known without asking the hub, whether a backbone has a text tower beside it there."""
    origin = backbone.origin.rpartition(", ")[2]
    if not origin.startswith(HUB):
        return False
    place = parse_place(origin)
    return "vision_model" in (place.path or "") or "text_config" in kept_config(place)


def check_templates(templates: Sequence[str]) -> None:
    """Check that names can be put into sentences.

    Raises:
        OptionError: one has no `{}`.
    """
    for template in templates:
        if "{}" not in template:
            raise OptionError(f"The template '{template}' has no {{}} for the name; expected '{TEMPLATES[0]}' or such")


def _tokens(hub: Fetched, sentences: Sequence[str], name: str) -> Iterator[NDArray[np.int64]]:
    """Give each sentence's tokens (1×T), as the family's own processor does."""
    require("tokenizers", extra="hub", what="Comparing photos with names")
    from tokenizers import Tokenizer

    if hub.tokenizer is None:
        raise BackboneError(
            f"'{name}' has no tokenizer.json, by which names are read; take another repository, "
            "such as hf:Xenova/clip-vit-base-patch32"
        )
    try:
        tokenizer = Tokenizer.from_file(str(hub.tokenizer))
    except Exception as error:  # the library raises plain exceptions
        raise BackboneError(f"'tokenizer.json' of '{name}' cannot be read: {first_line(error)}") from None
    text = hub.config.get("text_config") or {}
    siglip = str(hub.config.get("model_type", "")).startswith("siglip")
    longest = int(text.get("max_position_embeddings") or (64 if siglip else _LONGEST))
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    told = hub.tokenizer_config
    padding = told.get("pad_token")
    padding = padding.get("content") if isinstance(padding, Mapping) else padding
    number = tokenizer.token_to_id(padding) if isinstance(padding, str) else None
    number = int(text.get("pad_token_id", 1)) if number is None else number
    for sentence in sentences:
        numbers = tokenizer.encode(_canonical(sentence, told) if siglip else sentence).ids
        # SigLIP was trained on sentences of one length, without a mask; CLIP reads up to the end of the sentence.
        numbers += [number] * (longest - len(numbers) if siglip else 0)
        yield np.array([numbers], np.int64)


def _canonical(sentence: str, told: Mapping[str, Any]) -> str:
    """Write a sentence as SigLIP's own tokenizers do before they look tokens up: the first one drops punctuation."""
    if str(told.get("tokenizer_class", "SiglipTokenizer")).startswith("SiglipTokenizer"):
        sentence = sentence.translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", sentence.lower()).strip()


def _run_tower(path: Path, tokens: Sequence[NDArray[np.int64]]) -> Floats | None:
    """Run the text tower in a file on sentences one by one (K×F); None where it has none."""
    model = read_onnx(path)
    if not any(info.name in _OUTPUTS for info in model.graph.output):
        return None
    choose_output(model, None, _OUTPUTS)
    without_the_rest(model)
    widen(model)
    inputs = {info.name for info in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    if not {"input_ids"} <= inputs <= {"input_ids", "attention_mask"}:
        return None
    session = open_session(model.SerializeToString())
    results = []
    for numbers in tokens:
        given = {"input_ids": numbers, "attention_mask": np.ones_like(numbers)}
        results.append(session.run(None, {name: given[name] for name in inputs})[0])
    return np.concatenate(results).astype(np.float32)


def _no_tower(backbone: Backbone) -> BackboneError:
    return BackboneError(
        f"'{backbone.name}' has no tower for text, by which names could be compared with photos; take a network that "
        "has one, such as --backbone hf:Xenova/clip-vit-base-patch32 or hf:onnx-community/siglip2-base-patch16-224-ONNX"
    )

"""A model file of 22 kB: the small backbone's graph with random weights, as an image classifier."""

from __future__ import annotations

from pathlib import Path

import onnx

from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.images.decoding import OWN_RESIZE, InputSpec, Resize
from quickstudy.models.assemble import save_model
from quickstudy.models.format import golden_images
from quickstudy.models.roles import Roles
from small_backbones import SIDE, small_graph

CLASSES = ("checks", "discs", "stripes", "Äpfel | <b>")
TRAINING = {
    "data_fingerprint": "ab" * 32,
    "split": "by content",
    "train_counts": {"checks": 10, "discs": 11, "stripes": 12, "Äpfel | <b>": 1300},
    "test": {"accuracy": 0.75, "right": 9, "n": 12, "interval_95": [0.468, 0.911]},
    "cross_validation": {"accuracy": 0.5, "right": 5, "n": 10, "interval_95": [0.237, 0.763]},
}


def write_small_model(path: Path, graph: onnx.ModelProto | None = None, *, resize: Resize = OWN_RESIZE) -> Path:
    """Write it, or another graph of the same input and output, for images that are resized so."""
    graph = graph or small_graph(classes=len(CLASSES))
    [expected] = open_session(graph.SerializeToString()).run(
        ["probabilities"], {"image": golden_images(InputSpec(size=SIDE))}
    )
    save_model(
        path,
        graph,
        input_spec=InputSpec(size=SIDE, resize=resize),
        classes=CLASSES,
        expected=expected,
        origin={"backbone": {"name": "small", "fingerprint": "cd" * 32, "cut": "features"}},
        training=TRAINING,
        roles=Roles.of((), (), ()),
    )
    return path

"""Adds InceptionV3 up to mixed8, with given weights, to a cache as the backbone `inception_v3_mixed8`.

    python add_inception_v3.py WEIGHTS CACHE

`WEIGHTS` is as `keras_finetuning.py` takes it, whose network this is. Needs quickstudy with its extra `keras`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

from keras_finetuning import inception_to_mixed8

from quickstudy.backbones.backbone import add_backbone
from quickstudy.backbones.graphs.preprocessing import Preprocessing
from quickstudy.backbones.sources.keras_models import import_keras_model

weights, cache = Path(sys.argv[1]), Path(sys.argv[2])
found = import_keras_model(inception_to_mixed8(weights), preprocessing=Preprocessing(mean=(128,), std=(128,)))
add_backbone(
    "inception_v3_mixed8",
    found.graph,
    cache,
    input_spec=found.input_spec,
    cuts=found.cuts,
    classes=found.classes,
    origin="InceptionV3 (TensorFlow, 2015) up to mixed8",
)
print(f"added to {cache}; it differs from Keras by {found.difference:.1e}")

"""The endpoint that most would write: FastAPI, a Keras network on TensorFlow, Pillow; one image a request.

    python fastapi_keras.py --port 8000 --arch MobileNetV2

The network is called as a compiled function (several times faster than `predict`), from FastAPI's own thread pool, so
that requests overlap. Weights are random; speed does not depend on them. Needs tensorflow, keras, fastapi, uvicorn and
pillow.
"""

from __future__ import annotations

import argparse
import io
import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

import keras

SIDE = 224
CLASSES = 10


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--arch", default="MobileNetV2")
    options = parser.parse_args()
    backbone = getattr(keras.applications, options.arch)(
        weights=None, include_top=False, pooling="avg", input_shape=(SIDE, SIDE, 3)
    )
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(backbone.output)
    network = keras.Model(backbone.input, outputs)
    run = tf.function(lambda images: network(images, training=False))
    run(tf.zeros((1, SIDE, SIDE, 3)))
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.post("/predict")
    def predict(image: bytes = Body(media_type="image/jpeg")) -> dict[str, object]:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(square, np.float32)[None] / 127.5 - 1
        [probabilities] = run(tf.constant(pixels)).numpy()
        order = probabilities.argsort()[::-1]
        return {"classes": [{"label": str(i), "probability": float(probabilities[i])} for i in order]}

    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()

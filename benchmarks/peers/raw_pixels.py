"""scikit-learn's example of recognising digits, on photos: a support vector machine on raw pixels.

The example (scikit-learn.org, "Recognizing hand-written digits") flattens the images, fits `svm.SVC(gamma=0.001)` and
scores held-out ones. Photos are made 32×32 pixels with values from 0 to 16, as its digits have.

    python raw_pixels.py FOLDER       # FOLDER/train/<class>/*.jpg, FOLDER/test/<class>/*.jpg

Prints one JSON object.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn import svm


def read(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Read a split: pixels (n×3072), and the class of each photo."""
    files = sorted(folder.glob("*/*.jpg"))
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((32, 32))).ravel() / 16 for file in files]
    return np.array(pixels), [file.parent.name for file in files]


def main() -> None:
    """Fit and score."""
    folder = Path(sys.argv[1])
    classifier = svm.SVC(gamma=0.001)
    classifier.fit(*read(folder / "train"))
    pixels, labels = read(folder / "test")
    right = int(np.sum(classifier.predict(pixels) == np.array(labels)))
    print(json.dumps({"right": right, "n": len(labels)}))


if __name__ == "__main__":
    main()

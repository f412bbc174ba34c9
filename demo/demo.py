"""What `make demo` runs: the main job on real images, cold and warm, then a prediction.

Without a folder of one's own, the images are scikit-learn's 1,797 handwritten digits (from the UCI repository), written
out as PNG files. Everything goes into the folder `.demo`.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from quickstudy.extras import installation_of

FOLDER = Path(".demo")
COMMAND = Path(sys.executable).parent / "quickstudy"


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of your own: photos/<class>/*.jpg")
    named: Path | None = parser.parse_args().images
    own = named is not None
    if named is not None:
        named = named.expanduser()  # make hands on a '~' that the shell has left as it is
        if not named.is_dir():
            print(f"No such folder: '{named}'; expected photos/<class>/*.jpg, as in: make demo IMAGES=photos")
            return 2
    FOLDER.mkdir(exist_ok=True)
    images = named or write_digits(FOLDER / "digits")
    model = FOLDER / f"{images.resolve().name}.onnx"
    say("1. Retrain: each image passes the network once, then the head is fitted to its optimum")
    run("retrain", str(images), "--output", str(model))
    say("2. The same again: nothing has changed, so no image passes the network")
    run("retrain", str(images), "--output", str(model))
    say("3. Predict with the model")
    run("predict", str(model), *(str(path) for path in examples(images)), "--top", "2")
    say("With your own photos (photos/<class>/*.jpg):")
    if not own:
        print("   make demo IMAGES=photos")
    for words in ("retrain photos/", "predict photos.onnx new.jpg", "audit photos/"):
        print(f"   {shlex.quote(str(COMMAND))} {words}", flush=True)
    say("With photos that have no labels yet, in the browser:")
    print(f"   {installation_of('serve')}")
    print(f"   {shlex.quote(str(COMMAND))} label photos/", flush=True)
    return 0


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as PNG files in class folders, unless that is done."""
    if (folder / "9").is_dir():
        return folder
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # 8×8 values from 0 to 16; enlarged, since the network looks for structure over tens of pixels.
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        image.resize((128, 128), Image.Resampling.BICUBIC).save(path)
    return folder


def examples(images: Path) -> list[Path]:
    """The first image of each of the first three folders that hold some."""
    found: dict[Path, Path] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            found.setdefault(path.parent, path)
    return list(found.values())[:3]


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*arguments: str) -> None:
    """Run a quickstudy command as a user would, showing it and its time from start to exit."""
    print(f"$ quickstudy {shlex.join(arguments)}", flush=True)
    started = time.perf_counter()
    status = subprocess.run([str(COMMAND), *arguments], check=False).returncode
    if status:  # the command has said why
        sys.exit(status)
    print(f"[{time.perf_counter() - started:.1f} s from start to exit]", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""`quickstudy predict MODEL IMAGE` from process start to exit, and what it is spent on; at most 0.6 s are wanted.

python benchmarks/cold_start.py MODEL IMAGE [--runs 15]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import quickstudy, run_measured, save, spread

# In the order in which they are met; each line is measured with all before it.
_STAGES = {
    "python": "",
    "command line": "import quickstudy.cli.main",
    "numpy, pillow, onnx": "import quickstudy.models.loading",
    "onnxruntime": "import onnxruntime",
    "load": "model = quickstudy.models.loading.load(sys.argv[1])",
    "predict": "model.predict(sys.argv[2])",
}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    files = [str(options.model), str(options.image)]
    run_measured(quickstudy("predict", *files))  # bytecode and the system's file cache
    whole = [run_measured(quickstudy("predict", *files)) for _ in range(options.runs)]
    code, stages = "import sys", {}
    for name, line in _STAGES.items():
        code = f"{code}\n{line}"
        command = [sys.executable, "-c", code, *files]
        stages[name] = spread([run_measured(command)["wall_seconds"] for _ in range(options.runs)])
    save(
        "cold_start",
        {
            "model_megabytes": options.model.stat().st_size / 1e6,
            "seconds": spread([run["wall_seconds"] for run in whole]),
            "processor_seconds": spread([run["cpu_seconds"] for run in whole]),
            "peak_megabytes": max(run["peak_megabytes"] for run in whole),
            "seconds_until": stages,
        },
    )


if __name__ == "__main__":
    main()

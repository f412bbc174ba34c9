"""`quickstudy` trains image classifiers dramatically faster, and proves it.

    import quickstudy

    result = quickstudy.retrain("photos/")            # photos/<class>/*.jpg  →  photos.onnx
    model = quickstudy.load("photos.onnx")
    model.predict(["new.jpg"])                        # ["skirt"]
    quickstudy.audit("photos/").label_errors          # what is probably wrong with the photos

`quickstudy.Bottleneck` is a scikit-learn transformer from images to cached bottlenecks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quickstudy.version import VERSION

__version__ = VERSION
__all__ = [
    "Audit",
    "Bottleneck",
    "InputError",
    "InstallationError",
    "MachineError",
    "Model",
    "QuickstudyError",
    "RetrainResult",
    "__version__",
    "audit",
    "compare",
    "evaluate",
    "load",
    "report",
    "retrain",
]

if TYPE_CHECKING:
    from quickstudy.errors import InputError, InstallationError, MachineError, QuickstudyError
    from quickstudy.models.loading import load
    from quickstudy.models.model import Model
    from quickstudy.reports.audit import audit
    from quickstudy.reports.findings import Audit
    from quickstudy.reports.report import report
    from quickstudy.retraining.evaluation import compare, evaluate
    from quickstudy.retraining.result import RetrainResult
    from quickstudy.retraining.retrain import retrain
    from quickstudy.retraining.transformer import Bottleneck

# Looked up when first used, so that `import quickstudy` and `quickstudy --help` answer at once.
_HOMES = {
    "Audit": "quickstudy.reports.findings",
    "Bottleneck": "quickstudy.retraining.transformer",
    "Model": "quickstudy.models.model",
    "InputError": "quickstudy.errors",
    "InstallationError": "quickstudy.errors",
    "MachineError": "quickstudy.errors",
    "QuickstudyError": "quickstudy.errors",
    "RetrainResult": "quickstudy.retraining.result",
    "audit": "quickstudy.reports.audit",
    "compare": "quickstudy.retraining.evaluation",
    "evaluate": "quickstudy.retraining.evaluation",
    "load": "quickstudy.models.loading",
    "report": "quickstudy.reports.report",
    "retrain": "quickstudy.retraining.retrain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quickstudy' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

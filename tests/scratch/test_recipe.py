"""Recipes: their options by name, from text, JSON and back; what cannot be is refused with a message that helps."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import OptionError
from quickstudy.learning.schedules import OneCycle, Staircase
from quickstudy.scratch.networks import ClassicNetworkOptions, FastNetworkOptions
from quickstudy.scratch.recipe import RECIPES, Recipe, recipe_named

CLASSIC, FAST = RECIPES["cifar10-classic"], RECIPES["cifar10-fast"]

EVERY = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def refusal(recipe: Recipe, **options: Any) -> str:
    with pytest.raises(OptionError) as caught:
        recipe.with_options(options)
    return str(caught.value)


def through_json(recipe: Recipe) -> Recipe:
    return Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))


def test_the_classic_recipe_is_the_tutorials() -> None:
    assert CLASSIC.network == ClassicNetworkOptions(activation="relu", normalisation="lrn", top="dense", bottleneck=0)
    assert CLASSIC.schedule == Staircase(rate=0.1, rate_decay=0.1, rate_decay_epochs=350)
    expected = {
        "data": "cifar10", "steps": 60_000, "batch": 128, "momentum": 0, "nesterov": False, "weight_decay": 0.004,
        "label_smoothing": 0, "average_decay": 0.9999, "average_every": 1, "precision": "float32", "crop": 24, "pad": 0,
        "flip": True, "alternate": False, "brightness": 63, "contrast": (0.2, 1.8), "standardise": "image",
        "mirrored_test": False, "shifted_test": 0, "validation": 0,
    }  # fmt: skip
    assert {name: CLASSIC.options()[name] for name in expected} == expected


@EVERY
def test_every_recipe_passes_its_own_check(recipe: Recipe) -> None:
    recipe.check()
    recipe.augmentation.check(32)
    assert recipe.with_options({}) == recipe
    assert recipe_named(recipe.name) is recipe
    assert recipe.validation == 0  # what is reported is on the test images, trained on all others


@EVERY
def test_option_names_are_unique_over_all_parts(recipe: Recipe) -> None:
    names: list[str] = []
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        names += [inner.name for inner in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else [item.name]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert set(recipe.options()) == set(names) - {"name"}


@EVERY
def test_recipes_go_through_json(recipe: Recipe) -> None:
    assert through_json(recipe) == recipe
    values = recipe.to_dict()
    assert values["recipe"] == recipe.name
    assert through_json(recipe).to_dict() == values


CHANGED: dict[str, Any] = {
    "data": "photos", "image_size": 48, "validation": 0.1, "steps": 7, "epochs": 2.5, "mirrored_test": True,
    "seed": 2**53 + 1, "batch": 32, "momentum": 0.5, "nesterov": True, "weight_decay": 0.5, "bias_rate": 0.5,
    "label_smoothing": 0.25, "average_decay": 0.5, "average_every": 3, "precision": "bfloat16", "crop": 16, "pad": 3,
    "flip": False, "alternate": True, "brightness": 31.5, "contrast": (0.5, 1.5), "standardise": "none", "rate": 0.375,
    "activation": "tanh", "method": "adam", "muon_momentum": 0.5, "head_rate": 0.5, "compiled": True,
    "random_crop": False, "seconds": 2.5, "evaluate_steps": 3, "target": 0.5, "shifted_test": 2,
    "unsure_lead": 0.25, "cutout": 5, "lookahead_every": 3, "lookahead_decay": 0.5,
}  # fmt: skip
_FAST: dict[str, Any] = {
    "widths": (8, 16), "convolutions": 4, "residual": False, "whitening": False, "directions": 4, "logit_scale": 0.5,
    "batch_norm_momentum": 0.25, "rate_start": 0.5, "rate_end": 0.25, "warmup": 0.5, "activate_sum": True,
    "whitening_bias_epochs": 1.5, "whitening_bias_rate": 2.5, "whitening_bias_fall": False,
}  # fmt: skip
PARTICULAR: dict[str, dict[str, Any]] = {
    "cifar10-classic": {
        "normalisation": "none", "top": "local", "bottleneck": 16, "rate_decay": 0.5, "rate_decay_epochs": 0.5,
    },
    "cifar10-fast": _FAST,
    "cifar10-long": _FAST,
    "cifar10-gpu": _FAST,
    "cifar10-gpu95": _FAST,
    "cifar10-gpu96": _FAST,
    "mlp": {
        "widths": (8, 16), "depth": 1, "batch_norm": "after", "bottleneck": 4, "rate_decay": 0.5,
        "rate_decay_epochs": 0.5,
    },
}  # fmt: skip


def as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@EVERY
@pytest.mark.parametrize("text", [False, True], ids=["values", "text"])
def test_every_option_can_be_changed_and_kept(recipe: Recipe, text: bool) -> None:
    wanted = CHANGED | PARTICULAR[recipe.name]
    changed = recipe.with_options({name: as_text(value) if text else value for name, value in wanted.items()})
    found = {name: value for name, value in changed.options().items() if name in wanted}
    assert found == wanted
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in wanted.items()}
    assert changed.name == recipe.name
    assert through_json(changed) == changed != recipe


def test_options_reach_their_part() -> None:
    changed = FAST.with_options({"warmup": 0.5, "widths": "8,16,32,64", "batch": "64", "pad": 4, "seed": 5})
    assert isinstance(changed.network, FastNetworkOptions) and isinstance(changed.schedule, OneCycle)
    assert (changed.schedule.warmup, changed.network.widths) == (0.5, (8, 16, 32, 64))
    assert (changed.optimiser.batch, changed.augmentation.pad, changed.seed) == (64, 4, 5)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "1e3", 1000),
        ("steps", "12", 12),
        ("steps", 12.0, 12),
        ("rate", "1e-2", 0.01),
        ("rate", "1", 1.0),
        ("rate", 1, 1.0),
        ("brightness", "0.5", 0.5),
        ("rate_decay_epochs", "0.25", 0.25),
        ("contrast", "0.5,1", (0.5, 1.0)),
        ("contrast", [1, 2], (1.0, 2.0)),
        ("contrast", " 0.5 , 1 ", (0.5, 1.0)),
        ("nesterov", "off", False),
        ("flip", "OFF", False),
        ("flip", "no", False),
        ("flip", "0", False),
        ("flip", 0, False),
        ("mirrored_test", "on", True),
        ("mirrored_test", "True", True),
        ("mirrored_test", 1, True),
        ("data", "photos/of birds", "photos/of birds"),
        ("seed", str(2**63 - 1), 2**63 - 1),
    ],
)
def test_text_is_read_as_the_options_type(name: str, text: Any, value: Any) -> None:
    found = CLASSIC.with_options({name: text}).options()[name]
    assert (found, type(found)) == (value, type(value))


@given(st.integers(0, 2**63 - 1))
def test_seeds_are_read_to_the_last_digit(seed: int) -> None:
    assert FAST.with_options({"seed": str(seed)}).seed == seed
    assert through_json(FAST.with_options({"seed": seed})).seed == seed


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch", "many", "batch is 'many'"),
        ("batch", "1.5", "batch is '1.5'"),
        ("batch", "inf", "batch is 'inf'"),
        ("batch", None, "batch is 'None'"),
        ("batch", "", "batch is ''"),
        ("rate", "fast", "rate is 'fast'"),
        ("rate", [0.1], "rate is '[0.1]'"),
        ("flip", "maybe", "flip is 'maybe'"),
        ("contrast", "low,high", "contrast is 'low,high'"),
        ("contrast", 0.5, "contrast is '0.5'"),
    ],
)
def test_what_is_not_of_the_type_is_refused(name: str, value: Any, said: str) -> None:
    assert refusal(CLASSIC, **{name: value}).startswith(f"{said}; expected")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("rates", "rate"), ("batchsize", "batch"), ("weightdecay", "weight_decay"), ("Crop", "crop"), ("topp", "top")],
)
def test_an_unknown_option_brings_a_suggestion(name: str, meant: str) -> None:
    said = refusal(CLASSIC, **{name: "1"})
    assert f"'cifar10-classic' has no option '{name}'" in said
    assert f"'{meant}'" in said


def test_an_option_like_no_other_brings_the_list() -> None:
    said = refusal(FAST, zzzz=1)
    assert "'cifar10-fast' has no option 'zzzz'" in said
    assert all(name in said for name in FAST.options())


def test_an_option_of_the_other_recipe_is_unknown() -> None:
    assert "has no option 'widths'" in refusal(CLASSIC, widths="8,16")
    assert "has no option 'bottleneck'" in refusal(FAST, bottleneck=4)
    assert "has no option 'name'" in refusal(FAST, name="mine")
    assert "has no option 'network'" in refusal(FAST, network="mine")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch", 0, "batch is 0"),
        ("steps", -1, "steps is -1"),
        ("epochs", -0.5, "epochs is -0.5"),
        ("epochs", "inf", "epochs is inf"),
        ("rate", -0.1, "rate is -0.1"),
        ("rate", "nan", "rate is nan"),
        ("rate", math.inf, "rate is inf"),
        ("momentum", 1.5, "momentum is 1.5"),
        ("momentum", 1, "momentum is 1"),
        ("contrast", "0.5,nan", "contrast is nan"),
        ("weight_decay", -1, "weight_decay is -1"),
        ("label_smoothing", 1.1, "label_smoothing is 1.1"),
        ("label_smoothing", 1, "label_smoothing is 1"),
        ("average_decay", -0.1, "average_decay is -0.1"),
        ("average_every", 0, "average_every is 0"),
        ("validation", 0.95, "validation is 0.95"),
        ("image_size", 4, "image_size is 4"),
        ("seed", -1, "seed is -1"),
        ("bias_rate", 0, "bias_rate is 0"),
        ("precision", "float8", "precision is 'float8'"),
    ],
)
def test_out_of_range(name: str, value: Any, said: str) -> None:
    assert refusal(CLASSIC, **{name: value}).startswith(f"{said}; expected")


def test_out_of_range_in_one_recipe() -> None:
    assert refusal(FAST, unsure_lead=1.5).startswith("unsure_lead is 1.5; expected")
    assert refusal(FAST, warmup=1.5).startswith("warmup is 1.5; expected")
    assert refusal(FAST, convolutions=0).startswith("convolutions is 0; expected")
    assert refusal(CLASSIC, bottleneck=-1).startswith("bottleneck is -1; expected")
    assert refusal(CLASSIC, rate_decay_epochs=0).startswith("rate_decay_epochs is 0; expected")
    assert refusal(CLASSIC, rate_decay=-1).startswith("rate_decay is -1; expected")
    assert refusal(FAST, lookahead_decay=1.5).startswith("lookahead_decay is 1.5; expected")
    assert refusal(FAST, whitening_bias_rate=0).startswith("whitening_bias_rate is 0; expected")
    for option in (
        "rate_start", "rate_end", "batch_norm_momentum", "logit_scale", "lookahead_every", "whitening_bias_epochs",
    ):  # fmt: skip
        assert refusal(FAST, **{option: -1}).startswith(f"{option} is -1; expected")
    assert refusal(FAST, momentum=0).startswith("nesterov is on")


def test_the_ends_of_the_ranges_are_in_them() -> None:
    CLASSIC.with_options(
        {"validation": 0.9, "label_smoothing": 0.999, "batch": 1, "average_decay": 1, "average_every": 1}
    )
    CLASSIC.with_options({"image_size": 8, "rate": 0, "average_decay": 0, "label_smoothing": 0})


def test_steps_or_epochs_must_be_set() -> None:
    assert "steps and epochs are 0" in refusal(FAST, epochs=0)
    assert "steps and epochs are 0" in refusal(CLASSIC, steps=0)
    assert CLASSIC.with_options({"steps": 0, "epochs": 1}).total_steps(1280) == 10


@pytest.mark.parametrize(
    ("steps", "epochs", "images", "expected"),
    [
        (0, 8, 50_000, 1562),  # 8 × 50,000 / 256 = 1562.5, to the even
        (0, 1, 256, 1),
        (0, 2.5, 1024, 10),
        (0, 1, 20, 1),  # less than one batch: one step all the same
        (0, 0.001, 20, 1),
        (100, 8, 50_000, 100),  # steps come first
        (1, 0, 50_000, 1),
    ],
)
def test_total_steps(steps: int, epochs: float, images: int, expected: int) -> None:
    assert FAST.with_options({"steps": steps, "epochs": epochs, "batch": 256}).total_steps(images) == expected


def test_an_unknown_recipe() -> None:
    with pytest.raises(OptionError) as caught:
        recipe_named("cifar10")
    assert "no recipe 'cifar10'" in str(caught.value)
    assert all(name in str(caught.value) for name in RECIPES)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"recipe": "cifar10-fast"},
        {"recipe": "cifar10-fast", "options": None},
        {"recipe": "cifar10-fast", "options": 5},
        {"recipe": "cifar10-fast", "options": ["rate"]},
        {"recipe": "cifar10-fast", "options": {"speed": 1}},
        {"recipe": "cifar10-fast", "options": {"rate": "fast"}},
        {"recipe": "another", "options": {}},
        {"recipe": None, "options": {}},
        {"recipe": ["cifar10-fast"], "options": {}},
        [],
        None,
    ],
    ids=str,
)
def test_what_is_no_recipe_is_refused(values: Any) -> None:
    with pytest.raises(OptionError):
        Recipe.from_dict(values)

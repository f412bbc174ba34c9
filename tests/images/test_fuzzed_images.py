"""Mutated files of all formats: no crash, no hang, and nothing changed in silence where the format lets it be told."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::Warning:PIL")

SURE = ("cut", "cut, ended", "put behind", "foreign part")
"""Mutations of JPEG and PNG after which either all pixels are there, or it can be told that they are not."""
MOST_CHANGED = {"JPEG": 0.06, "PNG": 0.005, "all": 0.16}
"""Share of the mutated files that may be read and differ: of those without checksums, many cannot be told."""


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz_images.py"
    spec = importlib.util.spec_from_file_location("fuzz_images", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_images"] = module
    spec.loader.exec_module(module)
    return module


def check(fuzzer: ModuleType, files: int, seed: int) -> None:
    counts: dict[str, Counter[str]] = {}
    for name, mutation, came, data in fuzzer.fuzz(files, seed):
        assert came in ("same", "refused", "changed"), (name, mutation, came, data[:64])
        family = "other" if name == "JPEG 2000" else name.split()[0]
        if family in ("JPEG", "PNG") and mutation in SURE:
            assert came != "changed", (name, mutation)
        if mutation == "put behind":
            assert came == "same", (name, mutation)
        for key in (family, "all"):
            counts.setdefault(key, Counter())[came] += 1
    for family, most in MOST_CHANGED.items():
        assert counts[family]["changed"] <= most * counts[family].total(), (family, counts[family])
    assert counts["all"].total() == files


def test_a_few_hundred_mutated_files(fuzzer: ModuleType) -> None:
    check(fuzzer, 600, seed=1)


@pytest.mark.slow
def test_thousands_of_mutated_files(fuzzer: ModuleType) -> None:
    check(fuzzer, 20_000, seed=2)


def test_a_mutation_of_a_part_knows_the_parts(fuzzer: ModuleType) -> None:
    """Put together again, the parts of a file are the file."""
    for name, files in fuzzer.samples(1).items():
        if "part dropped" in fuzzer.mutations(name):
            assert fuzzer._whole(files[0], fuzzer._parts(files[0])) == files[0], name

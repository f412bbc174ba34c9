"""The check that a docstring's first sentence stands alone."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_SCRIPT = Path(__file__).parent.parent / "tools" / "docstrings.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docstrings", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "docstring",
    [
        "Momentum of the sgd method; adam ignores it.",
        "Number of images by split.",
        "`quickstudy retrain`: from a folder of photos to a verified classifier.",
        "With a classifier, the next to label are those with large gradients.",
        "At most so many images, in the order to label them.",
        "At their end, files have a checksum.",
        "Whether the image is a test of it.",
        "What images were said to be by fits that had not seen them.",
        "Is one model better than the other?",
        "Answers come from these:\n\n- one\n- two",
        "Find pairs of rows.\n\nOf many rows, the first ones stand for all.",
        "Find pairs of rows\n    that point the same way.\n\n    Args:\n        rows: n×d.",
    ],
)
def test_sentences_pass(script: ModuleType, docstring: str) -> None:
    assert script.complaint(docstring) == ""


@pytest.mark.parametrize(
    ("docstring", "wrong"),
    [
        ("Of sgd; adam has its own.", "fragment"),
        ("By split, in no order.", "fragment"),
        ("As JSON values.", "fragment"),
        ("That prepare batches; 0: the training thread does.", "fragment"),
        ("Such as `1 file` and `1,200 files`.", "fragment"),
        ("From pixels to the cut.", "fragment"),
        ("Where freezing ended.", "fragment"),
        ("In a thread: what there is to say about one image, if any.", "fragment"),
        ("In all.", "fewer than 3 words"),
        ("K.", "fewer than 3 words"),
        ("", "begins with neither"),
        ("n×d, without the last feature.", "begins with neither"),
        ("auto, cpu or cuda.", "begins with neither"),
        ("(n×K) probabilities of the classes.", "begins with neither"),
        ("Probabilities of the classes", "no end"),
        ("Probabilities of the classes,\n\nwhich are calibrated.", "no end"),
    ],
)
def test_fragments_are_named(script: ModuleType, docstring: str, wrong: str) -> None:
    assert wrong in script.complaint(docstring)


def test_functions_begin_with_what_they_do(script: ModuleType) -> None:
    assert "does" in script.complaint("The weights of all layers.", of_function=True)
    assert script.complaint("The weights of all layers.") == ""
    assert script.complaint("List the weights of all layers.", of_function=True) == ""


def test_modules_classes_functions_and_fields_are_looked_at(script: ModuleType) -> None:
    tree = ast.parse(
        '''"""Module."""
LIMIT = 1
"""Constant."""
x = [1]
"not a docstring of its own" if x else None

class A:
    """Class."""

    field: int = 0
    """Field."""

    async def method(self):
        """Method."""
        local = 1
        """No docstring: a text in a function."""

    @property
    def value(self):
        """Property."""
'''
    )
    assert sorted(script.docstrings(tree)) == [
        (1, "Module.", False),
        (3, "Constant.", False),
        (8, "Class.", False),
        (11, "Field.", False),
        (14, "Method.", True),
        (20, "Property.", False),
    ]


def test_findings_are_listed_with_their_place(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "room" / "bad.py"
    bad.parent.mkdir()
    good.write_text('"""This module is as it should be."""\n')
    assert script.main([str(tmp_path)]) == 0
    bad.write_text('"""This module is not."""\n\n\ndef f():\n    """Of the module.\n\n    More.\n    """\n')
    assert script.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f'{bad}:5: "Of the module." is a fragment\n'

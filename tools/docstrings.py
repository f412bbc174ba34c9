"""Report docstrings whose first sentence is none: a fragment, a few words, without a capital or an end.

That of a function, unless it is a property, says what the function does, so it does not begin with a thing.

    python tools/docstrings.py [FOLDER]        # src/quickstudy by default

Each is printed as `path:line: docstring`; the exit status is 1 where there are any. Looked at are the docstrings of
modules, classes and functions, and of fields: a text right after an assignment in a module or class.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SOURCE = Path(__file__).resolve().parent.parent / "src" / "quickstudy"
_FEWEST_WORDS = 3
# No sentence that this project writes begins so.
_FRAGMENTS = re.compile(
    r"(Of|By|Until|Such|Likewise|That|Which|Beside|Between|Under which|From which|With which)\b"
    r"|As (`|JSON\b)"
)
# A sentence may begin so, but its subject then comes after a comma: 'With a token, …', 'To keep it short, …'.
_OPENINGS = re.compile(r"(As|At(?! (most|least)\b)|From|In|On|With|To|For|Under|Where|When|Before|After|Without)\b")
_THINGS = re.compile(r"(The|A|An|All|This|These|Its|What|Whether|How)\b")
_COMMA_FIRST = re.compile(r"[^,;:]*,")
_BEGINNING = re.compile(r"[\"'`“‘]|[^\W_]")
_SENTENCE_END = re.compile(r"(?<=[.?])\s")


def complaint(docstring: str, *, of_function: bool = False) -> str:
    """Say what is wrong with the first sentence of a docstring; nothing where it stands alone."""
    summary = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = _SENTENCE_END.split(summary)[0]
    if not _BEGINNING.match(sentence) or sentence[0].islower():
        return "begins with neither a capital letter, a digit nor a quotation mark"
    if not summary.endswith((".", "?", ":")):
        return "has no end"
    if len(sentence.split()) < _FEWEST_WORDS:
        return f"has fewer than {_FEWEST_WORDS} words"
    if _FRAGMENTS.match(sentence) or (_OPENINGS.match(sentence) and not _COMMA_FIRST.match(sentence)):
        return "is a fragment"
    if of_function and _THINGS.match(sentence):
        return "does not say what the function does"
    return ""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Go through a module's docstrings with their lines, those of fields too, and whether each is a function's."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        of_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not any(
            ast.unparse(decorator).endswith("property") for decorator in node.decorator_list
        )
        before: ast.stmt | None = None
        for number, statement in enumerate(node.body):
            documents_field = isinstance(before, ast.Assign | ast.AnnAssign) and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef
            )
            before = statement
            if (
                (number == 0 or documents_field)
                and isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value, of_function


def main(arguments: list[str]) -> int:
    """Check all files of a folder; the exit status."""
    folder = Path(arguments[0]) if arguments else _SOURCE
    found = 0
    for path in sorted(folder.rglob("*.py")):
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        for line, docstring, of_function in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            if wrong := complaint(docstring, of_function=of_function):
                found += 1
                first = docstring.strip().split("\n")[0]
                print(f'{shown}:{line}: "{first}" {wrong}')  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

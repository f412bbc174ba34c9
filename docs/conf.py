"""How the documentation is built: `make docs`, then .docs/index.html."""

from typing import Any

from quickstudy.options import fields_of
from quickstudy.version import VERSION

project = "quickstudy"
author = "The quickstudy developers"
copyright = "The quickstudy developers; Apache-2.0"  # noqa: A001 (Sphinx's name)
release = version = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
highlight_language = "none"  # commands and what they print; Python stands in fences that say so
exclude_patterns = ["pictures"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"quickstudy {VERSION}"
html_show_sourcelink = False


def _describe_options(_app: Any, what: str, name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """What the command line says of a configuration's options is their documentation here."""
    if what == "class" and name.endswith(("Config", "Distortions", "Method")):
        lines.append("")
        lines.extend(
            f"- ``{field.name}`` ({field.option.flag_for(field.name)}): {field.option.help}"
            for field in fields_of(thing())
            if field.option
        )


def setup(app: Any) -> None:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _describe_options)

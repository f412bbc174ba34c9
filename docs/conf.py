"""How the documentation is built: `make docs`, then .docs/index.html."""

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

"""Sphinx configuration: `python -m sphinx -c docs . build/docs`.

The root of the repository is the source, so that a link from one page to
another, to the README or to a result is a path, which Sphinx checks and which
works where the files are read without it.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "Relational Memory Core"
author = "the authors of rmc"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "results/**.md", "benchmarks/*.md"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["toc.not_included"]  # Single results are linked to.

default_role = "literal"  # Docstrings have names of code in single backticks.
autoclass_content = "both"  # The arguments are in the docstring of __init__.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Shapes, in the docstrings, say more.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = project
html_copy_source = False

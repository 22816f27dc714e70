"""Sphinx's configuration of the book; ``build.py`` lays out the sources and starts it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# Docstrings are read from the functions themselves, not from what compilers make of them.
os.environ["NUMBA_DISABLE_JIT"] = "1"

import griffin_np  # noqa: E402
from griffin_conformance.clauses import read_clauses  # noqa: E402

project = "griffin-np"
author = "the authors of griffin-np"
project_copyright = f"{author}, Apache 2.0"
release = griffin_np.__version__
language = "en"

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "mathml", "docstrings",
    "clauses",
]  # fmt: skip
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!griffin_).*")]  # bases from elsewhere
griffin_clauses = sorted(read_clauses())

# Notebooks come executed. Formulas stand in dollars.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "commonmark"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_allow_labels = False
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_default_options = {
    "members": True, "member-order": "bysource", "show-inheritance": True,
    # What is not for export, but has a sentence of its own, is worth finding too.
    "ignore-module-all": True, "special-members": "__call__",
}  # fmt: skip
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
highlight_language = "none"
viewcode_line_numbers = True

html_theme = "furo"
html_title = "griffin-np"
html_static_path = [str(HERE / "static")]
html_css_files = ["book.css"]
html_favicon = str(HERE / "static" / "mark.svg")
html_logo = str(HERE / "static" / "mark.svg")
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # browsers fetch no page beside one that is a file
html_permalinks_icon = "#"
html_theme_options = {
    "sidebar_hide_name": False,
    "top_of_page_buttons": [],
    "light_css_variables": {
        "color-brand-primary": "#1f5f9e",
        "color-brand-content": "#1f5f9e",
        "color-brand-visited": "#1f5f9e",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6fb1e3",
        "color-brand-content": "#6fb1e3",
        "color-brand-visited": "#6fb1e3",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

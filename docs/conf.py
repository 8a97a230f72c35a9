"""The site: these pages, the notebooks, and the reference made from docstrings. `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pages  # noqa: E402

import goat_jax  # noqa: E402

project = "goat_jax"
author = "the goat_jax authors"
copyright = "the goat_jax authors, Apache-2.0"
release = version = goat_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["study/*", "_build"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"goat_jax {release}"
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# A name in single backticks links to its entry if there is one, and is shown as code if not.
default_role = "py:obj"
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
napoleon_use_ivar = True
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"


def setup(app):
    """Pages that are made of the code and the notebooks, and the check that nothing is missing."""
    app.connect("builder-inited", pages.write_all)
    app.connect("autodoc-process-docstring", pages.one_name_each, priority=400)
    app.connect("autodoc-process-signature", pages.readable_defaults)
    app.connect("autodoc-skip-member", pages.skip_twice)
    app.connect("env-check-consistency", pages.check_reference)
    app.connect("doctree-resolved", pages.link_names)
    app.add_html_math_renderer("mathml", (pages.inline_math, None), (pages.block_math, None))

"""Sphinx's configuration: `make docs` builds the site in build/docs."""

import importlib.metadata
import pathlib
import re

project = "jax_maddness"
author = "The jax_maddness authors"
copyright = "2026, The jax_maddness authors"
version = release = importlib.metadata.version("jax_maddness")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]

html_theme = "sphinx_book_theme"
html_title = "jax_maddness"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "text": "jax_maddness"},
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}

# Pages are executed by a test, in order, as a reader would; those that show what they print are executed here.
nb_execution_mode = "cache"
nb_execution_cache_path = "../build/docs/cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # bars of progress
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings name arguments, arrays and expressions in single backticks. Those that are public names become links.
default_role = "py:obj"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
add_module_names = False

ROOT = pathlib.Path(__file__).parent.parent
ROOT_PAGES = {"CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "SECURITY": "security", "README": "index"}
"""Files of the repository's root, and the pages of the site that show them."""


def read_root_pages(_app, docname, source):
    """Shows files of the root in the place of their stubs, and points links to them to their pages."""
    names = {page: name for name, page in ROOT_PAGES.items() if page != "index"}
    if docname in names:
        text = (ROOT / f"{names[docname]}.md").read_text()
        source[0] = re.sub(r"\]\((?!https?:|#)(docs/)?([^)]*)\)", lambda m: f"]({'' if m[1] else '../'}{m[2]})", text)
    for name, page in ROOT_PAGES.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{name}\.md(#[^)]*)?\)", rf"]({page}.md\1)", source[0])


def mark_literal_blocks(_app, _what, _name, _object, _options, lines):
    """Marks indented formulas and code of docstrings, which follow a colon and an empty line, as literal blocks."""
    for i in range(len(lines) - 2):
        indent = len(lines[i]) - len(lines[i].lstrip())
        if re.search(r"[^:]:$", lines[i]) and not lines[i + 1].strip() and lines[i + 2].startswith(" " * (indent + 4)):
            lines[i] += ":"


def shorten_names(_app, _what, _name, _object, _options, arguments, result):
    """Shows JAX's arrays under their public name."""
    return tuple(
        text and re.sub(r"jaxlib\._jax\.Array|jax\._src\.\w+\.Array", "Array", text) for text in (arguments, result)
    )


def setup(app):
    """Connects what this file adds to Sphinx."""
    app.connect("autodoc-process-signature", shorten_names)
    app.connect("autodoc-process-docstring", mark_literal_blocks, priority=400)  # before napoleon
    app.connect("source-read", read_root_pages)

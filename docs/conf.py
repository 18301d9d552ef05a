"""The manual's Sphinx configuration: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import myst_nb.core.render
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docfields import TypedField
from sphinx_click.ext import ClickDirective

import aam

project = "AAM"
author = "the AAM developers"
copyright = "the AAM developers, BSD 3-Clause License"
version = release = aam.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# The pages are plain Markdown first: links between them, to headings by GitHub's anchors, and to files beside docs/.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
smartquotes = False  # `--epochs` has two hyphens
highlight_language = "none"

# Notebooks are text without outputs: they are run when the manual is built, and again only when they change.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True

# Docstrings are numpydoc. `name` within them is a reference where it names something of AAM, else code. A reference to
# a module of AAM that does not exist is an error; types of other packages are no links, for a build needs no network.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_mock_imports = ["ray"]  # large, and needed by one engine of `aam tune` alone
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!aam\.).*"), (r"py:.*", r"aam\..*\.([A-Z_]+|_\w+)")]  # nor are constants listed

html_theme = "furo"
html_title = f"AAM {release}"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False


def with_whole_lines(outputs: list) -> list:
    """Outputs of a cell with what it prints in one piece, standard output first.

    IPython hands on what `%%bash` prints 100 bytes at a time, and myst-nb's own merging ends each piece with a line.
    """
    streams: dict[str, list] = {"stdout": [], "stderr": []}
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]].append(output)
    for pieces in streams.values():
        for piece in pieces[1:]:
            pieces[0]["text"] += piece["text"]
    others = [output for output in outputs if output["output_type"] != "stream"]
    return [pieces[0] for pieces in streams.values() if pieces] + others


nb_merge_streams = True
myst_nb.core.render.coalesce_streams = with_whole_lines


class Options(ClickDirective):
    """A command's help below the heading of its page, without a heading of its own."""

    def run(self) -> list:
        (section,) = super().run()
        return section.children[1:]


def setup(app: Sphinx) -> None:
    for field in PyObject.doc_field_types:
        if isinstance(field, TypedField):
            field.typerolename = ""  # types are prose: "ndarray of shape (N,)" refers to nothing of AAM
    app.add_directive("click", Options, override=True)

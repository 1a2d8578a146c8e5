"""How Sphinx builds the site from the Markdown files, which are read as they are in the repository, too.

    sphinx-build -c docs . SITE

The repository's root is the source, so that links to the README and its like lead somewhere in both.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

from pygments.lexers import PostgresLexer
from sphinx.highlighting import lexers

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "celery-pgleader"
author = "The celery-pgleader developers"
project_copyright = author
version = release = version_of("celery-pgleader")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "example_app/README.md"]
exclude_patterns = [".*", "celery_pgleader", "tests", "benchmarks", "dist", "docs/site"]

# What docstrings have between single quotes of this kind is code.
default_role = "code"
# Links name headings as the repository's pages do.
myst_heading_anchors = 4

# Bodies of functions are quoted as only Postgres does it.
lexers["sql"] = PostgresLexer(stripnl=False)

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autoclass_content = "both"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "celery-pgleader"
# Leads from the site's root to the landing page.
html_extra_path = ["site"]
html_copy_source = False
html_show_sphinx = False

SECTION = re.compile(r"^## (.+)\n((?:(?!^## )[\s\S])*)", re.MULTILINE)
PAGE = re.compile(r"^(?:- |\| )\[[^\]]+\]\(([^)#\s]+\.(?:md|rst))\)", re.MULTILINE)


def add_contents(_app: Sphinx, page: str, text: list[str]) -> None:
    """Have the site's contents follow the lists of pages on the landing page, section by section."""
    if page != root_doc:
        return
    for section in SECTION.finditer(text[0]):
        pages = [re.sub(r"\.(md|rst)$", "", path) for path in PAGE.findall(section[2])]
        if pages:
            listed = "\n".join(pages)
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {section[1]}\n\n{listed}\n```\n"


def keep_code(_app: Sphinx, _what: str, _name: str, _documented: object, _options: object, lines: list[str]) -> None:
    """Have what a docstring indents, after an empty line, be code."""
    for number in range(len(lines) - 1, 1, -1):
        before, empty, line = lines[number - 2 : number + 1]
        if line.startswith("    ") and not empty and before and not before.startswith(" "):
            lines[number - 1 : number - 1] = ["", "::"]


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("source-read", add_contents)
    # Before its sections are made into lists.
    app.connect("autodoc-process-docstring", keep_code, priority=100)

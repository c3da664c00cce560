"""How the site is made (make docs): pages are read where they stand, so their links are those of the repository."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python_api")]

import inn_kernels  # noqa: E402

project = "inn-kernels"
copyright = "the authors of inn-kernels, Apache-2.0"
release = inn_kernels.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/gallery/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "bench", "csrc", "examples", "inn_kernels", "python_api", "tests"]
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_title = f"inn-kernels {release}"
myst_heading_anchors = 3
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"

NAVIGATION = """

```{{toctree}}
:hidden:

{pages}
```
"""
PAGES = (
    "docs/gallery/index",
    "docs/api",
    "docs/coming_from",
    "docs/support",
    "docs/zoo",
    "docs/design",
    "docs/numerics",
    "docs/paper",
    "docs/bench",
    "docs/gpu",
    "docs/scaling",
    "docs/migrating",
    "CONTRIBUTING",
    "CHANGELOG",
)
GALLERY = ("quadratures", "any_width", "pitch_tracker", "on_request", "growing", "two_processes")


def navigate(app, name, text):
    """Append what lies under a page, which on its own it shows as a table of links."""
    under = {"README": PAGES, "docs/gallery/index": GALLERY}.get(name)
    if under:
        text[0] += NAVIGATION.format(pages="\n".join(under))


def open_at_readme(app, error):
    """The page that a browser asks for first."""
    if error is None and app.builder.name == "html":
        (Path(app.outdir) / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')


def escape(app, what, name, thing, options, lines):
    """Stars and bars of docstrings are a shape's, [K, *kernel], or a norm's, |x|; they are no markup."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            lines[i] = re.sub(r"(?<!\*)\*(?=\w)|\|", r"\\\g<0>", line)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape)
    app.connect("source-read", navigate)
    app.connect("build-finished", open_at_readme)

"""Settings of Sphinx: `python -m sphinx -W -n -b html docs docs/_build` (see CONTRIBUTING.md)."""

from __future__ import annotations

import re
from typing import Any

import geopose

project = "geopose"
author = "geopose maintainers"
project_copyright = "geopose maintainers, Apache-2.0"
release = version = geopose.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
sphinx_gallery_conf = {  # runs the tutorials; an error in one ends the build
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
}
html_theme = "furo"
html_title = f"geopose {release}"
exclude_patterns = ["_build", "tutorials"]
default_role = "literal"  # docstrings write `name` for code
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpick_ignore_regex = [  # other projects' names (their pages are not asked for), private ones, type variables
    (r"py:.*", r"(?!geopose\.).*|geopose\.(.*\.)?_.*|.*\.docking_report\.Table"),
]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", tidy_docstring, priority=1)


def tidy_docstring(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Turns plain text into what reStructuredText reads as the same plain text.

    Stars, bars and final underscores outside of backticks are escaped, backticks set apart from what they touch, and
    paragraphs of the form `name: text` become a list.
    """
    parts = "\n".join(lines).split("`")
    parts[::2] = [re.sub(r"(\*|\||_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    for i in range(2, len(parts), 2):  # after a closing backtick
        parts[i] = re.sub(r"^(?=[\w^(\[{])", r"\\ ", parts[i])
    lines[:] = _listed("`".join(parts).split("\n"))


_ENTRY = re.compile(r"^([A-Za-z]\w*(?:, [A-Za-z]\w*)*): (?=\S)")


def _listed(lines: list[str]) -> list[str]:
    """Paragraphs that hold entries `name: text` at the margin, with lines continued further in, as bullets."""
    out: list[str] = []
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
            continue
        out += [*_as_list(block), line]
        block = []
    return out[:-1]


def _as_list(block: list[str]) -> list[str]:
    if len(block) < 2 or not _ENTRY.match(block[0]):
        return block
    starts = [bool(_ENTRY.match(line)) for line in block]
    inner = [line.startswith(" ") for line in block]
    if sum(starts) < 2 and not any(inner):
        return block
    return [
        f"- **{line[: m.end() - 2]}**: {line[m.end() :]}"
        if (m := _ENTRY.match(line))
        else f"  {line.strip()}"
        for line in block
    ]

"""A page with pictures in one HTML file, which needs no network and no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
p { max-width: 46rem; margin: .3rem 0 .8rem; color: #444; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: .6rem 0; } th { font-weight: 600; }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0;
  border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
"""


class Section(NamedTuple):
    """One section of a page.

    Attributes:
        heading: the section's heading.
        text: the description of the picture, or the reason why there is none.
        picture: the contents of a PNG file, or None.
    """

    heading: str
    text: str
    picture: bytes | None = None


def render_page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Returns the page as HTML with the pictures embedded.

    Args:
        title: the page's title.
        facts: name -> value, shown as a table at the top.
        sections: the sections below it.

    >>> page = render_page("Run", {"task": "a < b"}, [Section("Loss", "It falls.", b"png")])
    >>> "a &lt; b" in page, "data:image/png;base64,cG5n" in page, "http" in page
    (True, True, False)
    """
    rows = "".join(f"<tr><th>{_safe(k)}</th><td>{_safe(v)}</td></tr>\n" for k, v in facts.items())
    parts = "".join(_section(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_safe(title)}</h1>\n<table>\n{rows}</table>\n{parts}</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    body = f"<section>\n<h2>{_safe(section.heading)}</h2>\n<p>{_safe(section.text)}</p>\n"
    if section.picture is not None:
        code = base64.b64encode(section.picture).decode("ascii")
        alt = _safe(section.heading)
        body += f'<img alt="{alt}" src="data:image/png;base64,{code}">\n'
    return body + "</section>\n"


def _safe(text: str) -> str:
    return html.escape(str(text))

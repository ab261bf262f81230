"""The page: one HTML file with its style, script and figures inside, which asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        sections: HTML.
    """
    return Template(_resource("page.html")).substitute(
        title=escape(title), style=_resource("page.css"), body="\n".join(sections), script=_resource("page.js")
    )


def section(heading: str, *parts: str) -> str:
    """Parts (HTML) under a heading (plain text)."""
    return "\n".join([f"<section>\n<h2>{escape(heading)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def figures(svgs: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    return '<div class="figures">\n' + "\n".join(f"<figure>\n{svg}\n</figure>" for svg in svgs) + "\n</div>"


def details(summary: str, content: str) -> str:
    """Content (HTML) that opens on demand."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


def links(names: Iterable[str]) -> str:
    """Links to files beside the page."""
    return "<p>" + ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in names) + "</p>"


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

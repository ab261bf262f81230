"""A figure put into a page: ids that no other figure has, and a ``<title>`` on every point."""

from __future__ import annotations

import re
from html import escape

from matryoshka_st.evaluation.report.figures import TIP, Drawing


def inline_svg(drawing: Drawing, name: str, label: str) -> str:
    """The SVG element of a drawing.

    Args:
        drawing: The figure and its tooltips.
        name: Put before every id.
        label: Read out instead of the figure.
    """
    svg = drawing.svg.decode()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for i, tip in enumerate(drawing.tips):
        point = f'<g id="{TIP}{i}">'
        svg = svg.replace(point, f'<g class="point" id="{TIP}{i}"><title>{escape(tip)}</title>', 1)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)

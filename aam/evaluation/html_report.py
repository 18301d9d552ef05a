"""A page that holds everything it shows: text, tables and pictures in one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aam.evaluation.error_analysis import as_text

__all__ = ["Page"]

_PIXELS = 0.7  # of the page for one of a picture, which is drawn for fine screens

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05em; margin-bottom: .3em; }
table { border-collapse: collapse; margin: .6em 0; font-size: .92em; }
th, td { padding: .25em .7em; border-bottom: 1px solid #e5e5e5; text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } th { background: #f6f6f6; }
img { max-width: 100%; height: auto; margin: .4em 0; } figure { margin: 0 0 1em; }
figcaption { color: #666; font-size: .92em; max-width: 60em; }
p.note { color: #666; font-size: .92em; margin: .2em 0 .8em; }
.scroll { overflow-x: auto; }
"""


class Page:
    """A page under construction.

    Parameters
    ----------
    title : str
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """A heading of level 2 or 3."""
        self.parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def text(self, text: str, *, note: bool = False) -> None:
        """A paragraph."""
        self.parts.append(f"<p{' class=note' if note else ''}>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of cells: numbers to the right, text to the left."""
        words = [any(isinstance(row[place], str) and row[place] for row in rows) for place in range(len(header))]
        heads = (
            f"<th{' class=text' if word else ''}>{html.escape(n)}</th>" for n, word in zip(header, words, strict=True)
        )
        lines = [f"<tr>{''.join(heads)}</tr>"]
        for row in rows:
            cells = [
                f"<td>{_number(cell)}</td>"
                if isinstance(cell, int | float)
                else f'<td class="text">{html.escape(str(cell))}</td>'
                for cell in row
            ]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        self.parts.append(f'<div class="scroll"><table>{"".join(lines)}</table></div>')

    def picture(self, path: Path, description: str, caption: str = "") -> None:
        """A PNG file, within the page, with what it shows below it."""
        content = path.read_bytes()
        width = int(int.from_bytes(content[16:20]) * _PIXELS)  # as PNG has it in its header
        encoded = base64.b64encode(content).decode()
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self.parts.append(
            f'<figure><img width="{width}" alt="{html.escape(description)}" src="data:image/png;base64,{encoded}">'
            f"{below}</figure>"
        )

    def __str__(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
            f"<body>\n{body}\n</body></html>\n"
        )


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return as_text(value)

"""One HTML page that needs nothing else and prints well, with its figures as SVG; the same figures as PNG; files as a zip."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt
import vl_convert

# Pixels per point of the PNGs: sharp in print at the width of a column.
PNG_SCALE = 3.0
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2327; background: #fff; max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; width: 100%; } td, th { border-bottom: 1px solid #d5dadd; padding: 4px 8px; text-align: right; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; } svg { max-width: 100%; height: auto; }
table.words td, table.words th { text-align: left; vertical-align: top; }
table.words td:first-child { min-width: 8.5em; overflow-wrap: normal; } table.words td:nth-child(2) { white-space: nowrap; }
pre { background: #f4f6f7; padding: 8px; overflow-x: auto; font-size: 12px; } .quiet { color: #5c676d; font-size: 13px; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } svg, table, tr { break-inside: avoid; } pre { white-space: pre-wrap; } }
"""


def page(title: str, body: str) -> str:
    """A whole document around `body`, which is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{CSS}</style></head><body>
{body}
</body></html>
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """Cells are text. `words`: sentences rather than numbers."""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def preformatted(document: Mapping[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(dict(document), indent=1, ensure_ascii=False))}</pre>"


def svg(chart: alt.TopLevelMixin) -> str:
    return vl_convert.vegalite_to_svg(_spec(chart))


def png(chart: alt.TopLevelMixin) -> bytes:
    return vl_convert.vegalite_to_png(_spec(chart), scale=PNG_SCALE)


def _spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    # Pages colour their charts by themselves; on paper the background is white.
    return {**chart.to_dict(), "background": "white"}


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()

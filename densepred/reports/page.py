"""A page of HTML that holds everything it shows: no script, no style sheet, no picture from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d2127;--pale:#667080;--line:#dfe3e8;--soft:#f5f7f9;--accent:#2f6fca}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e4e7eb;--pale:#99a3b0;--line:#30363d;--soft:#1d2127;
--accent:#7fb0f5}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 32px 64px;max-width:1500px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:26px;margin:0 0 2px}h2{font-size:19px;margin:40px 0 12px;padding-bottom:5px;
border-bottom:1px solid var(--line)}h3{font-size:15px;margin:22px 0 8px}
p{margin:6px 0;max-width:75em}.note,small,.subtitle{color:var(--pale)}small{font-weight:400;font-size:12px}
nav{margin:12px 0 0;font-size:13px}nav a{color:var(--accent);text-decoration:none;margin-right:14px}
.warning{border-left:4px solid #d98a1e;padding:6px 12px;background:var(--soft)}
.row{display:flex;flex-wrap:wrap;gap:22px 30px;align-items:flex-start}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:13.5px}caption{text-align:left;font-weight:600;padding:2px 0 6px}
th,td{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--pale)}tbody th{font-weight:400;color:var(--ink)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.best{font-weight:700}
figure{margin:0}figure.chart{width:420px;max-width:100%}figure svg{max-width:100%;height:auto;display:block}
figcaption{font-weight:600;font-size:13.5px;margin-bottom:3px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:1px 14px;margin:0 0 3px;padding:0;font-size:12px}
.legend i{display:inline-block;width:12px;height:4px;border-radius:2px;margin-right:5px;vertical-align:3px}
figure img{display:block;width:auto;max-width:min(100%,1000px);height:auto;border:1px solid var(--line)}
pre{background:var(--soft);padding:12px 14px;overflow:auto;font-size:12.5px;line-height:1.45;margin:6px 0}
code{font-size:13px}details{margin:8px 0}summary{cursor:pointer;color:var(--accent)}
@media print{body{padding:0}h2{break-after:avoid}figure,table{break-inside:avoid}nav{display:none}}
"""


def page(title: str, sections: Mapping[str, str], subtitle: str = "") -> str:
    """A whole document.

    Args:
        title: Of the document; plain text.
        sections: HTML by heading, in order; empty ones are left out.
        subtitle: Below the title; plain text.
    """
    shown = {heading: body for heading, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading in shown)
    body = "".join(f'<h2 id="{_anchor(heading)}">{escape(heading)}</h2>\n{text}\n' for heading, text in shown.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="subtitle">{escape(subtitle)}</p>\n<nav>{links}</nav>\n{body}</body>\n</html>\n'
    )


def _anchor(heading: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in heading.lower())


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """A table whose first column names the rows; numbers are set to the right.

    Args:
        header: One text a column.
        rows: As many cells each; text is escaped, None is a dash, numbers have four significant digits.
        caption: What stands above.

    Example:
        >>> '<td class="n">0.5</td>' in table(["", "miou"], [["run", 0.5]])
        True
    """
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(
        f'<th{_n(right)} scope="col">{escape(text)}</th>' for text, right in zip(header, numeric, strict=True)
    )
    body = ""
    for row in rows:
        cells = "".join(f"<td{_n(right)}>{_text(cell)}</td>" for cell, right in zip(row[1:], numeric[1:], strict=True))
        body += f'<tr><th scope="row">{_text(row[0])}</th>{cells}</tr>'
    return f'<div class="scroll"><table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _n(right: bool) -> str:
    return ' class="n"' if right else ""


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return escape(str(cell))


def picture(path: Path, caption: str = "") -> str:
    """A PNG, JPEG or GIF file embedded into the page."""
    kind = {".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif"}.get(path.suffix.lower(), "png")
    data = base64.b64encode(path.read_bytes()).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{words}<img alt="{escape(caption)}" src="data:image/{kind};base64,{data}"></figure>'


def side_by_side(*parts: str) -> str:
    """Parts in a row, which breaks where it is full."""
    return f'<div class="row">{"".join(parts)}</div>' if any(parts) else ""


def folded(summary: str, body: str) -> str:
    """What is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """Plain text that stands back."""
    return f'<p class="note">{escape(text)}</p>'


def warning(text: str) -> str:
    """Plain text that stands out."""
    return f'<p class="warning">{escape(text)}</p>'


def code(text: str) -> str:
    """Text as it is, letter under letter."""
    return f"<pre>{escape(text)}</pre>"

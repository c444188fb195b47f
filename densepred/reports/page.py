"""A page of HTML that holds everything it shows: no script, no style sheet, no picture from elsewhere."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d2127;--pale:#667080;--line:#dfe3e8;--soft:#f5f7f9;--accent:#2f6fca}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e4e7eb;--pale:#99a3b0;--line:#30363d;--soft:#1d2127;
--accent:#7fb0f5}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 32px 64px;max-width:1440px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:26px;margin:0 0 2px}h2{font-size:19px;margin:40px 0 12px;padding-bottom:5px;
border-bottom:1px solid var(--line);scroll-margin-top:44px}h3{font-size:15px;margin:22px 0 8px}
p{margin:6px 0;max-width:75em}.note,small,.subtitle{color:var(--pale)}small{font-weight:400;font-size:12px}
nav{margin:10px -4px 0;padding:8px 4px;font-size:13px;position:sticky;top:0;z-index:1;background:var(--paper);
white-space:nowrap;overflow-x:auto}nav a{color:var(--accent);text-decoration:none;margin-right:14px}
.subtitle{overflow-wrap:anywhere}
.warning{border-left:4px solid #d98a1e;padding:6px 12px;background:var(--soft)}
.row{display:flex;flex-wrap:wrap;gap:22px 30px;align-items:flex-start}
.row>figure.picture{flex:1 1 560px;min-width:0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:22px 30px;margin:8px 0}
.scroll{overflow-x:auto;max-width:100%}.scroll+.scroll{margin-top:20px}
table{border-collapse:collapse;font-size:13.5px}caption{text-align:left;font-weight:600;padding:2px 0 6px}
th,td{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--pale)}thead th{vertical-align:bottom}
tbody th{font-weight:400;color:var(--ink)}td.word,th.word{white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.best{font-weight:700}
figure{margin:0}figure.chart{width:100%;max-width:480px}figure.chart svg{width:100%}
figure svg{max-width:100%;height:auto;display:block}
figcaption{font-weight:600;font-size:13.5px;margin-bottom:3px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:1px 14px;margin:0 0 3px;padding:0;font-size:12px}
.legend i{display:inline-block;width:12px;height:4px;border-radius:2px;margin-right:5px;vertical-align:3px}
figure img{display:block;width:auto;max-width:100%;height:auto;border:1px solid var(--line)}
.picture{overflow-x:auto}.picture label{cursor:zoom-in}.picture input{position:absolute;opacity:0}
.picture input:checked+img{max-width:none;cursor:zoom-out}
.picture input:focus-visible+img{outline:2px solid var(--accent)}
pre{background:var(--soft);padding:12px 14px;overflow:auto;white-space:pre-wrap;
font-size:12.5px;line-height:1.45;margin:6px 0}
code{font-size:13px}.facts th{padding-right:24px}details{margin:8px 0}details[open]>summary{margin-bottom:8px}
summary{cursor:pointer;color:var(--accent)}
@media(max-width:640px){body{padding:18px 14px 48px}h1{font-size:22px}h2{margin-top:30px}}
@media print{body{padding:0}h2{break-after:avoid}figure,table{break-inside:avoid}nav{display:none}}
"""


_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ± \S+)?( %)?")


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


def fragment(body: str) -> str:
    """Charts and tables for a frame of another page, with the looks of this one."""
    return f"<style>{_STYLE}body{{padding:12px 16px}}</style>{body}"


def _anchor(heading: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in heading.lower())


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", decimals: int | None = None
) -> str:
    """A table whose first column names the rows; numbers are set to the right.

    Args:
        header: One text a column; a table of facts, whose columns need no names, has none.
        rows: As many cells each; text is escaped, None is a dash, `Best` is set in bold.
        caption: What stands above.
        decimals: Of every number that is not whole; by default four significant digits.

    Example:
        >>> '<td class="n word">0.5</td>' in table(["", "miou"], [["run", 0.5]])
        True
    """
    columns = [[row[i] for row in rows] for i in range(len(rows[0]) if rows else len(header))]
    numeric = [_is_numeric(column) for column in columns]
    short = [_is_short(column) for column in columns]
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(
        f'<th{_class(n=right)} scope="col">{escape(text)}</th>' for text, right in zip(header, numeric, strict=False)
    )
    body = ""
    for row in rows:
        cells = "".join(
            f"<td{_class(n=numeric[i], word=short[i], best=isinstance(cell, Best))}>{_text(cell, decimals)}</td>"
            for i, cell in enumerate(row[1:], start=1)
        )
        body += f'<tr><th{_class(word=short[0])} scope="row">{_text(row[0], decimals)}</th>{cells}</tr>'
    top, kind = (f"<thead><tr>{head}</tr></thead>", "") if header else ("", _class(facts=True))
    return f'<div class="scroll"><table{kind}>{above}{top}<tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Best:
    """A cell that is the best of its row."""

    cell: float | str


def _is_numeric(column: Sequence[object]) -> bool:
    cells = [_plain(cell) for cell in column if cell is not None]
    numbers = any(isinstance(cell, int | float) for cell in cells)
    return numbers or all(isinstance(cell, str) and _NUMBER.fullmatch(cell) for cell in cells)


def _is_short(column: Sequence[object]) -> bool:
    return all(len(str(_plain(cell))) <= 34 for cell in column)


def _plain(cell: object) -> object:
    return cell.cell if isinstance(cell, Best) else cell


def _class(**names: bool) -> str:
    held = " ".join(name for name, holds in names.items() if holds)
    return f' class="{held}"' if held else ""


def _text(cell: object, decimals: int | None) -> str:
    cell = _plain(cell)
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}" if decimals is None else f"{cell:.{decimals}f}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return escape(str(cell))


def picture(path: Path, caption: str = "") -> str:
    """A PNG, JPEG or GIF file embedded into the page, as wide as there is room; a click shows every pixel of it."""
    kind = {".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif"}.get(path.suffix.lower(), "png")
    data = base64.b64encode(path.read_bytes()).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">'
    return f'<figure class="picture">{words}<label title="full size"><input type="checkbox">{image}</label></figure>'


def side_by_side(*parts: str) -> str:
    """Parts in a row, which breaks where it is full."""
    return f'<div class="row">{"".join(parts)}</div>' if any(parts) else ""


def charts(*figures: str) -> str:
    """Charts in equal columns, as many as there is room for."""
    return f'<div class="charts">{"".join(figures)}</div>' if any(figures) else ""


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

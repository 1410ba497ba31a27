"""HTML documents of reports: one file with its style and its script, without requests to other hosts.

The content security policy of a document allows its own style and script only. Markup that reaches a document in spite
of `text` can therefore run nothing and load nothing.
"""

import base64
import hashlib
import html
from importlib.resources import files

STYLE_FILE, SCRIPT_FILE = "page.css", "page.js"


def document(title: str, body: str) -> str:
    """Return a complete HTML document.

    Args:
        title: Title as plain text.
        body: Markup of the body. All text in the body is escaped by `text`.
    """
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in (STYLE_FILE, SCRIPT_FILE))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            "media-src 'self' file: data:",
            "connect-src 'self' data:",
            f"style-src {_source(style)}",
            f"script-src {_source(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def text(value: object) -> str:
    """Escape a value for markup: for the content of an element, or for an attribute in quotation marks."""
    return html.escape(str(value), quote=True)


def plural(count: int, name: str) -> str:
    """Return a number with a noun, such as "1 loop" or "1,200 loops"."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def data_uri(kind: str, content: bytes) -> str:
    """Return a `data:` URI.

    Args:
        kind: Media type, such as image/png.
        content: Content of the file.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def fold(title: str, note: str, content: str) -> str:
    """Return a section that is closed until the reader opens it.

    Args:
        title: Heading.
        note: Short text beside the heading.
        content: Markup of the section.
    """
    return (
        f'<details class="fold"><summary><h2>{text(title)}</h2> <span>{text(note)}</span></summary>'
        f"<div>{content}</div></details>"
    )


def tiles(facts: dict[str, tuple[str, str]]) -> str:
    """Return a row of figures with names and notes.

    Args:
        facts: Value and note by name.
    """
    cells = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>"
        for name, (value, note) in facts.items()
    )
    return f'<dl class="tiles">{cells}</dl>'


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Return a table. The first cell of a row is its heading.

    Args:
        head: Names of the columns.
        rows: Cells of each row.
    """
    names = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="table"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

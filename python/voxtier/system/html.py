"""What notebooks show of an object: a small table, every value escaped, with a picture where one helps."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape

_WIDEST = 240  # pixels


def facts_html(title: str, facts: Mapping[str, object], picture: bytes | None = None) -> str:
    """Return names and values under a title.

    Parameters
    ----------
    title : str
        What the object is.
    facts : mapping of str to object
        None is left out.
    picture : bytes or None
        A PNG picture, shown beside.

    Returns
    -------
    str
        HTML without scripts and styles of its own.
    """
    rows = [(name, value) for name, value in facts.items() if value is not None]
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    shown = f"<b>{escape(title)}</b><table>{table}</table>"
    if picture is None:
        return f"<div>{shown}</div>"
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    image = f'<img src="{source}" alt="" style="max-width:{_WIDEST}px;max-height:{_WIDEST}px">'
    return f'<div style="display:flex;gap:1em"><div>{shown}</div>{image}</div>'


def rows_html(title: str, names: Iterable[str], rows: Iterable[Iterable[object]], more: int = 0) -> str:
    """Return rows under a title and the names of their columns.

    Parameters
    ----------
    title : str
        What the object is.
    names : iterable of str
        Of the columns.
    rows : iterable of iterable
        Their values.
    more : int
        Rows that are not shown, which is said.

    Returns
    -------
    str
        HTML without scripts and styles of its own.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows
    )
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    return f"<div><b>{escape(title)}</b><table><tr>{head}</tr>{body}</table>{rest}</div>"

"""Text of others, made harmless: names of files and volumes may hold anything."""

from __future__ import annotations

__all__ = ["on_one_line"]


def on_one_line(text: str) -> str:
    """Return text, such as a path, with what breaks a line or speaks to a terminal escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

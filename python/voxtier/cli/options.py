"""Options and openings that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from voxtier.system.text import on_one_line as on_one_line

if TYPE_CHECKING:
    from voxtier.frames.store.store import FrameStore


def _utf8(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("the name is not UTF-8") from None
    return name


SOURCE = click.option(
    "--source", default="default", show_default=True, callback=_utf8,
    help="Name under which the files are indexed.",
)  # fmt: skip
DSN = click.option(
    "--dsn",
    envvar="VOXTIER_DSN",
    help="PostgreSQL to use, as postgresql://... [VOXTIER_DSN]; without it, voxtier runs its own.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def in_bytes(count: float) -> str:
    """Return a number of bytes for people: ``1.3 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def open_store(dsn: str | None) -> FrameStore:
    """Open the frame index."""
    from voxtier.frames.store.store import FrameStore

    return FrameStore(dsn)

"""Files for index runs, and what a run reports and leaves in the index."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from support.builders import dicom, element, image, pattern
from voxtier.frames.indexing.run import FileIndexer, FileReport, index_files
from voxtier.frames.store.store import FrameStore


def native(frames: int = 1, seed: int = 0) -> bytes:
    return dicom([*image(frames=frames), element("PixelData", pattern(16 * frames, seed))]).content


def write_files(folder: Path, count: int) -> list[str]:
    """Files with 1, 2, 3... frames."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05}.dcm" for number in range(count)]
    for frames, path in enumerate(paths, 1):
        path.write_bytes(native(frames))
    return [str(path) for path in paths]


def link_files(folder: Path, count: int) -> list[str]:
    """Many small files that share their content."""
    folder.mkdir()
    first = folder / "first"
    first.write_bytes(native())
    paths = [str(folder / f"{number:06}.dcm") for number in range(count)]
    for path in paths:
        os.link(first, path)
    return paths


def run(store: FrameStore, paths: list[str], **options: object) -> list[FileReport]:
    indexer = FileIndexer(store, **options)  # type: ignore[arg-type]
    return [report for reports in index_files(indexer, paths) for report in reports]


def set_state(store: FrameStore, path: str) -> None:
    """Make the row of a file say that it describes the file's present state, whatever the file holds."""
    state = os.stat(path)
    store.query(
        "UPDATE voxtier.file SET size = %s, mtime_ns = %s, ctime_ns = %s, inode = %s WHERE path = %s "
        "RETURNING 1",
        (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, path),
    )


def statuses(reports: list[FileReport]) -> Counter[str]:
    return Counter(report.status for report in reports)

"""Raw files: which of them a run has downloaded, and may remove once their tensors are right."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtier import _core
from voxtier.tensors.identity.keys import item_key, raw_path
from voxtier.tensors.making.download import part_paths
from voxtier.tensors.making.worker_pool import Task

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.manifest import Manifest

__all__ = ["RawFiles"]

log = logging.getLogger("voxtier.tensors.making.run")


class RawFiles:
    """The raw files of one configuration.

    Parameters
    ----------
    config : Config
        Names the image folder.
    folder : Path
        The cache folder of the tensors.
    manifest : Manifest
        Knows which raw files were downloaded; the user's own are never removed without being asked.
    """

    def __init__(self, config: Config, folder: Path, manifest: Manifest) -> None:
        self._config = config
        self._folder = folder
        self._manifest = manifest
        self._known = manifest.read()

    def is_ours(self, task: Task) -> bool:
        """Whether a run has downloaded this raw file; what the user put in its place since is not ours."""
        raw = self._known.get(task.final.stem, {}).get("raw") or {}
        if not raw.get("ours") or part_paths(task.raw)[0].exists():  # no download has come to its end
            return False
        try:
            size = task.raw.stat().st_size
        except OSError:
            return True
        return bool(size == raw.get("size", size))

    def expect(self, task: Task, size: int) -> None:
        """Note, before its download begins, that a raw file of that size will be ours to remove."""
        self._note(task, {"path": str(task.raw), "size": size, "ours": True})

    def disown(self, task: Task) -> None:
        """Note that the download came to nothing: a file that appears there later is the user's."""
        self._note(task, None)

    def _note(self, task: Task, raw: dict[str, Any] | None) -> None:
        self.record([{"key": task.final.stem, "volume": task.volume, "raw": raw}])
        self._known.setdefault(task.final.stem, {})["raw"] = raw

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Append to the manifest, where that is possible."""
        if rows:
            try:
                self._manifest.record(rows)
            except OSError as error:
                log.warning("the manifest cannot be written, and is not needed: %s", error)

    def clean_leftovers(self, names: Iterable[str], *, also_foreign: bool) -> int:
        """Remove raw files whose tensors are there: ours of interrupted runs, or all. Return how many."""
        removed = 0
        for name in names:
            key = item_key(name)
            if not also_foreign and not self._known.get(key, {}).get("raw"):
                continue  # the most of them, without a look at the disk
            raw = raw_path(self._config.img_dir, name, self._config.dir_structure)
            task = Task(name, raw, self._folder / f"{key}.pt")
            ours = self.is_ours(task)
            if not (ours or also_foreign) or not task.final.exists():
                continue
            if raw.is_file():
                removed += self.clean(task)
            elif ours:
                self.disown(task)
        return removed

    def clean(self, task: Task) -> int:
        """Remove a raw file, only after its tensor was found right (structure, every CRC). Return 1 or 0."""
        report = _core.verify_tensor_file(task.final)
        if report.state not in ("ok", "ok_trailing"):
            log.error(
                "%s: its tensor is %s (%s); the raw file stays", task.volume, report.state, report.detail
            )
            return 0
        try:
            task.raw.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: could not be removed: %s", task.raw, error)
            return 0
        for folder in task.raw.parents:
            if folder == self._config.img_dir or self._config.img_dir not in folder.parents:
                break
            try:
                folder.rmdir()  # refuses unless empty
            except OSError:
                break
        if self.is_ours(task):
            self.disown(task)
        return 1

"""The ledger of a run: claims, raw files and manifest rows of its volumes.

run.py tells the ledger what happens to a volume: `claim`, then `begin_download` where its raw file is not on
disk, then `made`, `fail` or `release`. The ledger keeps the claims alive, appends to the manifest, and
removes raw files that a run has downloaded once their tensors are known to be intact.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

from voxtier import _core
from voxtier.system.text import format_count
from voxtier.tensors.claims import BEAT_SECONDS, Claim
from voxtier.tensors.identity.fingerprint import describe_processing
from voxtier.tensors.identity.keys import item_key, raw_path
from voxtier.tensors.making.download import RawState, describe_outdated, is_current, is_ours, part_paths
from voxtier.tensors.making.runlog import RunResult
from voxtier.tensors.making.worker_pool import Task
from voxtier.tensors.manifest import Entry, Manifest, describes
from voxtier.tensors.states import INTACT

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.making.download import Fetched, RemoteFile

log = logging.getLogger("voxtier.tensors.making.ledger")
missing_log = logging.getLogger("voxtier.tensors.missing")


class Ledger:
    """The claims, raw files and manifest rows of one run; a context manager that releases all claims.

    Parameters
    ----------
    config : Config
        Names the image folder.
    folder : Path
        The cache folder, which exists.
    clean_raw : bool
        Also remove raw files that the user put there.
    spellings : mapping
        The volumes that are listed under several names, by each of these: they share a raw file.
    on_settled : callable
        Called with the bytes written (0 for none) when a volume is made, has failed, or was made by others.

    Attributes
    ----------
    result : RunResult
        The counts so far.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        clean_raw: bool = False,
        spellings: Mapping[str, list[str]] = MappingProxyType({}),
        on_settled: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.result = RunResult()
        self._config = config
        self._folder = folder
        self._clean_raw = clean_raw
        self._spellings = spellings
        self._on_settled = on_settled
        self._fingerprint = describe_processing(config.processing)
        self._manifest = Manifest(folder)
        self._entries = self._manifest.read()
        self._claims: dict[str, Claim] = {}
        self._downloads: dict[str, tuple[int, Entry]] = {}
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="voxtier-claims", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for key in list(self._claims):
            self._release(key)
        with contextlib.suppress(OSError):
            self._manifest.compact()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            for claim in list(self._claims.values()):
                claim.beat()

    @property
    def raw_bytes(self) -> int:
        """Bytes of raw files that this run downloads, or has downloaded and not yet settled."""
        return sum(size for size, _ in self._downloads.values())

    def task(self, volume: str) -> Task:
        """Return a volume with the paths of its raw file and of its tensor file."""
        raw = raw_path(self._config.img_dir, volume, self._config.dir_structure)
        return Task(volume, raw, self._folder / f"{item_key(volume)}.pt")

    def _sharing(self, task: Task) -> list[Task]:
        """Return the tasks of all listed volumes with this one's raw file, itself among them."""
        return [self.task(name) for name in self._spellings.get(task.volume, [task.volume])]

    def claim(self, task: Task) -> Literal["claimed", "taken", "settled"]:
        """Claim a volume for this process.

        Returns
        -------
        {"claimed", "taken", "settled"}
            ``taken`` when another process has the claim: ask again later. ``settled`` when its tensor exists,
            or no claim can be written: nothing is left to do.
        """
        if not task.final.exists():
            try:
                claim = Claim.take(task.final)
            except OSError as error:
                self.fail(task, f"the cache folder cannot be written: {error}")
                return "settled"
            if claim is None:
                return "taken"
            self._claims[task.key] = claim
            if not task.final.exists():  # else it appeared between the first look and the claim
                return "claimed"
        self.result.made_by_others += 1
        self._settle(task.key, 0)
        return "settled"

    def begin_download(self, task: Task, size: int, source: Entry, *, git_oid: str | None = None) -> None:
        """Record, before a download begins, that its raw file is ours to remove.

        Parameters
        ----------
        task : Task
            A claimed volume.
        size : int
            Bytes of the file, by the hub's word.
        source : dict
            For the manifest: repository, commit, path and sha256.
        git_oid : str, optional
            As in `RemoteFile`: it identifies the content where there is no sha256.
        """
        self._downloads[task.key] = size, source
        raw = {"path": str(task.raw), "size": size, "ours": True, "source": source, "git_oid": git_oid}
        self._record_raw(task, raw)

    def drop_outdated(self, task: Task, remote: RemoteFile, source: Entry) -> None:
        """Remove a raw file that an earlier run downloaded and that is not the repository's now.

        Parameters
        ----------
        task : Task
            A claimed volume.
        remote : RemoteFile
            Its file in the repository.
        source : dict
            As for `begin_download`.

        Raises
        ------
        OSError
            It cannot be removed.
        """
        downloaded = [self._entries[each.key]["raw"].get("source") or {} for each in self._ours(task)]
        if not all(is_current(each, task.raw, remote, source) for each in downloaded):
            task.raw.unlink(missing_ok=True)
            self._disown(task)
            log.info("%s: of another commit, and fetched again", task.raw)

    def end_download(self, task: Task, outcome: Fetched) -> None:
        """Record what a download found in the place of its file: what it did not put there is not ours."""
        if outcome == "fetched":
            found = RawState.of(task.raw)
            if (
                found is not None
            ):  # by the time it is told from a file of the same size that the user lays there
                self._record_raw(task, {**self._entries[task.key]["raw"], **found.as_source()})
            return
        self._record_raw(task, None)
        _, source = self._downloads.pop(task.key)
        if outcome == "same":
            self._downloads[task.key] = 0, source
        else:
            log.warning("%s: laid there during the download; the repository's is not used", task.raw)

    def fail_download(self, task: Task, reason: str, *, missing_at: str | None = None) -> None:
        """Count a volume as failed because its raw file cannot be fetched.

        Parameters
        ----------
        task : Task
            A volume whose download was begun.
        reason : str
            Why.
        missing_at : str, optional
            The commit that lacks the file: later runs do not ask that commit for it.
        """
        missing_log.warning("%s: %s", task.volume, reason)
        self._record_raw(task, None)  # a file that appears there later is the user's
        if missing_at is not None:
            self._manifest.note([_missing(task, missing_at)])
        self.fail(task, f"download: {reason}")

    def record_unavailable(
        self,
        volumes: Iterable[str],
        why: str,
        *,
        outdated: Mapping[str, str] = MappingProxyType({}),
        missing_at: str | None = None,
    ) -> None:
        """Count volumes as failed that are not on disk, or of another commit, and cannot be fetched.

        Parameters
        ----------
        volumes : iterable of str
            Their names.
        why : str
            Why they cannot be fetched.
        outdated : mapping
            Where the raw files on disk come from that an earlier run downloaded from elsewhere, by volume.
        missing_at : str, optional
            The commit that lacks them: later runs do not ask that commit for them.
        """
        rows = []
        for task in map(self.task, volumes):
            if not task.final.exists():
                if task.volume in outdated:
                    reason = describe_outdated(task.raw, outdated[task.volume])
                else:
                    reason = f"not on disk as {task.raw}, and {why}"
                missing_log.warning("%s: %s", task.volume, reason)
                self.result.failed[task.volume] = reason
                rows += [] if missing_at is None else [_missing(task, missing_at)]
        self._manifest.note(rows)

    def record_unreadable(self, reasons: Mapping[str, str]) -> None:
        """Count volumes as failed whose tensor is there and is no file: that is the user's to judge."""
        for volume, reason in reasons.items():
            self.result.failed[volume] = reason
            log.error("%s: %s", volume, reason)

    def made(self, task: Task, facts: Entry) -> None:
        """Record a finished tensor, and remove its raw file where that is ours or the user asked for it.

        Parameters
        ----------
        task : Task
            A claimed volume.
        facts : dict
            What `make_tensor` returned: the report on the written file, for the manifest.
        """
        fingerprint = {**self._fingerprint, "engine": facts["made_by"]}
        row = {"key": task.key, "volume": task.volume, "fingerprint": fingerprint}
        written = {name: value for name, value in facts.items() if name not in ("outcome", "made_by", "raw")}
        source = self._source(task, facts["raw"])
        self._entries.setdefault(task.key, {}).update(written, source=source)
        self._manifest.note([{**row, "source": source, "created": time.time(), **written}])
        self.result.count_engine(task.volume, facts["outcome"])
        log.info("%s: made %s in %s s", task.volume, task.final.name, facts["seconds"])
        self.result.made += 1
        if self._clean_raw or self._ours(task):
            found = RawState.of(task.raw)
            if found == facts["raw"]:
                self._remove_raw(task, facts["state"])
            else:
                if found is not None:
                    log.warning("%s: changed while its tensor was made, and stays", task.raw)
                self._disown(task)
        self._settle(task.key, facts["size"])

    def fail(self, task: Task, reason: str) -> None:
        """Count a volume as failed."""
        self.result.failed[task.volume] = reason
        log.error("%s: %s", task.volume, reason)
        self._settle(task.key, 0)

    def release(self, task: Task) -> None:
        """Give up the claim on a volume that was not finished: the next run begins it again."""
        self._release(task.key)

    def _settle(self, key: str, size: int) -> None:
        self._release(key)
        self._on_settled(size)

    def _release(self, key: str) -> None:
        self._downloads.pop(key, None)
        claim = self._claims.pop(key, None)
        if claim is not None:
            claim.release()

    def clean_leftovers(self, volumes: Iterable[str]) -> None:
        """Remove raw files whose tensors are intact: those of interrupted runs, or with ``clean_raw`` all.

        A file of the user goes only if it is the one that its tensor was made of, by the manifest.
        """
        kept: list[Path] = []
        for task in map(self.task, volumes):
            if not self._clean_raw and not self._entries.get(task.key, {}).get("raw"):
                continue  # most volumes: no look at the disk is needed
            if not task.final.exists():
                continue
            ours = is_ours(self._entries.get(task.key, {}), task.raw)
            if not (ours or self._clean_raw):
                continue
            if not task.raw.is_file():
                if ours:
                    self._record_raw(task, None)
            elif ours or self._names_raw(task):
                report = _core.verify_tensor_file(task.final)
                if ours or report.state not in INTACT or describes(self._entries[task.key], report):
                    self._remove_raw(task, report.state, report.detail)
                else:  # another tensor was laid there, such as one of a backup
                    kept.append(task.raw)
            else:
                kept.append(task.raw)
        if kept:
            stay = "stays" if len(kept) == 1 else "stay"
            log.warning(
                "%s %s: by the manifest the tensor that lies there was not made of it (first: %s)",
                *(format_count(len(kept), "raw file"), stay, kept[0]),
            )

    def _ours(self, task: Task) -> list[Task]:
        """Return the tasks for which a run downloaded the raw file of this one."""
        return [each for each in self._sharing(task) if is_ours(self._entries.get(each.key, {}), task.raw)]

    def is_download(self, task: Task) -> bool:
        """Whether a run downloaded the raw file of a volume, also where that is gone already."""
        return bool(self._ours(task))

    def _names_raw(self, task: Task) -> bool:
        """Whether the manifest's row of a tensor names the raw file that lies there now as its source."""
        found = RawState.of(task.raw)
        source = self._entries.get(task.key, {}).get("source") or {}
        return found is not None and found.as_source().items() <= source.items()

    def _remove_raw(self, task: Task, state: str, detail: str = "") -> None:
        """Remove a raw file and the folders that it leaves empty, if the states of its tensors allow it.

        It is that of the task's tensor; other tensors that are made of this path may be of an earlier file.
        """
        if state not in INTACT:
            log.error("%s: its tensor is %s (%s); the raw file stays", task.volume, state, detail)
            return
        ours = self._ours(task)
        for other in self._sharing(task):
            if other.key == task.key:
                continue
            report = _core.verify_tensor_file(other.final)
            is_made_of_raw = self._names_raw(other) and describes(self._entries[other.key], report)
            if report.state not in INTACT or not (ours or is_made_of_raw):
                log.info("%s: the raw file stays for %s, listed too", task.volume, other.volume)
                return
        try:
            if ours:
                for part in part_paths(task.raw):  # a run was killed between the file's two names
                    part.unlink(missing_ok=True)
            task.raw.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: could not be removed: %s", task.raw, error)
            return
        self.result.raw_files_removed += 1
        with contextlib.suppress(OSError):  # a folder that is not empty
            for folder in task.raw.parents:
                if self._config.img_dir not in folder.parents:
                    break
                folder.rmdir()
        self._disown(task)

    def _disown(self, task: Task) -> None:
        """Record that what lies in the place of a raw file, or will, is not ours."""
        for each in self._sharing(task):
            if self._entries.get(each.key, {}).get("raw"):
                self._record_raw(each, None)

    def _source(self, task: Task, raw: RawState) -> Entry:
        source: Entry = {"path": str(task.raw), **raw.as_source()}
        from_hub: Entry = {}
        if task.key in self._downloads:
            placed = (self._entries[task.key].get("raw") or {}).get("mtime_ns")
            if placed in (None, raw.mtime_ns):  # else the user has laid another file there since
                _, from_hub = self._downloads[task.key]
        else:  # an earlier run downloaded it, or this one for another spelling
            for each in self._ours(task):
                from_hub = self._entries[each.key]["raw"].get("source") or {}
        return source | from_hub

    def _record_raw(self, task: Task, raw: dict[str, Any] | None) -> None:
        self._manifest.note([{"key": task.key, "volume": task.volume, "raw": raw}])
        self._entries.setdefault(task.key, {})["raw"] = raw


def _missing(task: Task, commit: str) -> Entry:
    return {"key": task.key, "volume": task.volume, "unavailable": {"reason": "404", "commit": commit}}

"""Make every tensor that the lists ask for and the cache lacks, and lose nothing on the way.

Download, transform and cleaning overlap. The coordinator is one thread; downloads run in a few more, the
transforms in worker processes. Each item is claimed first, so several runs share one list of work.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtier.errors import BackendError, ConfigError, NotFoundError, StoppedError, VoxtierError
from voxtier.system.durable import write_text
from voxtier.tensors.claims import Claim
from voxtier.tensors.identity.fingerprint import fingerprint
from voxtier.tensors.identity.folders import remember_folder
from voxtier.tensors.identity.keys import item_key, raw_path, read_volume_names
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.outcome import DEFAULTS, Options, Outcome
from voxtier.tensors.making.plan import Plan, make_plan, nifti_voxels, output_size, shard
from voxtier.tensors.making.raw_files import RawFiles
from voxtier.tensors.making.resources import (
    BYTES_PER_VOXEL,
    TYPICAL_VOXELS,
    available_memory,
    free_disk,
)
from voxtier.tensors.making.runlog import RunLog
from voxtier.tensors.making.worker_pool import Crew, Event, Task
from voxtier.tensors.manifest import Manifest

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config

__all__ = ["Generator", "Options", "Outcome"]

log = logging.getLogger("voxtier.tensors.making.run")
missing_log = logging.getLogger("voxtier.tensors.missing")

DEATHS_PER_ITEM = 2
"""A volume that kills this many workers is recorded as failed."""
HUB_IS_DOWN_AFTER = 5
"""Failed downloads in a row."""


class Generator:
    """One run over one configuration.

    Parameters
    ----------
    config : Config
        From `load_config`.
    options : Options
        How to run.
    hub : Hub, optional
        Where absent volumes come from; by default the configuration's repository (none with shards).
    on_item : callable, optional
        Called after each item with the bytes written.
    """

    def __init__(
        self,
        config: Config,
        options: Options = DEFAULTS,
        *,
        hub: Hub | None = None,
        on_item: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.options = options
        self.stop = threading.Event()
        """Set: current items are finished, nothing new is begun."""
        self.abort = threading.Event()
        """Set: workers are killed, downloads not waited for; what they were writing never appears."""
        self.outcome = Outcome()
        downloads = config.downloads
        if hub is None and options.num_shards == 1:
            hub = Hub(downloads.repo_id, downloads.revision, token=downloads.token, stop=self.stop)
        self.hub = hub
        self.on_item = on_item
        self._claims: dict[str, Claim] = {}
        self._ready: deque[Task] = deque()
        self._fetching: dict[Future[None], Task] = {}
        self._deaths: dict[str, int] = {}
        self._raw_bytes: dict[str, int] = {}
        self._failures_in_a_row = 0
        self._finished = False

    def plan(self) -> Plan:
        """Return what `run` would do."""
        options = self.options
        return make_plan(
            self.config,
            workers=options.workers,
            num_shards=options.num_shards,
            shard_id=options.shard_id,
            batch_size=options.batch_size,
            hub=self.hub,
        )

    def run(self, plan: Plan) -> Outcome:
        """Do it.

        Raises
        ------
        voxtier.ConfigError
            The disk cannot hold the result, or the cache folder cannot be written.
        """
        self._refuse_if_too_large(plan)
        self.folder = Path(plan.folder)
        self._prepare_folder()
        self.manifest = Manifest(self.folder)
        self._raws = RawFiles(self.config, self.folder, self.manifest)
        self._fingerprint = fingerprint(self.config)
        self._remote = plan.remote
        self.outcome.unavailable = plan.unavailable
        self.outcome.hub_down = any("the hub is no help" in warning for warning in plan.warnings)
        self._runlog = RunLog(self.config.logs_dir, plan, self.options.batch_size)
        for warning in plan.warnings:
            log.warning(warning)
        crew = Crew(min(plan.workers, max(1, len(plan.names))), self.config.processing)
        heart = threading.Thread(target=self._beat, name="voxtier-claims", daemon=True)
        self._done = threading.Event()
        heart.start()
        try:
            self._remember_unavailable(plan)
            self.outcome.raws_removed += self._raws.clean_leftovers(
                self._all_names(), also_foreign=self.options.clean_raw
            )
            downloads = ThreadPoolExecutor(self.config.downloads.max_workers, "voxtier-download")
            try:
                self._loop(plan, crew, downloads)
            finally:
                if not self._finished:
                    self.stop.set()
                downloads.shutdown(wait=not self.abort.is_set(), cancel_futures=True)
            status = "completed" if self.outcome.exit_code() == 0 and not self.stop.is_set() else "failed"
        except BaseException:
            status = "failed"
            self.abort.set()
            raise
        finally:
            crew.close(kill=self.abort.is_set())
            self._done.set()
            for key in list(self._claims):
                self._release(key)
            self.outcome.workers = crew.size
            self.outcome.stopped = self.stop.is_set()
            self._runlog.finish(status, self.outcome.made, len(self.outcome.failed), crew.size)
            with contextlib.suppress(OSError):
                self.manifest.compact()
        return self.outcome

    def _refuse_if_too_large(self, plan: Plan) -> None:
        needed = plan.peak_disk_bytes + self.options.min_free
        if plan.names and not self.options.until_full and needed > plan.free_disk_bytes:
            raise ConfigError(
                f"{plan.folder}: needs {plan.peak_disk_bytes:,} bytes with {self.options.min_free:,} kept"
                f" free, but the disk has {plan.free_disk_bytes:,}; --until-full starts and stops in time"
            )

    def _prepare_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            params = self.folder / "cache_params.json"
            if not params.exists():  # else MONAI is not needed in this process
                from voxtier.tensors.identity.pipeline import build_transforms, cache_params_text

                write_text(params, cache_params_text(build_transforms(self.config.processing)))
            remember_folder(self.config, self.folder)
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def _beat(self) -> None:
        while not self._done.wait(15):
            for claim in list(self._claims.values()):
                claim.beat()

    def _remember_unavailable(self, plan: Plan) -> None:
        """Note what the pinned revision lacks, so that the next run does not ask again."""
        if self.hub is None or self.outcome.hub_down or not plan.unavailable:
            return
        todo = set(plan.names)
        rows = []
        for name in self._all_names():
            key = item_key(name)
            if name in todo or (self.folder / f"{key}.pt").exists():
                continue
            missing_log.warning("%s: not on disk and not in the repository", name)
            self.outcome.failed.setdefault(name, "not on disk and not in the repository")
            rows.append(
                {"key": key, "volume": name, "unavailable": {"reason": "404", "commit": self.hub.commit}}
            )
        self._raws.record(rows)

    def _all_names(self) -> list[str]:
        names = read_volume_names(self.config.subsets)
        return shard(names, self.options.num_shards, self.options.shard_id)

    def _loop(self, plan: Plan, crew: Crew, downloads: ThreadPoolExecutor) -> None:
        waiting = deque(plan.names)
        deferred: deque[str] = deque()
        while True:
            if self.abort.is_set():
                return
            if not self.stop.is_set():
                self._begin(waiting, deferred, crew, downloads)
            self._collect_downloads(0.0)
            self._dispatch(crew)
            for event in crew.poll(0.05 if crew.busy else 0.0):
                self._finish(event, crew)
            self._runlog.show("running", self.outcome.made, len(self.outcome.failed), crew)
            if crew.busy or self._fetching or self._ready:
                if self.stop.is_set() and not crew.busy and not self._fetching:
                    return
                if not crew.busy and self._fetching:
                    self._collect_downloads(0.05)
                continue
            if self.stop.is_set():
                return
            if waiting:
                continue
            if not deferred:
                self._finished = True
                return
            time.sleep(0.2)  # only items of other processes are left
            waiting, deferred = deferred, deque()

    def _begin(
        self, waiting: deque[str], deferred: deque[str], crew: Crew, downloads: ThreadPoolExecutor
    ) -> None:
        """Claim and start as many items as the bounds allow."""
        bound = min(self.options.batch_size, 2 * crew.size + self.config.downloads.max_workers)
        while waiting and len(self._ready) + len(self._fetching) < bound:
            if not self._disk_allows(crew):
                return
            name = waiting[0]
            final = self.folder / f"{item_key(name)}.pt"
            raw = raw_path(self.config.img_dir, name, self.config.dir_structure)
            remote = self._remote.get(name)
            size = remote.size if remote is not None else 0
            limit = self.options.max_raw_bytes
            if limit is not None and self._raw_bytes and sum(self._raw_bytes.values()) + size > limit:
                return
            waiting.popleft()
            if final.exists():
                self.outcome.elsewhere += 1
                self.on_item(0)
                continue
            try:
                claim = Claim.take(final)
            except OSError as error:
                self._fail(name, f"the cache folder cannot be written: {error}")
                continue
            if claim is None:
                deferred.append(name)
                continue
            self._claims[final.stem] = claim
            if final.exists():  # it appeared between the look and the claim
                self._release(final.stem)
                self.outcome.elsewhere += 1
                self.on_item(0)
                continue
            task = Task(name, raw, final)
            if raw.is_file():
                self._ready.append(task)
            elif remote is None or self.hub is None:
                self._fail(name, "not on disk, and nowhere to download it from")
            elif self.outcome.hub_down:
                self._fail(name, "the hub is down")
            else:
                self._raw_bytes[final.stem] = size
                self._raws.expect(task, size)
                future = downloads.submit(self.hub.fetch, remote, raw)
                self._fetching[future] = task
                future.add_done_callback(lambda _: crew.wake())

    def _disk_allows(self, crew: Crew) -> bool:
        under_way = (len(self._ready) + len(self._fetching) + crew.busy + 1) * output_size(self.config)
        if free_disk(self.folder) - under_way >= self.options.min_free:
            return True
        if not (self._ready or self._fetching or crew.busy):
            self._halt(
                f"less than {self.options.min_free:,} bytes would stay free on the disk of {self.folder}"
            )
        return False

    def _halt(self, reason: str) -> None:
        log.error("stopping: %s", reason)
        self.outcome.stop_reason = reason
        self.stop.set()

    def _collect_downloads(self, seconds: float) -> None:
        done, _ = (
            wait(self._fetching, timeout=seconds, return_when="FIRST_COMPLETED")
            if self._fetching
            else ((), ())
        )
        for future in done:
            task = self._fetching.pop(future)
            try:
                future.result()
            except StoppedError:
                self._release(task.final.stem)
            except (VoxtierError, OSError) as error:
                self._download_failed(task, error)
            else:
                self._failures_in_a_row = 0
                self._ready.append(task)

    def _download_failed(self, task: Task, error: Exception) -> None:
        self._raws.disown(task)
        missing_log.warning("%s: %s", task.volume, error)
        self._fail(task.volume, f"download: {error}")
        if isinstance(error, NotFoundError):
            reason = {"reason": "404", "commit": self.hub.commit if self.hub else ""}
            self._raws.record([{"key": task.final.stem, "volume": task.volume, "unavailable": reason}])
        elif isinstance(error, ConfigError):
            self._halt(str(error))
        elif isinstance(error, BackendError):
            self._failures_in_a_row += 1
            self.outcome.hub_down |= self._failures_in_a_row >= HUB_IS_DOWN_AFTER
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._halt(f"the disk of {self.config.img_dir} is full")

    def _dispatch(self, crew: Crew) -> None:
        while self._ready and crew.has_room() and not self.stop.is_set():
            voxels = nifti_voxels(self._ready[0].raw) or TYPICAL_VOXELS
            if crew.busy and available_memory() < BYTES_PER_VOXEL * voxels:
                return  # the running ones will give memory back
            crew.submit(self._ready.popleft())

    def _finish(self, event: Event, crew: Crew) -> None:
        task = event.task
        key = task.final.stem
        if event.kind == "died":
            crew.halve()
            log.error("%s: %s; going on with %d workers", task.volume, event.reason, crew.size)
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] < DEATHS_PER_ITEM:
                self._ready.appendleft(task)
            else:
                self._fail(task.volume, event.reason)
            return
        if event.kind == "failed":
            self._fail(task.volume, event.reason)
            if event.errno in (errno.ENOSPC, errno.EDQUOT):
                self._halt(f"the disk of {self.folder} is full")
            return
        self.outcome.made += 1
        row = {
            "key": key,
            "volume": task.volume,
            "fingerprint": self._fingerprint,
            "source": self._source(task),
        }
        self._raws.record([{**row, "created": time.time(), **event.facts}])
        log.info("%s: made %s in %s s", task.volume, task.final.name, event.facts.get("seconds"))
        if self.options.clean_raw or self._raws.is_ours(task):
            self.outcome.raws_removed += self._raws.clean(task)
        self._release(key)
        self.on_item(int(event.facts.get("size", 0)))

    def _source(self, task: Task) -> dict[str, Any]:
        source: dict[str, Any] = {"path": str(task.raw)}
        with contextlib.suppress(OSError):
            found = task.raw.stat()
            source |= {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
        remote = self._remote.get(task.volume)
        if remote is not None and self.hub is not None:
            source |= {"repo": self.hub.repo_id, "commit": self.hub.commit, "sha256": remote.sha256}
            source["hub_path"] = remote.path
        return source

    def _fail(self, name: str, reason: str) -> None:
        self.outcome.failed[name] = reason
        log.error("%s: %s", name, reason)
        self._release(item_key(name))
        self.on_item(0)

    def _release(self, key: str) -> None:
        self._raw_bytes.pop(key, None)
        claim = self._claims.pop(key, None)
        if claim is not None:
            claim.release()

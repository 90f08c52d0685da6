"""`Generator`: make every tensor that the lists ask for and the cache lacks, and lose nothing on the way.

The journey of one tensor, file by file:

1. plan.py lists the volumes without a tensor file; hub.py gives the size of those that are not on disk.
2. run.py takes the next volume when policies.py (`DiskPolicy`) lets it begin.
3. ledger.py claims it, so that several runs may share one list. A volume that another process has claimed
   is asked for again later.
4. download.py fetches the raw file, if it is not on disk, through hub.py in a thread. ledger.py has recorded
   before that the file is ours to remove.
5. run.py hands the volume to worker_pool.py as soon as a worker is idle and the memory suffices.
6. worker.py transforms it in a process of its own; saving.py writes the file, verifies it and lets it
   appear. The report goes back through the pool.
7. run.py receives the report and passes it to ledger.py, which appends it to the manifest, removes a raw file
   that is ours and releases the claim.

A volume can fail at step 4 or 6: policies.py (`HubPolicy`, `DeathPolicy`) decides whether it is tried again
and whether the run goes on; ledger.py counts it as failed and releases the claim. One whose raw file was
removed or replaced before it was read goes back to step 2.

The loop is one thread. Downloads, transforms and cleaning of different volumes overlap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from voxtier.errors import ConfigError, StoppedError, VoxtierError
from voxtier.tensors.engine.headers import Header, read_header
from voxtier.tensors.engine.proofs import EnginePolicy, Proofs
from voxtier.tensors.identity.folders import remember_folder
from voxtier.tensors.identity.keys import hub_path
from voxtier.tensors.making.download import Downloads
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.ledger import Ledger
from voxtier.tensors.making.plan import DEFAULTS, Options, Plan, make_plan, output_size
from voxtier.tensors.making.policies import ChangePolicy, DeathPolicy, DiskPolicy, HubPolicy, is_disk_full
from voxtier.tensors.making.resources import free_disk, has_memory_for, volume_bytes
from voxtier.tensors.making.runlog import RunLog, RunResult
from voxtier.tensors.making.worker_pool import Event, Task, WorkerPool

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.making.download import RemoteFile

__all__ = ["Generator", "Options", "RunResult"]

log = logging.getLogger("voxtier.tensors.making.run")

POLL_SECONDS = 0.05
"""The longest that the loop sleeps while work is under way: `stop` and `abort` are seen that late."""
CLAIM_SECONDS = 0.2
"""Between two attempts to claim volumes that other processes have claimed."""


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
    on_item : callable
        Called with the bytes written (0 for none) when a volume is made, has failed, or was made by others.

    Attributes
    ----------
    stop : threading.Event
        Set it to finish the current volumes and begin no other.
    abort : threading.Event
        Set it to kill the workers and not to wait for downloads; no partial file appears.
    result : RunResult
        What the run has done so far.
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
        self.abort = threading.Event()
        self.result = RunResult()
        if hub is None and options.num_shards == 1:
            source = config.downloads
            hub = Hub(source.repo_id, source.revision, token=source.token, stop=self.stop)
        self.hub = hub
        self.on_item = on_item

    def plan(self) -> Plan:
        """Return what `run` would do."""
        return make_plan(self.config, self.options, hub=self.hub)

    def run(self, plan: Plan) -> RunResult:
        """Carry out a plan.

        Raises
        ------
        ConfigError
            The disk cannot hold the result, or the cache folder cannot be written.
        """
        config, options = self.config, self.options
        disk = DiskPolicy(options.min_free, output_size(config), options.max_raw_bytes)
        shortage = disk.shortage(plan.peak_disk_bytes, plan.free_disk_bytes)
        if plan.names and shortage and not options.until_full:
            raise ConfigError(f"{plan.folder}: {shortage}")
        folder = Path(plan.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remember_folder(config, folder)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
        ledger = Ledger(
            config,
            folder,
            clean_raw=options.clean_raw,
            spellings=plan.spellings,
            on_settled=self.on_item,
        )
        result = self.result = ledger.result
        result.unavailable, result.hub_down = plan.unavailable, plan.hub_down
        runlog = RunLog(config.logs_dir, plan, options.batch_size)
        for warning in plan.warnings:
            log.warning(warning)
        status = "failed"
        try:
            with ledger:
                if plan.unavailable_names:
                    commit = None if self.hub is None or plan.hub_down else self.hub.commit
                    ledger.record_unavailable(
                        plan.unavailable_names,
                        plan.unavailable_why,
                        outdated=plan.outdated,
                        missing_at=commit,
                    )
                ledger.record_unreadable(plan.unreadable_names)
                ledger.clean_leftovers(plan.all_names)
                _Loop(self, plan, ledger, disk).run(runlog)
            if result.exit_code() == 0 and not self.stop.is_set():
                status = "completed"
        finally:
            result.stopped = self.stop.is_set()
            runlog.finish(status, result)
        return result


@dataclass(frozen=True, slots=True)
class _Share:
    """A volume that a worker has, as far as memory and the engine are concerned."""

    header: Header | None
    mode: str
    """``fused``, ``stock`` or ``check``."""

    def is_light(self, *, oblique: bool) -> bool:
        """Whether the core makes it, as far as is known; ``oblique``: whether it makes oblique volumes."""
        is_known = self.header is not None and (oblique or not self.header.is_oblique)
        return self.mode == "fused" and is_known


class _Loop:
    """Moves volumes from one step to the next until all are settled or the run is stopped."""

    def __init__(self, generator: Generator, plan: Plan, ledger: Ledger, disk: DiskPolicy) -> None:
        config = generator.config
        self._hub = generator.hub
        self._stop = generator.stop
        self._abort = generator.abort
        self._folder = Path(plan.folder)
        self._remote = dict(plan.remote)
        self._ledger = ledger
        proofs = None if plan.engine == "stock" else Proofs(config.processing)
        self._engine = EnginePolicy(plan.engine, generator.options.check_every, proofs)
        ledger.result.earlier_seconds = {} if proofs is None else dict(proofs.seconds)
        self._pool = WorkerPool(
            min(plan.workers, max(1, len(plan.names))),
            config.processing,
            self._folder,
            generator.options.accepted,
            is_proved=self._engine.is_proved,
        )
        self._downloads: Downloads[Task] = Downloads(config.downloads.max_workers, on_end=self._pool.wake)
        self._batch_size = generator.options.batch_size
        self._download_threads = config.downloads.max_workers
        self._disk = disk
        self._hub_policy = HubPolicy(config.img_dir, down=plan.hub_down)
        self._deaths = DeathPolicy()
        self._changes = ChangePolicy()
        self._vanished: set[str] = set()
        """Keys of the volumes that begin again: their raw files were removed or replaced in the queue."""
        self._output = output_size(config)
        self._oblique = False
        """Whether the core has made an oblique volume, so that it makes the others too."""
        self._in_work: dict[str, _Share] = {}
        """By key, the volumes that workers have."""
        self._waiting = deque(plan.names)
        self._claimed_by_others: deque[str] = deque()
        self._ready: deque[Task] = deque()
        """Claimed volumes whose raw files are on disk."""

    def run(self, runlog: RunLog) -> None:
        """Work until every volume is settled, or until `stop` or `abort` is set."""
        try:
            self._work(runlog)
        except BaseException:
            self._abort.set()
            raise
        finally:
            self._pool.close(kill=self._abort.is_set())
            self._ledger.result.workers = self._pool.size

    def _work(self, runlog: RunLog) -> None:
        finished = False
        try:
            while not (finished or self._abort.is_set()):
                if not self._stop.is_set():
                    self._begin_volumes()
                self._collect_downloads()
                self._submit_ready()
                for event in self._pool.poll(POLL_SECONDS if self._is_working() else 0.0):
                    self._settle(event)
                runlog.show(self._ledger.result, self._pool)
                if self._is_working():
                    continue
                if self._stop.is_set():
                    return
                if not (self._ready or self._waiting or self._claimed_by_others):
                    finished = True
                elif not (self._ready or self._waiting):
                    time.sleep(CLAIM_SECONDS)
                    self._waiting, self._claimed_by_others = self._claimed_by_others, deque()
        finally:
            if not finished:
                self._stop.set()
            self._downloads.close(wait=not self._abort.is_set())

    def _is_working(self) -> bool:
        return self._pool.busy > 0 or len(self._downloads) > 0

    def _begin_volumes(self) -> None:
        """Claim volumes, and start downloads, until the bounds are reached."""
        bound = min(self._batch_size, 2 * self._pool.size + self._download_threads)
        while self._waiting and len(self._ready) + len(self._downloads) < bound:
            remote = self._remote.get(self._waiting[0])
            decision = self._disk.decide(
                free=free_disk(self._folder),
                under_way=len(self._ready) + len(self._downloads) + self._pool.busy,
                raw_bytes=self._ledger.raw_bytes,
                download_bytes=0 if remote is None else remote.size,
            )
            if decision == "stop":
                room = f"{self._disk.min_free:,} bytes"
                self._stop_run(f"less than {room} would stay free on the disk of {self._folder}")
            if decision != "begin":
                return
            self._begin(self._ledger.task(self._waiting.popleft()), remote)

    def _begin(self, task: Task, remote: RemoteFile | None) -> None:
        state = self._ledger.claim(task)
        if state == "taken":
            self._claimed_by_others.append(task.volume)
        if state != "claimed":
            return
        hub = self._hub
        try:
            if remote is not None and hub is not None:
                self._ledger.drop_outdated(task, remote, hub.source(remote))
        except OSError as error:
            self._ledger.fail(task, f"{task.raw}: of another commit, and cannot be removed: {error.strerror}")
            return
        if task.raw.is_file():
            self._ready.append(task)
        elif hub is None:
            self._ledger.fail(task, "not on disk, and no repository to download it from")
        elif remote is None and not (task.key in self._vanished or self._ledger.is_download(task)):
            # A disk that is not mounted any more is no reason to download all that was on it.
            self._ledger.fail(task, f"{task.raw}: not on disk any more, as it was when the run was planned")
        elif self._hub_policy.down:
            self._ledger.fail(task, "the hub is down")
        elif remote is None:
            self._look_up(hub, task)
        else:
            source = hub.source(remote)
            self._ledger.begin_download(task, remote.size, source, git_oid=remote.git_oid)
            self._downloads.start(task, partial(hub.fetch, remote, task.raw))

    def _look_up(self, hub: Hub, task: Task) -> None:
        """Ask for a volume that the plan had on disk; it begins again, as its size decides when it may."""
        path = hub_path(task.volume)
        try:
            found = hub.look_up([path]).get(path)
        except VoxtierError as error:
            self._fail_download(task, error)
            return
        if found is None:
            self._ledger.fail(task, "not on disk any more, and not in the repository")
            return
        self._remote[task.volume] = found
        self._ledger.release(task)
        self._waiting.appendleft(task.volume)

    def _collect_downloads(self) -> None:
        for task, outcome in self._downloads.collect():
            if not isinstance(outcome, BaseException):
                if outcome == "fetched":  # else the hub was not asked
                    self._hub_policy.succeeded()
                self._ledger.end_download(task, outcome)
                if outcome == "other" and not task.raw.is_file():
                    self._ledger.fail(task, f"{task.raw}: a link without a target, or no file")
                else:
                    self._ready.append(task)
            elif isinstance(outcome, VoxtierError | OSError):
                self._fail_download(task, outcome)
            else:
                raise outcome

    def _fail_download(self, task: Task, error: Exception) -> None:
        if isinstance(error, StoppedError):
            self._ledger.release(task)
            return
        failure = self._hub_policy.judge(error)
        commit = self._hub.commit if failure.is_missing and self._hub is not None else None
        self._ledger.fail_download(task, str(error), missing_at=commit)
        self._ledger.result.hub_down = self._hub_policy.down
        if failure.stop_reason:
            self._stop_run(failure.stop_reason)

    def _submit_ready(self) -> None:
        while self._ready and self._pool.has_room() and not self._stop.is_set():
            task = self._ready[0]
            header = read_header(task.raw)
            volume_class = "" if header is None else header.volume_class
            share = _Share(header, self._engine.expect(volume_class))
            if self._pool.busy and not self._fits(share):
                return  # the volumes in work will give memory back
            self._engine.begin(volume_class, share.mode)
            self._in_work[task.key] = share
            self._pool.submit(self._ready.popleft(), share.mode)

    def _fits(self, share: _Share) -> bool:
        """Whether another volume fits into memory: one that MONAI makes, beside the others that it makes."""
        voxels = None if share.header is None else share.header.voxels
        if share.is_light(oblique=self._oblique):
            return has_memory_for(volume_bytes(voxels, is_fused=True, output=self._output))
        heavy = 0
        if self._engine.engine == "fused":  # else the number of workers allows for it
            heavy = sum(not other.is_light(oblique=self._oblique) for other in self._in_work.values())
        return has_memory_for(volume_bytes(voxels) * (1 + heavy))

    def _settle(self, event: Event) -> None:
        task = event.task
        self._settle_engine(event)
        if event.kind == "done":
            self._ledger.made(task, event.facts)
        elif event.kind == "changed" and self._changes.try_again(task.key):
            log.info("%s: its raw file has changed; it begins again", task.volume)
            self._vanished.add(task.key)
            self._ledger.release(task)
            self._waiting.append(task.volume)
        elif event.kind in ("failed", "changed"):
            self._ledger.fail(task, event.reason)
            if is_disk_full(event.errno):
                self._stop_run(f"the disk of {self._folder} is full")
        else:
            self._pool.shrink(DeathPolicy.next_size(self._pool.size))
            log.error("%s: %s; going on with %d workers", task.volume, event.reason, self._pool.size)
            if self._deaths.try_again(task.key):
                self._ready.appendleft(task)
            else:
                self._ledger.fail(task, event.reason)

    def _settle_engine(self, event: Event) -> None:
        share = self._in_work.pop(event.task.key)
        outcome = event.facts.get("outcome")
        volume_class = "" if share.header is None else share.header.volume_class
        if outcome is not None and outcome.engine == "fused" and share.header is not None:
            self._oblique |= share.header.is_oblique
        if outcome is not None and outcome.difference:
            what = f"{event.task.volume}: core and MONAI differ: {outcome.difference}"
            log.error("%s; MONAI's tensor is kept", what)
        if self._engine.settle(volume_class, share.mode, outcome):
            log.error("MONAI makes the tensors from here on")

    def _stop_run(self, reason: str) -> None:
        log.error("stopping: %s", reason)
        self._ledger.result.stop_reason = reason
        self._stop.set()

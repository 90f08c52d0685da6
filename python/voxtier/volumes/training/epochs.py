"""What an epoch decides, its order and its random numbers; and which epoch a draw belongs to.

Random numbers are counter-based (Philox, Salmon et al. 2011): seed, epoch and index alone decide them, in any
process and any order.

A DataLoader tells a map-style dataset neither that a pass begins nor which one it is, and its workers have
copies of the dataset. But each pass makes a fetcher of its own in each process that fetches, and the workers
of a pass share a seed. `EpochCounter` numbers passes by both, in memory that all these processes share.
Workers that are threads (MONAI's ThreadDataLoader) are told apart by their stacks.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, parent_process, reduction
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import whole_number
from voxtier.system.fork import at_fork

_FETCHERS, _LOOPS = "torch.utils.data._utils.fetch", "torch.utils.data._utils.worker"
# The first page: epoch of the next pass, number of passes with workers, and the latest of these.
_WORDS, _PASSES, _PASS_WORDS = 512, 7, 64
_SEED, _EPOCH, _WORKERS = 0, 1, 2  # words of a pass: shared seed + 1 (0: none), epoch, bits of workers
_WORKER_BITS = 32  # of each word, which stays positive
_TURNS = 4  # words of an item: passes that can draw from it in turns
_COUNT_BITS = 32  # of an item's word: how often its latest pass has drawn it; above them epoch + 1
_VISITS = "voxtier: visits of this batch"


class EpochIndex(int):
    """The index of an item that carries its epoch, through samplers and queues.

    Parameters
    ----------
    index : int
        Of the item.
    epoch : int
        From 0.
    """

    epoch: int

    def __new__(cls, index: int, epoch: int) -> EpochIndex:  # noqa: D102
        made = super().__new__(cls, index)
        made.epoch = epoch
        return made

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.epoch


def generator(seed: int, epoch: int, index: int, visit: int = 0, *, stream: int = 0) -> np.random.Generator:
    """Return the random numbers of one item: the same in any worker, rank and order.

    Parameters
    ----------
    seed : int
        Of the training.
    epoch : int
        From 0.
    index : int
        Of the item in the dataset.
    visit : int
        How often the epoch has drawn the item before.
    stream : int
        Which of several independent sequences.

    Returns
    -------
    numpy.random.Generator
        At its start.
    """
    key, counter = [whole_number("seed", seed) & (2**64 - 1), epoch], [0, stream, visit, index]
    words = np.array(key, np.uint64), np.array(counter, np.uint64)  # numpy makes floats of large ints
    return np.random.Generator(np.random.Philox(key=words[0], counter=words[1]))


class EpochSampler:
    """Indices for a DataLoader, shuffled anew each epoch and split over ranks, which carry the epoch.

    The epoch travels in the index (see `EpochIndex`): order and patches of an epoch are the same
    whatever was drawn before, which a run that is resumed needs.

    Parameters
    ----------
    length : int
        Items of the dataset.
    shuffle : bool
        Draw a new order each epoch.
    seed : int
        Of the order.
    rank, world_size : int
        This process's part: the union of ranks is complete, and where items divide they are disjoint.
    even : bool
        Give all ranks equally many items where they do not divide: the first of the order once more, as
        torch's DistributedSampler does. Ranks that train together wait for each other in each step. Without
        it each item comes once, as for measures, and ranks may differ by one item.

    Raises
    ------
    ConfigError
        For what is no whole number, and a rank that is not below the world size.
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        even: bool = True,
    ) -> None:
        self.length, self.shuffle = whole_number("length", length, 0), shuffle
        self.seed = whole_number("seed", seed)
        self.world_size = whole_number("world_size", world_size, 1)
        self.rank = whole_number("rank", rank, 0, self.world_size - 1)
        total = -(-self.length // self.world_size) * self.world_size
        self._total = total if even else self.length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; each further pass is the next epoch."""
        self.epoch = whole_number("epoch", epoch, 0)

    def __len__(self) -> int:
        return len(range(self.rank, self._total, self.world_size))

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch  # with the first index: an iterator that is not drawn from uses up no epoch
        self.epoch += 1
        order = np.arange(self.length)
        if self.shuffle:
            order = generator(self.seed, epoch, 2**62).permutation(self.length)
        order = np.resize(order, self._total)  # from the beginning again
        for item in order[self.rank :: self.world_size]:
            yield EpochIndex(int(item), epoch)


class Draw(NamedTuple):
    """What decides the random numbers of an item.

    Parameters
    ----------
    epoch : int
        From 0.
    visit : int
        How often the pass had drawn the item before: samplers that draw with replacement do.
    """

    epoch: int
    visit: int = 0


class WorkerThread(NamedTuple):
    """A worker of a DataLoader that is a thread of this process, as MONAI's ThreadDataLoader can have them.

    Parameters
    ----------
    id : int
        Among the workers of a pass.
    seed : int
        That of the pass and the number, as torch's workers have it.
    """

    id: int
    seed: int


class EpochCounter:
    """Numbers the passes of DataLoaders over one dataset; copies in workers count with it.

    Workers that are forked inherit its memory, those that are spawned or come from a fork server are handed
    it. Any other copy counts for itself, from where this one is: one that was pickled or made by `copy`, and
    that of a child that is no worker, as the ranks of a training are.

    Parameters
    ----------
    items : int
        Length of the dataset.
    first : int
        Epoch of the next pass.
    """

    def __init__(self, items: int, first: int = 0) -> None:
        self._attach(_make_file(_size(items)), items)
        self._words[0] = first

    def _attach(self, descriptor: int, items: int) -> None:
        self._items, self._owner = items, os.getpid()
        self._map(descriptor)
        at_fork(before=self._own, after_in_child=self._begin_child)
        self._begin_child()

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._words: NDArray[np.int64] = np.frombuffer(mmap.mmap(descriptor, _size(self._items)), np.int64)
        self._epochs: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        weakref.finalize(self._words, os.close, descriptor).atexit = False

    def _begin_child(self) -> None:
        self._lock = threading.Lock()
        self._first = int(self._words[0])

    def _own(self) -> None:
        """Leave the memory of the process that this one was forked or spawned from, unless it is a worker."""
        if self._owner == os.getpid() or worker_process() is not None:
            return
        with self._lock:  # several threads may come first
            if self._owner != os.getpid():
                self._map(_make_file(_size(self._items)))
                self._words[0] = self._first
                self._owner = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        if context.get_spawning_popen() is None:
            return EpochCounter, (self._items, int(self._words[0]))
        self._own()
        return _restore, (reduction.DupFd(self._descriptor), self._items)

    def set_next(self, epoch: int) -> None:
        """Choose the epoch of the next pass.

        Raises
        ------
        ConfigError
            For an epoch that is not 0 to 2**31 - 2.
        """
        first = whole_number("epoch", epoch, 0, 2**31 - 2)
        self._own()
        with self._alone():
            self._words[0] = first

    def count(self, item: int) -> Draw | None:
        """Count an item that is asked for; None outside of a DataLoader.

        A batch that asks twice for an item gets it twice: images and masks may be fetched by two calls.
        """
        fetch = _find_call("fetch", _FETCHERS)
        if fetch is None:
            return None
        self._own()
        known = fetch.f_locals
        # The note lies in the call that fetches the batch, and goes with it: numbers of batches come again.
        fetcher, visits = known.get("self"), known.setdefault(_VISITS, {}).setdefault(self, {})
        with self._alone():
            epoch = self._epochs.get(fetcher)
            if epoch is None:
                epoch = self._epochs[fetcher] = self._enter(worker_thread() or worker_process())
            if item not in visits:
                visits[item] = self._visit(epoch, item)
            return Draw(epoch, visits[item])

    def _visit(self, epoch: int, item: int) -> int:
        place = _WORDS + item * _TURNS + epoch % _TURNS
        word = int(self._words[place])
        before = word & ((1 << _COUNT_BITS) - 1) if word >> _COUNT_BITS == epoch + 1 else 0
        self._words[place] = (epoch + 1 << _COUNT_BITS) | (before + 1)
        return before

    def _enter(self, worker: Any) -> int:
        """Return the epoch of a pass that this process has not drawn for yet."""
        if worker is None:
            return self._next()
        shared = worker.seed - worker.id + 1  # DataLoader: "base_seed + worker_id"
        word, bit = divmod(worker.id, _WORKER_BITS)
        word = _WORKERS + word % (_PASS_WORDS - _WORKERS)
        passes = self._words[2 : 2 + _PASSES * _PASS_WORDS].reshape(_PASSES, _PASS_WORDS)
        known = np.flatnonzero(passes[:, _SEED] == shared)
        if len(known):
            latest = passes[known[0]]
            if not int(latest[word]) >> bit & 1:  # a worker that comes again has begun the next pass
                latest[word] |= 1 << bit
                return int(latest[_EPOCH])
        else:
            latest = passes[int(self._words[1]) % _PASSES]
            self._words[1] += 1
        latest[:] = 0
        latest[_SEED], latest[_EPOCH], latest[word] = shared, self._next(), 1 << bit
        return int(latest[_EPOCH])

    def _next(self) -> int:
        epoch = int(self._words[0])
        self._words[0] = epoch + 1
        return epoch

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep out other threads, and other processes, whose locks are those of the kernel."""
        with self._lock:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _restore(duplicate: Any, items: int) -> EpochCounter:
    counter = EpochCounter.__new__(EpochCounter)
    counter._attach(duplicate.detach(), items)
    counter._owner = 0  # the process that spawned this one
    return counter


def _size(items: int) -> int:
    """Return the bytes of the memory of a dataset."""
    return 8 * (_WORDS + items * _TURNS)


def _make_file(size: int) -> int:
    """Return the descriptor of a file that has no name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("voxtier-epochs")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _find_call(name: str, module: str) -> FrameType | None:
    """Return the latest call of a function, further up this thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == name and frame.f_globals.get("__name__") == module:
            return frame
        frame = frame.f_back
    return None


def worker_thread() -> WorkerThread | None:
    """Return which worker of a DataLoader this thread is; None for those that are processes.

    Torch's own answer is one for the whole process: threads overwrite it for each other.
    """
    if threading.current_thread() is threading.main_thread():
        return None
    loop = _find_call("_worker_loop", _LOOPS)
    return None if loop is None else WorkerThread(loop.f_locals["worker_id"], loop.f_locals["seed"])


def worker_process() -> Any:
    """Return what torch says of the worker that this process is; None when it is none."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is None or parent_process() is None or worker_thread() is not None:
        return None
    return torch_data.get_worker_info()

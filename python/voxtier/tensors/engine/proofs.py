"""`EnginePolicy`: who makes the next volume, by what earlier ones have proved. `Proofs`: the file of that.

The file is in voxtier's folder and has a few kilobytes. What it says holds for the settings, versions,
binaries, processor and variables under which it was found; any change of them names another file. Runs of
`generate`, datasets and `preprocess` share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxtier import _core
from voxtier.system.durable import write_file
from voxtier.system.home import home_if_any
from voxtier.system.locks import hold_lock
from voxtier.tensors.identity.fingerprint import describe_processing

if TYPE_CHECKING:
    from voxtier.tensors.engine.outcome import Outcome
    from voxtier.tensors.identity.config import ImageProcessing

KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "BUILD_MONAI",
    "DNNL_",
    "KMP_",
    "LD_PRELOAD",
    "MKL_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "VOXTIER_CPU",
)
"""How the names of variables begin that choose kernels of torch, of the libraries below it or of the core."""
FULL_PRECISION = "full"
"""`TorchState.precision` of a process that has set nothing, such as a worker of `generate`."""
NO_SECONDS: dict[str, float] = {}
_LONGEST_WAIT = 10.0  # seconds, for processes that write a few kilobytes each


class EnginePolicy:
    """Who makes a volume: the core, MONAI, or both, compared.

    Of each class of volumes, up to `CLASSES` of them, the first `PROOFS` are made by both, then one in
    ``check_every`` volumes. A tensor that differs is MONAI's, and MONAI makes all that follow.

    Parameters
    ----------
    engine : str
        One of `ENGINES`.
    check_every : int
        The distance of comparisons.
    proofs : Proofs, optional
        Of earlier runs, which count as this run's; takes up what this run proves.
    """

    PROOFS = 2
    CLASSES = 4

    def __init__(self, engine: str, check_every: int = 500, proofs: Proofs | None = None) -> None:
        self.engine = engine
        self._check_every = check_every
        self._kept = proofs
        self._unchecked = 0 if proofs is None else proofs.unchecked
        self._proofs: Counter[str] = Counter() if proofs is None else Counter(proofs.classes)
        self._classes = set(self._proofs)
        self._under_way: Counter[str] = Counter()

    @property
    def is_proved(self) -> bool:
        """Whether a volume has been made by both, with the same bits: no self-test is needed."""
        return bool(self._proofs)

    def expect(self, volume_class: str) -> Literal["fused", "stock", "check"]:
        """Return who makes the next volume, which is of that class."""
        if self.engine != "fused":
            return "check" if self.engine == "check" else "stock"
        is_due = self._unchecked + 1 >= self._check_every
        return "check" if is_due or self._needs_proof(volume_class) else "fused"

    def begin(self, volume_class: str, mode: str) -> None:
        """Count a volume that a worker gets in this mode."""
        if mode == "check":
            self._under_way[volume_class] += 1
            if len(self._classes) < self.CLASSES:
                self._classes.add(volume_class)
        if self._unchecked + 1 >= self._check_every:
            self._unchecked = 0
        elif mode == "fused":
            self._unchecked += 1

    def forget_under_way(self) -> None:
        """Expect no end of the volumes that were begun: they are a parent's, and this is its child."""
        self._under_way.clear()

    def _needs_proof(self, volume_class: str) -> bool:
        if volume_class not in self._classes:
            return len(self._classes) < self.CLASSES
        return self._proofs[volume_class] + self._under_way[volume_class] < self.PROOFS

    def settle(self, volume_class: str, mode: str, outcome: Outcome | None) -> bool:
        """Count the end of a volume, and return whether the run goes over to MONAI with it.

        Parameters
        ----------
        volume_class : str
            As for `expect`.
        mode : str
            As for `begin`.
        outcome : Outcome or None
            Who made it; None where nobody did.

        Returns
        -------
        bool
            True once at most.
        """
        if mode == "check" and self._under_way[volume_class] > 0:
            self._under_way[volume_class] -= 1
        difference = "" if outcome is None else outcome.difference
        is_proved = outcome is not None and outcome.is_checked and not difference
        if is_proved and volume_class in self._classes:
            self._proofs[volume_class] += 1
        if self._kept is not None and mode != "stock":
            seconds = outcome.seconds if outcome is not None and is_proved else {}
            self._kept.keep(self._proofs, self._unchecked, difference, seconds)
        if difference and self.engine == "fused":
            self.engine = "stock"
            return True
        return False


class Proofs:
    """The classes of volumes of which core and MONAI have made the same bits, and how often.

    A difference that was ever found keeps the file from proving anything again.

    Parameters
    ----------
    processing : ImageProcessing
        The settings of the pipeline.
    pipeline : str
        `Pipeline.text`.
    threads : int
        Threads of torch in the process that makes tensors.
    onednn : bool
        Whether torch may use oneDNN there.
    precision : str
        `TorchState.precision` there.
    home : Path, optional
        Voxtier's folder; by default the user's. Without one nothing is kept.
    """

    def __init__(
        self,
        processing: ImageProcessing,
        *,
        pipeline: str = "",
        threads: int = 1,
        onednn: bool = True,
        precision: str = FULL_PRECISION,
        home: Path | None = None,
    ) -> None:
        home = home or home_if_any()
        self._facts = {
            "settings": describe_processing(processing),
            "pipeline": pipeline,
            "machine": describe_machine(),
            "threads": threads,
            "onednn": onednn,
            "precision": precision,
        }
        text = json.dumps(self._facts, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.path = None if home is None else home / "engine" / f"{name}.json"
        self.classes: dict[str, int] = {}
        """Number of volumes that both made with the same bits, by class."""
        self.unchecked = 0
        """Volumes that the core has made since the last one that both made."""
        self.difference = ""
        """What differed once, under the same facts."""
        self.seconds: dict[str, float] = {}
        """CPU seconds of the volumes that both made, by engine."""
        self._read()

    def _read(self) -> None:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
            if kept.get("facts") != json.loads(json.dumps(self._facts)):
                return
            classes = {str(name): int(count) for name, count in kept["classes"].items()}
            seconds = {name: float(kept["seconds"].get(name, 0)) for name in ("fused", "stock")}
            unchecked, difference = int(kept["unchecked"]), str(kept["difference"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # none, or damaged
            return
        self.difference = self.difference or difference
        self.classes = {} if self.difference else classes
        self.unchecked, self.seconds = max(0, unchecked), seconds

    def keep(
        self,
        classes: Counter[str],
        unchecked: int,
        difference: str = "",
        seconds: dict[str, float] = NO_SECONDS,
    ) -> None:
        """Write what is proved now, together with what other processes have written meanwhile.

        Parameters
        ----------
        classes : Counter
            For `classes`.
        unchecked : int
            For `unchecked`.
        difference : str
            What differed, with numbers.
        seconds : dict
            Of one more volume that both made, for `seconds`.
        """
        if self.path is None:
            return
        with contextlib.suppress(OSError):  # what is not written is proved again by the next process
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.path.with_suffix(".lock"), _LONGEST_WAIT):
                self._write(self.path, classes, unchecked, difference, seconds)

    def _write(
        self,
        path: Path,
        classes: Counter[str],
        unchecked: int,
        difference: str,
        seconds: dict[str, float],
    ) -> None:
        self._read()
        self.difference = self.difference or difference
        if not self.difference:
            for name, count in classes.items():
                self.classes[name] = max(count, self.classes.get(name, 0))
        self.unchecked = unchecked
        self.seconds = {name: self.seconds.get(name, 0) + seconds.get(name, 0) for name in ("fused", "stock")}
        row = {
            "facts": self._facts,
            "classes": {} if self.difference else self.classes,
            "unchecked": unchecked,
            "difference": self.difference,
            "seconds": self.seconds,
        }
        content = json.dumps(row, indent=1).encode()
        write_file(path, lambda stream: stream.write(content), sync=False)


def describe_machine() -> dict[str, Any]:
    """Return what decides the last bits beside the settings: binaries, processor, variables."""
    return {
        "core": [_core.__version__, *_stamp(_core.__file__)],
        "torch": [_stamp(path) for path in _torch_libraries()],
        "cpu": _describe_cpu(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(KERNEL_VARIABLES)
        },
    }


def _stamp(path: str | os.PathLike[str]) -> list[int]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _torch_libraries() -> list[Path]:
    """Return the libraries that hold torch's kernels; torch itself is not imported."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return []
    return sorted(Path(found.origin).parent.glob("lib/libtorch_cpu.*"))


def _describe_cpu() -> list[str]:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        first = ""
    rows = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    names = {name.strip(): value.strip() for name, value in rows.items()}
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features")
    kept = [names[name] for name in wanted if name in names]
    return [platform.machine(), *(kept or [platform.processor()])]

"""What `generate` would do: counts, bytes, peak disk, time. Nothing is changed by asking."""

from __future__ import annotations

import gzip
import json
import math
import statistics
import struct
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtier.errors import BackendError, ConfigError
from voxtier.tensors.identity.folders import item_folder
from voxtier.tensors.identity.keys import hub_path, item_key, missing_keys, raw_path, read_volume_names
from voxtier.tensors.making.hub import Hub, RemoteFile
from voxtier.tensors.making.resources import TYPICAL_VOXELS, affordable_workers, free_disk
from voxtier.tensors.manifest import Manifest

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.identity.keys import Expected

__all__ = ["Plan", "make_plan", "nifti_voxels", "output_size"]

SECONDS_PER_VOXEL = 18.7 / TYPICAL_VOXELS
"""One thread of the stock transforms, for an estimate before anything was measured."""
MOST_VOXELS_PER_BYTE = 1032
"""What DEFLATE can unpack from a byte."""
OVERHEAD = 24_000
"""Bytes of metadata and structure beside the image, 8 to 40 KB."""
ITEM_SIZES = {"float64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "uint8": 1}


@dataclass(slots=True)
class Plan:
    """The work, counted."""

    folder: str
    required: int
    present: int
    missing: int
    local_raws: int
    to_download: int
    unavailable: int
    orphans: int
    download_bytes: int
    output_bytes: int
    peak_disk_bytes: int
    free_disk_bytes: int
    workers: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list, repr=False)
    """The volumes to make, in order."""
    remote: dict[str, RemoteFile] = field(default_factory=dict, repr=False)
    """What the hub says about those that are not on disk, by volume name."""

    def as_json(self) -> str:
        """Return one line of JSON without the lists."""
        row = asdict(self)
        del row["names"], row["remote"]
        return json.dumps(row)


def output_size(config: Config) -> int:
    """Return the bytes of one tensor file, but for a few kilobytes."""
    voxels = math.prod(config.processing.target_shape_dhw)
    return voxels * ITEM_SIZES[config.processing.torch_dtype] + OVERHEAD


def nifti_voxels(path: Path) -> int | None:
    """Return the number of voxels that a NIfTI-1 header declares, or None."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(56)
        size = path.stat().st_size
    except (OSError, EOFError, zlib.error):  # the last for a damaged gzip file
        return None
    for order in "<>":
        if len(header) == 56 and struct.unpack_from(f"{order}i", header)[0] == 348:
            axes = [int(axis) for axis in struct.unpack_from(f"{order}8h", header, 40)]
            voxels = math.prod(max(1, axis) for axis in axes[1 : 1 + min(max(axes[0], 0), 7)])
            return min(voxels, MOST_VOXELS_PER_BYTE * size)  # whatever the header claims
    return None


def shard(names: list[str], count: int, index: int) -> list[str]:
    """Return the contiguous share ``index`` of ``count``; the shares are disjoint and complete.

    Raises
    ------
    voxtier.ConfigError
        ``index`` is not in ``[0, count)``.
    """
    if count < 1 or not 0 <= index < count:
        raise ConfigError(f"shard {index} of {count}: the shard id counts from 0 to num-shards - 1")
    return names[len(names) * index // count : len(names) * (index + 1) // count]


def make_plan(
    config: Config,
    *,
    workers: int = 8,
    num_shards: int = 1,
    shard_id: int = 0,
    batch_size: int = 100,
    hub: Hub | None = None,
) -> Plan:
    """Compare what the lists ask for with the cache, the image folder and the hub.

    Parameters
    ----------
    config : Config
        From `load_config`.
    workers : int
        The most volumes at once.
    num_shards, shard_id : int
        With more than one shard, volumes that are not on disk are left out.
    batch_size : int
        The most raw files on disk at once.
    hub : Hub, optional
        Asked for the sizes of volumes that are not on disk; without it these are counted as unavailable.

    Raises
    ------
    voxtier.ConfigError
        The lists cannot be read, or the hub refuses.
    """
    names = shard(read_volume_names(config.subsets), num_shards, shard_id)
    folder = item_folder(config)
    expected = missing_keys(names, folder)
    raws = {name: raw_path(config.img_dir, name, config.dir_structure) for name in expected.missing}
    local = [name for name in expected.missing if raws[name].is_file()]
    absent = [name for name in expected.missing if not raws[name].is_file()]
    remote, unavailable, warnings = _ask_hub(hub, absent, Manifest(folder).read())
    warnings += _warnings(config, expected)
    todo = [name for name in expected.missing if name not in unavailable]
    voxels = [count for name in local[:32] if (count := nifti_voxels(raws[name])) is not None]
    crew = affordable_workers(workers, max(voxels, default=None))
    output = output_size(config)
    sizes = sorted((file.size for file in remote.values()), reverse=True)
    return Plan(
        folder=str(folder),
        required=len(names),
        present=len(names) - len(expected.missing),
        missing=len(expected.missing),
        local_raws=len(local),
        to_download=len(remote),
        unavailable=len(unavailable),
        orphans=len(expected.orphans) if num_shards == 1 else 0,
        download_bytes=sum(sizes),
        output_bytes=output * len(todo),
        peak_disk_bytes=output * len(todo) + sum(sizes[:batch_size]),
        free_disk_bytes=free_disk(config.cache_dir),
        workers=crew,
        seconds=round(len(todo) * _seconds_per_item(folder, voxels) / crew, 1),
        warnings=warnings,
        names=todo,
        remote=remote,
    )


def _ask_hub(
    hub: Hub | None, absent: list[str], known: dict[str, dict[str, Any]]
) -> tuple[dict[str, RemoteFile], set[str], list[str]]:
    if not absent or hub is None:
        return {}, set(absent), []
    try:
        commit = hub.commit
        refused = {
            name
            for name in absent
            if (known.get(item_key(name), {}).get("unavailable") or {}).get("commit") == commit
        }
        ask = [name for name in absent if name not in refused]
        files = hub.look_up(map(hub_path, ask))
    except BackendError as error:
        return {}, set(absent), [f"{len(absent)} volumes are not on disk, and the hub is no help: {error}"]
    remote = {name: files[hub_path(name)] for name in ask if hub_path(name) in files}
    return remote, set(absent) - remote.keys(), []


def _warnings(config: Config, expected: Expected) -> list[str]:
    found = []
    if expected.ambiguous:
        found.append(
            f"{len(expected.ambiguous)} volumes are listed with and without .nii.gz: each spelling gets"
            f" a file of its own (first: {expected.ambiguous[0]})"
        )
    if len(set(config.processing.target_shape_dhw)) > 1:
        found.append(
            "target_shape_dhw is applied to the axes (x, y, z): its first number lies on x, not on depth"
        )
    short = [
        n for n in expected.names if config.dir_structure == "nested" and len(n.split(".")[0].split("_")) < 3
    ]
    if short:
        found.append(
            f"{len(short)} names have fewer than three parts and lie directly in img_dir (first: {short[0]})"
        )
    return found


def _seconds_per_item(folder: Path, voxels: list[int]) -> float:
    entries = Manifest(folder).read().values()
    measured = [float(entry["seconds"]) for entry in entries if entry.get("seconds") is not None]
    if measured:
        return statistics.median(measured[-1000:])
    return SECONDS_PER_VOXEL * (statistics.mean(voxels) if voxels else TYPICAL_VOXELS)

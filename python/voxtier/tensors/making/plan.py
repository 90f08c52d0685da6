"""The plan of a run: counts, bytes, peak disk and time. `make_plan` changes nothing.

``voxtier tensors plan`` prints it; `Generator.run` carries it out.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from voxtier.errors import BackendError, ConfigError
from voxtier.system.text import format_count
from voxtier.tensors.engine.headers import read_header
from voxtier.tensors.identity.folders import item_folder
from voxtier.tensors.identity.keys import (
    hub_path,
    item_key,
    missing_keys,
    raw_path,
    read_volume_names,
    spellings,
)
from voxtier.tensors.making.download import describe_outdated, is_current, is_of_commit, is_ours
from voxtier.tensors.making.hub import Hub, RemoteFile
from voxtier.tensors.making.resources import TYPICAL_VOXELS, affordable_workers, free_disk
from voxtier.tensors.manifest import Entry, Manifest

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.identity.keys import Expected

SECONDS_PER_VOXEL = 18.7 / TYPICAL_VOXELS
"""One thread of the stock transforms: the estimate until the manifest holds measured times."""
OVERHEAD = 24_000
"""Bytes of metadata and structure beside the image: 8 to 40 KB."""
ITEM_SIZES = {"float64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "uint8": 1}


@dataclass(frozen=True, slots=True)
class Options:
    """How to plan and run."""

    workers: int = 8
    """Most volumes at once; fewer when memory is short."""
    batch_size: int = 100
    """Most downloaded raw files on disk at once."""
    clean_raw: bool = False
    """Also remove raw files that the user put there, once their tensors are verified."""
    num_shards: int = 1
    """Shares of the list. With more than one, volumes that are not on disk are left out."""
    shard_id: int = 0
    """The share of this run, from 0."""
    min_free: int = 1 << 30
    """Bytes that stay free on the disk."""
    max_raw_bytes: int | None = None
    """Most bytes of downloaded raw files at once."""
    until_full: bool = False
    """Start although the disk cannot hold everything."""
    accepted: frozenset[str] = frozenset()
    """Findings that do not keep a tensor from being made: ``constant``, ``nan``, ``4d``, ``affine``."""
    engine: str | None = None
    """One of `ENGINES`; by default the configuration's."""
    check_every: int = 500
    """Of so many volumes that the core makes, one is made by MONAI as well, and compared."""


DEFAULTS = Options()


@dataclass(slots=True)
class Plan:
    """The work of a run, counted."""

    folder: str
    required: int
    """Volumes of the lists, or of the shard."""
    present: int
    missing: int
    local_raw_files: int
    to_download: int
    unavailable: int
    orphans: int
    download_bytes: int
    output_bytes: int
    peak_disk_bytes: int
    free_disk_bytes: int
    workers: int
    seconds: float
    listed: int = 0
    """Volumes of the lists, of all shards."""
    hub_down: bool = False
    """The hub was asked and gave no answer."""
    unreadable: int = 0
    """Volumes whose tensor is a link without a target, or a folder: neither present nor made."""
    warnings: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list, repr=False)
    """The volumes to make, in order."""
    all_names: list[str] = field(default_factory=list, repr=False)
    """The volumes of the lists, or of the shard."""
    unavailable_names: list[str] = field(default_factory=list, repr=False)
    """The volumes that are neither on disk nor on the hub."""
    unavailable_why: str = ""
    """Why these cannot be fetched."""
    outdated: dict[str, str] = field(default_factory=dict, repr=False)
    """Where raw files of unavailable volumes were downloaded from, if elsewhere, by volume name."""
    unreadable_names: dict[str, str] = field(default_factory=dict, repr=False)
    """Their names, with the reasons."""
    engine: str = "stock"
    """One of `ENGINES`."""
    oblique: int = 0
    """Volumes on disk with axes that are not the world's, which MONAI makes."""
    remote: dict[str, RemoteFile] = field(default_factory=dict, repr=False)
    """Size and checksum of the volumes that are not on disk but on the hub, by volume name."""
    spellings: dict[str, list[str]] = field(default_factory=dict, repr=False)
    """Of all shards, the volumes that are listed under several names, by each of these names."""

    def as_json(self) -> str:
        """Return one line of JSON without the lists of volumes."""
        lists = ("names", "all_names", "unavailable_names", "unreadable_names", "remote", "spellings")
        left_out = (*lists, "unavailable_why", "outdated")  # the warnings have these
        row = {name: value for name, value in asdict(self).items() if name not in left_out}
        row["local_raws"] = row.pop("local_raw_files")  # the key that scripts of version 0.1 read
        return json.dumps(row)


def output_size(config: Config) -> int:
    """Return the bytes of one tensor file, within a few kilobytes."""
    voxels = math.prod(config.processing.target_shape_dhw)
    return voxels * ITEM_SIZES[config.processing.torch_dtype] + OVERHEAD


def shard(names: list[str], count: int, index: int) -> list[str]:
    """Return one contiguous share of a list; the shares are disjoint, and together they are the list.

    Parameters
    ----------
    names : list of str
        The whole list.
    count : int
        Number of shares, at least 1.
    index : int
        Which share, from 0.

    Returns
    -------
    list of str
        The names of that share, in order.

    Raises
    ------
    ConfigError
        ``index`` is not in ``[0, count)``.
    """
    if count < 1 or not 0 <= index < count:
        raise ConfigError(f"shard {index} of {count}: choose a shard id from 0 to num-shards - 1")
    return names[len(names) * index // count : len(names) * (index + 1) // count]


def make_plan(config: Config, options: Options = DEFAULTS, *, hub: Hub | None = None) -> Plan:
    """Compare what the lists ask for with the cache, the image folder and the hub.

    Parameters
    ----------
    config : Config
        From `load_config`.
    options : Options
        How it will be run.
    hub : Hub, optional
        Asked for the sizes of volumes that are not on disk; without it these count as unavailable.

    Returns
    -------
    Plan
        For `Generator.run`.

    Raises
    ------
    ConfigError
        The lists cannot be read, or the hub refuses.
    """
    listed = read_volume_names(config.subsets)
    names = shard(listed, options.num_shards, options.shard_id)
    folder = item_folder(config)
    expected = missing_keys(names, folder)
    paths = ((name, raw_path(config.img_dir, name, config.dir_structure)) for name in expected.missing)
    local = {name: path for name, path in paths if path.is_file()}
    warnings = _warnings(config, expected)
    entries = Manifest(folder).read()
    several = spellings(listed)
    absent = [name for name in expected.missing if name not in local]
    downloaded = _downloaded(local, several, entries)
    remote: dict[str, RemoteFile] = {}
    detail = ""
    why = "no hub is asked: a share of the list downloads nothing" if hub is None else "not in the repository"
    is_answered = False
    if hub is not None and (absent or downloaded):
        try:
            remote = _ask_hub(hub, absent, downloaded, entries)
            is_answered = True
        except BackendError as error:
            why, detail = "the hub does not help", f": {error}"
    outdated: dict[str, str] = {}
    for name, source in downloaded.items():
        if hub is not None and is_answered:
            found = remote.pop(name, None)
            is_used = _is_current(hub, source, local[name], found)
            remote |= {} if is_used or found is None else {name: found}
        else:
            is_used = _may_be_current(source, config)
        if not is_used:
            del local[name]
            outdated[name] = f"{source.get('repo')} at {source.get('commit')}" if source else "elsewhere"
    absent = [name for name in expected.missing if name not in local]
    hub_down = bool(absent and hub is not None and not is_answered)
    todo = [name for name in expected.missing if name in local or name in remote]
    engine = options.engine or config.engine
    headers = [header for path in local.values() if (header := read_header(path)) is not None]
    voxels = [header.voxels for header in headers]
    affordable = affordable_workers(
        options.workers, max(voxels, default=None), is_fused=engine == "fused", output=output_size(config)
    )
    output = output_size(config)
    sizes = sorted((file.size for file in remote.values()), reverse=True)
    unavailable = [name for name in absent if name not in remote]
    outdated = {name: outdated[name] for name in unavailable if name in outdated}
    if outdated:
        warnings.insert(0, _outdated(config, outdated, f"{why}{detail}"))
    if not_there := [name for name in unavailable if name not in outdated]:
        warnings.insert(0, f"{_absent(config, not_there)}, and {why}{detail}")
    return Plan(
        folder=str(folder),
        required=len(names),
        present=len(names) - len(expected.missing) - len(expected.unreadable),
        missing=len(expected.missing),
        local_raw_files=len(local),
        to_download=len(remote),
        unavailable=len(unavailable),
        orphans=len(expected.orphans) if options.num_shards == 1 else 0,
        download_bytes=sum(sizes),
        output_bytes=output * len(todo),
        peak_disk_bytes=output * len(todo) + sum(sizes[: options.batch_size]),
        free_disk_bytes=free_disk(config.cache_dir),
        workers=affordable,
        seconds=round(len(todo) * _seconds_per_item(entries, voxels) / affordable, 1),
        listed=len(listed),
        hub_down=hub_down,
        unreadable=len(expected.unreadable),
        warnings=warnings,
        engine=engine,
        oblique=sum(header.is_oblique for header in headers),
        names=todo,
        all_names=names,
        unavailable_names=unavailable,
        unavailable_why=why if unavailable else "",
        outdated=outdated,
        unreadable_names=expected.unreadable,
        remote=remote,
        spellings=several,
    )


def _absent(config: Config, names: list[str]) -> str:
    """Return that volumes are not on disk, and where the first was looked for: names alone tell the place."""
    first = raw_path(config.img_dir, names[0], config.dir_structure)
    are = "is" if len(names) == 1 else "are"
    place = f"{names[0]} as {first}, by dir_structure: {config.dir_structure}"
    return f"{format_count(len(names), 'volume')} {are} not on disk (first: {place})"


def _outdated(config: Config, downloaded_from: dict[str, str], why: str) -> str:
    """Return that raw files on disk are not those of the repository, and which the first is."""
    name, origin = next(iter(downloaded_from.items()))
    first = raw_path(config.img_dir, name, config.dir_structure)
    files = format_count(len(downloaded_from), "raw file")
    return f"{files} on disk not used, and {why} (first: {describe_outdated(first, origin)})"


def _downloaded(
    local: dict[str, Path], several: dict[str, list[str]], entries: dict[str, Entry]
) -> dict[str, Entry]:
    """Return where raw files on disk come from that earlier runs have downloaded, by volume name."""
    found: dict[str, Entry] = {}
    for name, path in local.items():
        for each in several.get(name, [name]):
            entry = entries.get(item_key(each), {})
            if entry.get("raw") and is_ours(entry, path):  # few: no look at the disk for the others
                found[name] = entry["raw"].get("source") or {}
    return found


def _ask_hub(
    hub: Hub, absent: list[str], downloaded: dict[str, Entry], entries: dict[str, Entry]
) -> dict[str, RemoteFile]:
    """Look up what is absent, and what was downloaded from another commit.

    Volumes are left out that the manifest knows to be missing at this commit.
    """
    commit = hub.commit

    def is_missing(name: str) -> bool:
        noted = entries.get(item_key(name), {}).get("unavailable") or {}
        return bool(noted.get("commit") == commit)

    moved = [name for name, source in downloaded.items() if not is_of_commit(source, hub.repo_id, commit)]
    paths = {name: hub_path(name) for name in [*absent, *moved] if not is_missing(name)}
    files = hub.look_up(paths.values())
    return {name: files[path] for name, path in paths.items() if path in files}


def _is_current(hub: Hub, source: Entry, path: Path, found: RemoteFile | None) -> bool:
    if found is None:  # of the hub's commit, or not there any more
        return is_of_commit(source, hub.repo_id, hub.commit)
    return is_current(source, path, found, hub.source(found))


def _may_be_current(source: Entry, config: Config) -> bool:
    """Whether a downloaded file is what the configuration names, as far as is known without its hub."""
    named = config.downloads
    is_commit = re.fullmatch("[0-9a-f]{40}", named.revision) is not None
    return source.get("repo") == named.repo_id and (not is_commit or source.get("commit") == named.revision)


def _warnings(config: Config, expected: Expected) -> list[str]:
    found = []
    if expected.ambiguous:
        found.append(
            f"{format_count(len(expected.ambiguous), 'volume')} listed with and without .nii.gz: each"
            f" spelling gets a file of its own (first: {expected.ambiguous[0]})"
        )
    if expected.unreadable:
        first = next(iter(expected.unreadable.values()))
        found.append(f"{format_count(len(expected.unreadable), 'tensor')} cannot be read (first: {first})")
    if len(set(config.processing.target_shape_dhw)) > 1:
        found.append(
            "target_shape_dhw is applied to the axes (x, y, z): its first number lies on x, not on depth"
        )
    short = [
        n for n in expected.names if config.dir_structure == "nested" and len(n.split(".")[0].split("_")) < 3
    ]
    if short:
        found.append(
            f"{format_count(len(short), 'name')} of fewer than three parts, looked for directly in img_dir"
            f" (first: {short[0]})"
        )
    return found


def _seconds_per_item(entries: dict[str, Entry], voxels: list[int]) -> float:
    measured = [float(entry["seconds"]) for entry in entries.values() if entry.get("seconds") is not None]
    if measured:
        return statistics.median(measured[-1000:])
    return SECONDS_PER_VOXEL * (statistics.mean(voxels) if voxels else TYPICAL_VOXELS)

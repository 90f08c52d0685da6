"""Disk space: when a volume may begin, what a full disk does to a run, how much raw files take."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensors.cases import CONFIG, names_of, nifti_bytes
from tensors.making.hub_server import HubServer
from tensors.making.project import Project
from voxtier.errors import NotLoadedError
from voxtier.tensors.engine.self_test import describe_cause
from voxtier.tensors.identity.keys import hub_path
from voxtier.tensors.making.policies import DiskPolicy, is_disk_full
from voxtier.tensors.saving import save_checked


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of that size."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("free", "under_way", "raw_bytes", "download_bytes", "decision"),
    [
        (1110, 0, 0, 0, "begin"),
        (1109, 0, 0, 0, "stop"),
        (1109, 1, 0, 0, "wait"),
        (1130, 2, 0, 0, "begin"),
        (1129, 2, 0, 0, "wait"),
        (9999, 1, 60, 40, "begin"),
        (9999, 1, 61, 40, "wait"),
        (9999, 0, 0, 101, "begin"),  # larger than the limit, but the only one
    ],
)
def test_a_volume_begins_when_the_disk_has_room_for_it_and_those_under_way(
    free: int, under_way: int, raw_bytes: int, download_bytes: int, decision: str
) -> None:
    policy = DiskPolicy(min_free=1100, output_bytes=10, max_raw_bytes=100)
    found = policy.decide(free=free, under_way=under_way, raw_bytes=raw_bytes, download_bytes=download_bytes)
    assert found == decision


def test_a_refused_write_and_an_item_that_cannot_be_saved_are_named_and_not_torch_s_inner_state(
    tmp_path: Path,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError) as refused:
            save_checked({"image": torch.rand(20_000)}, tmp_path / "a.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.__cause__ is not None, "torch says something of its own"
    assert (refused.value.errno, list(tmp_path.iterdir())) == (errno.EFBIG, [])
    text = f"OSError: [Errno {errno.EFBIG}] File too large: '{tmp_path / 'a.pt'}'"
    assert describe_cause(refused.value) == text
    with pytest.raises(NotLoadedError) as item:
        save_checked({"image": lambda: 0}, tmp_path / "b.pt")
    wrapped = RuntimeError("applying transform ...")
    wrapped.__cause__ = item.value
    assert describe_cause(wrapped).startswith("NotLoadedError: b.pt: the item cannot be saved")


def test_a_run_that_needs_more_than_the_disk_has_is_refused() -> None:
    policy = DiskPolicy(min_free=100, output_bytes=10)
    assert policy.shortage(needed=900, free=1000) == ""
    assert "--until-full" in policy.shortage(needed=901, free=1000)


def test_a_full_quota_is_a_full_disk() -> None:
    full = [is_disk_full(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, None)]
    assert full == [True, True, False, False]


def test_a_full_disk_stops_the_run_and_leaves_no_partial_file(server: HubServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "700k") as disk:
        config = CONFIG.replace("cache_dir: ${BASE}/cache", f"cache_dir: {disk}/cache")
        project = Project(tmp_path / "p", names_of(20), server, config=config)
        refused = project.cli("--yes")
        assert (refused.returncode, "--until-full" in refused.stderr) == (2, True)
        result = project.run(until_full=True)
        assert result.stop_reason
        assert result.exit_code() == 3
        assert 1 <= result.made < 20
        project.assert_sound()
        stopped = Project(tmp_path / "q", names_of(20), server, config=config.replace("-1.0", "-2.0"))
        assert stopped.run(until_full=True, min_free=690_000).made == 0


def test_a_full_disk_of_images_stops_the_run(server: HubServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        config = CONFIG.replace("img_dir: ${IMG_DIR}", f"img_dir: {disk}/images")
        project = Project(tmp_path / "p", names_of(4), server, config=config)
        for number, name in enumerate(project.names):
            server.files[hub_path(name)] = nifti_bytes(number, shape=(60, 60, 30))
        result = project.run()
        assert (result.made, "is full" in result.stop_reason, result.exit_code()) == (0, True, 3)
        assert list(disk.rglob("*.nii.gz")) == []  # a part that was told to stop is continued another time


def test_raw_files_take_no_more_than_the_limit(server: HubServer, tmp_path: Path) -> None:
    """D9: the predecessor needed twice the size of a batch."""
    project = Project(tmp_path / "p", names_of(8), server)
    for number, name in enumerate(project.names):
        server.files[hub_path(name)] = nifti_bytes(number, shape=(60, 60, 30))
    largest = max(map(len, server.files.values()))
    peak = [0]
    over = threading.Event()

    def sizes() -> dict[Path, int]:
        found = {}
        for folder, _, names in os.walk(project.base / "images"):  # forgives folders that vanish
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found[Path(folder) / name] = (Path(folder) / name).stat().st_size
        return found

    def watch() -> None:
        while not over.wait(0.002):
            before = sizes()
            if sizes().keys() == before.keys():  # else one that went and one that came might both be counted
                peak[0] = max(peak[0], sum(before.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = project.run(max_raw_bytes=2 * largest)
    finally:
        over.set()
    watcher.join()
    assert result.made == 8
    assert largest <= peak[0] <= 2 * largest * 1.05

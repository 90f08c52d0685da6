"""Downloads against a server that misbehaves in every way of the reference, section 5."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tensors.making.hub_server import Fault, HubServer
from voxtier.errors import (
    BackendError,
    ConfigError,
    NotFoundError,
    StoppedError,
    TransientError,
    WrongContentError,
)
from voxtier.tensors.claims import Claim
from voxtier.tensors.making.download import part_paths
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.policies import HubPolicy, RetryPolicy

PATH = "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz"
CONTENT = random.Random(1).randbytes(700_001)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        hub.files[PATH] = CONTENT
        yield hub


def connect(server: HubServer, **options: object) -> Hub:
    return Hub("some/CT-RATE", endpoint=server.endpoint, pause=0.01, **options)


def bodies(server: HubServer) -> list[dict[str, str]]:
    return [headers for method, where, headers in server.requests if method == "GET" and "/cdn/" in where]


def fetch(server: HubServer, folder: Path, **options: object) -> Path:
    hub = connect(server, **options)
    final = folder / "a.nii.gz"
    hub.fetch(hub.look_up([PATH])[PATH], final)
    return final


def test_a_plain_download_is_checked_and_leaves_nothing_behind(server: HubServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    hub = connect(server)
    assert hub.commit == server.commit
    entry = hub.look_up([PATH, "dataset/none"])
    assert list(entry) == [PATH]
    assert (entry[PATH].size, entry[PATH].sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_file_outside_lfs_is_checked_by_its_git_name(server: HubServer, tmp_path: Path) -> None:
    server.plain.add(PATH)
    server.faults[PATH] = [Fault("corrupt", at=9)]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(bodies(server)) == 2


def test_an_empty_file_is_fetched(server: HubServer, tmp_path: Path) -> None:
    server.files[PATH] = b""
    assert fetch(server, tmp_path).read_bytes() == b""


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ([Fault("drop", at=300_000)], 2),
        ([Fault("drop", at=300_000), Fault("drop", at=500_000)], 3),
        ([Fault("drop", at=300_000), Fault("no_range")], 2),
        ([Fault("drop", at=300_000), Fault("other_etag")], 2),
        ([Fault("corrupt", at=5)], 2),
        ([Fault("drop", at=300_000), Fault("corrupt", at=600_000)], 3),
        ([Fault("short")], 2),
        ([Fault("status", at=503), Fault("status", at=500)], 3),
        ([Fault("status", at=429, headers={"Retry_After": "0"})], 2),
        ([Fault("slow", seconds=0.005)], 1),
    ],
    ids=lambda value: (
        "+".join(f.kind + (str(f.at) if f.kind == "status" else "") for f in value)
        if isinstance(value, list)
        else ""
    ),
)
def test_faults_are_survived(faults: list[Fault], requests: int, server: HubServer, tmp_path: Path) -> None:
    server.faults[PATH] = list(faults)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(bodies(server)) == requests
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_drop_is_continued_where_it_ended(server: HubServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault("drop", at=300_000)]
    fetch(server, tmp_path)
    assert bodies(server)[1]["Range"].startswith("bytes=")
    assert server.sent[PATH] < len(CONTENT) + 66_000


def test_wrong_bytes_of_the_right_length_are_refused_for_good(server: HubServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault("corrupt", at=5)] * 9
    with pytest.raises(WrongContentError, match="checksum"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_stays_down_is_a_backend_error(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = connect(server)
    entry = hub.look_up([PATH])[PATH]
    server.faults[PATH] = [Fault("status", at=503)] * 99
    slept: list[float] = []
    monkeypatch.setattr(hub, "_sleep", slept.append)
    with pytest.raises(BackendError, match="503"):
        hub.fetch(entry, tmp_path / "a")
    assert len(slept) == len(bodies(server)) - 1, "nobody waits after the last attempt"
    server.api_faults = [Fault("status", at=500)] * 99
    with pytest.raises(BackendError, match="500"):
        connect(server).commit  # noqa: B018
    with pytest.raises(BackendError):
        Hub("some/CT-RATE", endpoint="http://127.0.0.1:9", pause=0.001).look_up([PATH])


def test_a_hub_that_recovers_answers(server: HubServer) -> None:
    server.api_faults = [Fault("status", at=503), Fault("status", at=429, headers={"Retry_After": "0"})]
    assert connect(server).commit == server.commit


def test_refusals_are_configuration_errors_without_the_token(server: HubServer, tmp_path: Path) -> None:
    server.token = "hf_right"
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        connect(server).look_up([PATH])
    with pytest.raises(ConfigError) as caught:
        connect(server, token="hf_wrong").look_up([PATH])
    assert "hf_wrong" not in str(caught.value)
    assert fetch(server, tmp_path, token="hf_right").read_bytes() == CONTENT
    with pytest.raises(ConfigError, match="none/such"):
        Hub("none/such", endpoint=server.endpoint, token="hf_right").look_up([PATH])
    with pytest.raises(ConfigError, match="repo_id"):  # at once: no repetition mends it
        Hub("not/a/name", endpoint=server.endpoint, pause=1000).look_up([PATH])
    with pytest.raises(ConfigError, match="revision"):
        Hub("some/CT-RATE", "v9", endpoint=server.endpoint, token="hf_right").look_up([PATH])


def test_the_token_stays_with_the_hub(server: HubServer, tmp_path: Path) -> None:
    server.token = "hf_right"
    fetch(server, tmp_path, token="hf_right")
    assert bodies(server)
    assert all("Authorization" not in headers for headers in bodies(server))


def test_a_file_that_is_gone_is_not_found(server: HubServer, tmp_path: Path) -> None:
    hub = connect(server)
    entry = hub.look_up([PATH])[PATH]
    del server.files[PATH]
    with pytest.raises(NotFoundError, match="404"):
        hub.fetch(entry, tmp_path / "a")


def test_offline_nothing_is_requested(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackendError, match="OFFLINE"):
        connect(server).look_up([PATH])
    assert server.requests == []


def test_stop_keeps_the_part_and_the_next_run_continues(server: HubServer, tmp_path: Path) -> None:
    stop = threading.Event()
    hub = connect(server, stop=stop)
    entry = hub.look_up([PATH])[PATH]
    with pytest.raises(StoppedError):
        hub.fetch(entry, tmp_path / "a.nii.gz", on_bytes=lambda _: stop.set())
    requests = len(server.requests)
    with pytest.raises(StoppedError):
        hub.fetch(entry, tmp_path / "b.nii.gz")
    assert len(server.requests) == requests
    assert not (tmp_path / "a.nii.gz").exists()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert "Range" in bodies(server)[1]


@pytest.mark.parametrize("damage", ["flip", "other commit", "too long", "no sidecar"])
def test_a_part_that_cannot_be_continued_is_fetched_anew(
    damage: str, server: HubServer, tmp_path: Path
) -> None:
    server.faults[PATH] = [Fault("drop", at=300_000)] + [Fault("status", at=503)] * 9
    with pytest.raises(BackendError):
        fetch(server, tmp_path)
    server.faults[PATH].clear()
    part, sidecar = part_paths(tmp_path / "a.nii.gz")
    assert part.stat().st_size > 100_000
    if damage == "flip":
        content = bytearray(part.read_bytes())
        content[7] ^= 1
        part.write_bytes(content)
    elif damage == "other commit":
        sidecar.write_text(sidecar.read_text().replace(server.commit, "2" * 40))
    elif damage == "too long":
        part.write_bytes(CONTENT + b"more")
    else:
        sidecar.unlink()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def fetching(server: HubServer, folder: Path, *, after: str = "") -> str:
    """A program that fetches the file into *folder*; *after* is what it does first, its imports done."""
    return (
        "import sys; from pathlib import Path; from voxtier.tensors.making.hub import Hub\n"
        f"hub = Hub('some/CT-RATE', endpoint={server.endpoint!r})\n"
        f"{after}\n"
        f"hub.fetch(hub.look_up([{PATH!r}])[{PATH!r}], Path({str(folder / 'a.nii.gz')!r}))"
    )


def test_a_killed_download_leaves_no_final_name_and_is_continued(server: HubServer, tmp_path: Path) -> None:
    """D7: the predecessor took the part for the file."""
    server.held.add(PATH)
    running = subprocess.Popen([sys.executable, "-c", fetching(server, tmp_path)])
    part, _ = part_paths(tmp_path / "a.nii.gz")
    while running.poll() is None and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "a.nii.gz").exists()
    server.release.set()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert "Range" in bodies(server)[-1]


def test_two_runs_that_share_a_folder_fetch_a_file_once(server: HubServer, tmp_path: Path) -> None:
    """Each for its own cache, so that no claim on a tensor keeps them apart."""
    server.seconds_per_chunk = 0.02
    together = fetching(server, tmp_path, after="print(flush=True); input()")
    pipe = subprocess.PIPE
    runs = [subprocess.Popen([sys.executable, "-c", together], stdin=pipe, stdout=pipe) for _ in range(3)]
    for running in runs:
        assert running.stdout is not None
        running.stdout.readline()
    for running in runs:
        assert running.stdin is not None
        running.stdin.write(b"\n")
        running.stdin.close()
    assert [running.wait() for running in runs] == [0, 0, 0]
    for running in runs:
        assert running.stdout is not None
        running.stdout.close()
    assert (tmp_path / "a.nii.gz").read_bytes() == CONTENT
    assert len(bodies(server)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize(("mine", "outcome"), [(b"mine", "other"), (CONTENT, "same")])
def test_a_file_that_appears_beside_a_download_stays(
    mine: bytes,
    outcome: str,
    when: str,
    has_links: bool,
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))
    final = tmp_path / "a.nii.gz"
    hub = connect(server)
    remote = hub.look_up([PATH])[PATH]
    if when == "before":
        final.write_bytes(mine)

    def lay(_: int) -> None:
        if not final.exists():
            final.write_bytes(mine)

    assert hub.fetch(remote, final, on_bytes=lay) == outcome
    assert final.read_bytes() == mine
    assert len(bodies(server)) == (when == "during")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    final.unlink()
    assert hub.fetch(remote, final) == "fetched"


def test_a_folder_that_another_run_removes_before_the_claim_is_made_again(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has removed its raw file, and with it the folder of the patient, which was empty."""
    take = Claim.take
    removed: list[Path] = []

    def remove_and_take(final: Path) -> Claim | None:
        if not removed:
            removed.append(final.parent)
            final.parent.rmdir()
            final.parent.parent.rmdir()
        return take(final)

    monkeypatch.setattr(Claim, "take", remove_and_take)
    assert fetch(server, tmp_path / "train_1" / "train_1_a").read_bytes() == CONTENT
    assert removed


def test_a_part_that_another_wrote_to_never_appears(server: HubServer, tmp_path: Path) -> None:
    part, _ = part_paths(tmp_path / "a.nii.gz")
    hub = connect(server)
    spoilt = []

    def spoil(_: int) -> None:
        if not spoilt and part.exists():
            with part.open("ab") as stream:
                spoilt.append(stream.write(b"another"))

    hub.fetch(hub.look_up([PATH])[PATH], tmp_path / "a.nii.gz", on_bytes=spoil)
    assert spoilt
    assert (tmp_path / "a.nii.gz").read_bytes() == CONTENT


def test_a_full_disk_leaves_nothing_behind(server: HubServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        with pytest.raises(OSError, match="No space left"):
            fetch(server, disk)
        assert list(disk.iterdir()) == []
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(OSError, match="No space left"):
            fetch(server, disk)
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_real_client_agrees_with_this_server(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is only worth something while huggingface_hub itself can download from it."""
    script = (
        "from huggingface_hub import hf_hub_download\n"
        f"print(hf_hub_download('some/CT-RATE', {PATH!r}, repo_type='dataset'))"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


def test_a_request_is_repeated_with_doubled_pauses_and_as_the_server_asks() -> None:
    retries = RetryPolicy(pause=1.0, attempts=5, longest_pause=3.0, longest_retry_after=100.0)
    asked = iter([0.0, 0.0, 0.0, 1000.0])
    pauses: list[float] = []

    def request() -> str:
        if (retry_after := next(asked, None)) is not None:
            raise TransientError("HTTP 503", retry_after)
        return "answer"

    assert retries.repeat(request, pauses.append, where="hub") == "answer"
    assert pauses == [pytest.approx(1, rel=0.21), pytest.approx(2, rel=0.21), pytest.approx(3, rel=0.21), 100]


def test_a_request_is_given_up_after_the_last_attempt_without_a_pause() -> None:
    pauses: list[float] = []

    def request() -> None:
        raise TransientError("HTTP 503")

    with pytest.raises(BackendError, match="hub: gave up after 3 attempts: HTTP 503"):
        RetryPolicy(attempts=3).repeat(request, pauses.append, where="hub")
    assert len(pauses) == 2


def test_a_failed_download_is_missing_fatal_or_that_volume_s_alone(tmp_path: Path) -> None:
    policy = HubPolicy(tmp_path)
    assert policy.judge(NotFoundError("404")).is_missing
    assert policy.judge(ConfigError("401")).stop_reason == "401"
    full = policy.judge(OSError(errno.ENOSPC, "No space left"))
    assert full.stop_reason == f"the disk of {tmp_path} is full"
    assert policy.judge(WrongContentError("checksum")) == policy.judge(OSError(errno.EIO, "EIO"))
    assert policy.judge(OSError(errno.EIO, "EIO")).stop_reason == ""
    assert not policy.down


def test_the_hub_is_down_after_five_failures_in_a_row(tmp_path: Path) -> None:
    policy = HubPolicy(tmp_path)
    for _ in range(2):
        for _ in range(4):
            policy.judge(BackendError("503"))
        assert not policy.down
        policy.succeeded()
    for _ in range(5):
        assert policy.judge(BackendError("503")).stop_reason == ""
    assert policy.down

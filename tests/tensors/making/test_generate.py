"""`generate` from the hub to files that stock MONAI reads, and everything that may go wrong on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, Transform

from tensors.cases import CONFIG, names_of, nifti_bytes, put_raw, rows, run_cli, write_project
from tensors.making.hub_server import Fault, HubServer
from voxtier import _core
from voxtier.cli.tensors.generate import _listen
from voxtier.errors import ConfigError
from voxtier.tensors import Manifest, build_transforms, item_key, load_config, volume_hash
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.identity.keys import hub_path, raw_path
from voxtier.tensors.making import resources
from voxtier.tensors.making.download import part_paths
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.plan import nifti_voxels, shard
from voxtier.tensors.making.raw_files import RawFiles
from voxtier.tensors.making.resources import affordable_workers, available_memory
from voxtier.tensors.making.run import Generator, Options, Outcome
from voxtier.tensors.making.worker_pool import Task


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


class Project:
    """A project folder, its configuration and its hub."""

    def __init__(
        self, base: Path, names: list[str], server: HubServer | None = None, config: str = CONFIG
    ) -> None:
        self.base = base
        self.names = names
        self.path = write_project(base, names, config=config)
        self.config = load_config(self.path, environment={})
        self.folder = item_folder(self.config)
        remember_folder(self.config, self.folder)
        self.server = server
        self.env = {"HF_ENDPOINT": server.endpoint if server else "http://127.0.0.1:9"}
        for number, name in enumerate(names if server else []):
            server.files[hub_path(name)] = nifti_bytes(number)  # type: ignore[union-attr]

    def generator(self, **options: Any) -> Generator:
        hub = None
        if self.server is not None:
            hub = Hub("some/CT-RATE", endpoint=self.server.endpoint, pause=0.01)
        generator = Generator(self.config, Options(**{"workers": 2, "min_free": 0, **options}), hub=hub)
        if hub is None:
            generator.hub = None
        else:
            hub._stop = generator.stop
        return generator

    def run(self, **options: Any) -> Outcome:
        generator = self.generator(**options)
        return generator.run(generator.plan())

    def final(self, name: str) -> Path:
        return self.folder / f"{item_key(name)}.pt"

    def raw(self, name: str) -> Path:
        return raw_path(self.config.img_dir, name, "nested")

    def cli(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run_cli("generate", "--config", self.path, "--min-free", "0", *arguments, env=self.env)

    def start(self, *arguments: str, program: tuple[str, str] = ("-m", "voxtier")) -> subprocess.Popen[str]:
        command = [sys.executable, *program, "tensors", "generate", "--config", str(self.path)]
        return subprocess.Popen(
            [*command, "--yes", "--min-free", "0", *arguments],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_a_file(self, running: subprocess.Popen[str]) -> None:
        wait_until(running, lambda: any(self.folder.glob("*.pt")))

    def assert_sound(self) -> None:
        for path in self.folder.glob("*.pt"):
            assert _core.verify_tensor_file(path).state == "ok"
        leftovers = [p.name for p in self.folder.iterdir() if p.name.startswith(".")]
        assert leftovers == []


def wait_until(running: subprocess.Popen[str], fact: Callable[[], bool]) -> None:
    while not fact():
        assert running.poll() is None, f"it ended too early: {running.communicate()[1]}"
        time.sleep(0.01)


class Never(Transform):
    """Stands where the transforms would run."""

    def __call__(self, _: object) -> object:
        raise AssertionError("a transform was called for a cached item")


def test_from_the_hub_to_stock_monai_with_zero_transform_calls(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(5), server)
    done = project.cli("--yes", "--json")
    assert done.returncode == 0, done.stderr
    plan, *_, result = rows(done.stdout)
    assert (plan["missing"], plan["to_download"]) == (5, 5)
    assert plan["download_bytes"] == sum(map(len, server.files.values()))
    assert result["result"] == {"made": 5, "elsewhere": 0, "failed": 0, "raws_removed": 5}
    project.assert_sound()
    items = [{"image": project.raw(name), "volume_name": name} for name in project.names]
    stock = PersistentDataset(items, Compose([Never()]), project.folder, hash_func=volume_hash)
    for item in stock:
        assert item["image"].shape == (1, 16, 32, 32)
        assert item["image"].dtype == torch.float32
        assert -1 <= item["image"].min() < item["image"].max() <= 1
        assert list(item) == ["image", "image_meta_dict"]
    params = (project.folder / "cache_params.json").read_bytes()
    assert hashlib.sha256(params).hexdigest().startswith("bed2ca50b467a8a6")
    # Nothing of the raw files is left, not even the patients' folders.
    assert list((project.base / "images").iterdir()) == []
    status = json.loads((project.base / "logs" / "generate_cache_status.json").read_text())
    assert (status["status"], status["num_batches"]) == ("completed", 1)
    logs = sorted(path.name for path in (project.base / "logs").glob("*.log"))
    assert logs == [f"generate_cache{kind}.log" for kind in ("", "_errors", "_fatal", "_missing_files")]
    before = len(server.requests)
    assert project.cli("--yes").returncode == 0
    assert len(server.requests) == before
    # The same numbers as the transforms give without us.
    put_raw(project.base, project.names[0], 0)
    expected = build_transforms(project.config.processing)(items[0])["image"]
    assert torch.equal(stock[0]["image"], expected.as_tensor())


def test_the_plan_keeps_its_word(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(4), server)
    del server.files[hub_path(project.names[0])]
    put_raw(project.base, project.names[1], 1)
    done = project.cli("--dry-run", "--json")
    assert done.returncode == 0
    (plan,) = rows(done.stdout)
    counts = ("required", "present", "missing", "local_raws", "to_download", "unavailable")
    assert [plan[name] for name in counts] == [4, 0, 4, 1, 2, 1]
    assert not project.folder.exists()
    outcome = project.run()
    assert (outcome.made, list(outcome.failed)) == (3, [project.names[0]])
    written = sum(path.stat().st_size for path in project.folder.glob("*.pt"))
    assert abs(written - plan["output_bytes"]) < 0.2 * written
    assert outcome.exit_code() == 3


def test_what_the_hub_lacks_is_asked_once_a_commit(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    gone = hub_path(project.names[0])
    del server.files[gone]
    assert project.run().exit_code() == 3
    before = len(server.requests)
    assert project.run().exit_code() == 3
    asked = [where for method, where, _ in server.requests[before:] if method == "POST"]
    assert asked == []
    assert "not in the repository" in (project.base / "logs" / "generate_cache_missing_files.log").read_text()
    server.commit = "2" * 40
    server.files[gone] = nifti_bytes(9)
    assert project.run().made == 1


def test_d5_exit_codes(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    assert run_cli("generate", "--config", tmp_path / "absent.yaml", "--yes").returncode == 2
    unasked = project.cli()
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    for name in project.names:
        server.faults[hub_path(name)] = [Fault("corrupt", at=1)] * 9
    failed = project.run()
    assert failed.exit_code() == 3
    assert all("checksum" in reason for reason in failed.failed.values())
    project.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    server.api_faults = [Fault("status", at=500)] * 99
    down = project.run()
    assert (down.made, down.exit_code()) == (0, 4)
    server.api_faults.clear()
    server.token = "hf_right"
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        project.run()


def test_a_failure_is_that_volumes_alone(server: HubServer, tmp_path: Path) -> None:
    """D10: success is a status, not a word in a text; the volume is called OK_1."""
    project = Project(tmp_path / "p", [*names_of(2), "OK_1.nii.gz"], server)
    server.files[hub_path("OK_1.nii.gz")] = b"no volume"
    outcome = project.run()
    assert outcome.made == 2
    assert list(outcome.failed) == ["OK_1.nii.gz"]
    assert not project.final("OK_1.nii.gz").exists()
    project.assert_sound()


def test_d2_a_raw_file_stays_when_its_tensor_is_broken(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(10))
    raws = [put_raw(project.base, name, number) for number, name in enumerate(project.names)]
    assert project.run().made == 10
    assert all(raw.exists() for raw in raws), "one's own raw files are untouched without the flag"
    broken = project.final(project.names[4])
    broken.write_bytes(broken.read_bytes()[:-500])
    assert project.run(clean_raw=True).raws_removed == 9
    assert [raw.exists() for raw in raws] == [number == 4 for number in range(10)]


def test_d8_an_interrupted_run_is_cleaned_by_the_next(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    assert project.run().made == 2
    first = project.names[0]
    raw = put_raw(project.base, first, 0)
    Manifest(project.folder).record([{"key": item_key(first), "raw": {"path": str(raw), "ours": True}}])
    assert project.run().raws_removed == 1
    assert list((project.base / "images").iterdir()) == []


@pytest.mark.parametrize("part", [False, True], ids=["given up", "interrupted"])
def test_a_file_of_the_user_in_the_place_of_a_failed_download_stays(
    part: bool, server: HubServer, tmp_path: Path
) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    (name,) = project.names
    if part:  # a run that was killed leaves this
        task = Task(name, project.raw(name), project.final(name))
        size = len(server.files[hub_path(name)])
        RawFiles(project.config, project.folder, Manifest(project.folder)).expect(task, size)
        task.raw.parent.mkdir(parents=True)
        part_paths(task.raw)[0].write_bytes(b"half")
    else:
        server.faults[hub_path(name)] = [Fault("corrupt", at=1)] * 3
        assert project.run().exit_code() == 3
    mine = put_raw(project.base, name, 7)
    outcome = project.run()
    assert (outcome.made, outcome.raws_removed, mine.exists()) == (1, 0, True)
    assert project.run().raws_removed == 0
    assert mine.exists()


def test_a_damaged_raw_file_is_that_volumes_failure_alone(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number)
    damaged = project.raw(project.names[0])
    content = bytearray(damaged.read_bytes())
    content[10:14] = b"\xff" * 4
    damaged.write_bytes(content)
    assert nifti_voxels(damaged) is None
    outcome = project.run()
    assert (outcome.made, list(outcome.failed)) == (1, [project.names[0]])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_d6_a_signal_ends_the_run_after_the_current_items(
    number: signal.Signals, code: int, server: HubServer, tmp_path: Path
) -> None:
    project = Project(tmp_path / "p", names_of(60), server)
    server.held.add(hub_path(project.names[-1]))  # so that it cannot end before it is told to
    running = project.start("--num-workers", "2")
    project.wait_for_a_file(running)
    running.send_signal(number)
    heard = wait_until_heard(running)
    server.release.set()
    errors = heard + running.communicate()[1]
    assert running.returncode == code, errors
    made = len(list(project.folder.glob("*.pt")))
    assert 1 <= made < 60
    project.assert_sound()
    assert "Traceback" not in errors
    assert project.run().made == 60 - made


def test_a_second_signal_kills_and_leaves_no_partial_file(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(40), server)
    server.held.add(hub_path(project.names[-1]))
    running = project.start("--num-workers", "2")
    project.wait_for_a_file(running)
    interrupt_twice(running)
    for path in project.folder.glob("*.pt"):
        assert _core.verify_tensor_file(path).state == "ok"


def wait_until_heard(running: subprocess.Popen[str]) -> str:
    assert running.stderr is not None
    heard = ""
    while "once more" not in heard:
        line = running.stderr.readline()
        assert line, f"it ended without a word: {heard}"
        heard += line
    return heard


def interrupt_twice(running: subprocess.Popen[str]) -> None:
    """As a terminal does, to the whole group; the second only when the first was heard."""
    os.killpg(running.pid, signal.SIGINT)
    wait_until_heard(running)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130, errors


@pytest.mark.timeout(60)
def test_a_signal_waits_for_no_lock() -> None:
    """One that comes while the first is being answered finds this thread inside the event's own lock."""
    run: Any = SimpleNamespace(stop=threading.Event(), abort=threading.Event())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        received = _listen(run)
        with run.stop._cond:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert run.abort.wait(50)
        assert run.stop.is_set()
        assert received == [signal.SIGINT, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_signal_does_not_wait_for_a_silent_server(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(3), server)
    server.seconds_per_chunk = 100_000
    patient = (
        "from voxtier.tensors.making import hub; hub.TIMEOUT = 100_000; from voxtier.cli import main; main()"
    )
    running = project.start(program=("-c", patient))
    wait_until(running, lambda: any(project.config.img_dir.rglob("*.part")))
    interrupt_twice(running)


def test_a_killed_worker_halves_the_crew_and_repeats_its_item_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "p", names_of(8))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number, shape=(48, 48, 30))
    generator = project.generator(workers=4)
    killed: list[str] = []
    dispatch = generator._dispatch

    def dispatch_and_kill(crew: Any) -> None:
        dispatch(crew)
        busy = [member for member in crew._members if member.task is not None]
        if len(busy) == 4 and not killed:
            busy[2].process.kill()
            killed.append(busy[2].task.volume)

    monkeypatch.setattr(generator, "_dispatch", dispatch_and_kill)
    outcome = generator.run(generator.plan())
    assert killed
    assert (outcome.made, outcome.failed, outcome.workers) == (8, {}, 2)
    log = (project.base / "logs" / "generate_cache.log").read_text()
    assert sorted(
        line.split(" made ")[0].split()[-1] for line in log.splitlines() if " made " in line
    ) == sorted(f"{name}:" for name in project.names)
    project.assert_sound()


def test_a_volume_that_kills_workers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path / "p", names_of(3))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number)
    generator = project.generator(workers=1)
    victim = project.names[1]
    dispatch = generator._dispatch

    def dispatch_and_kill(crew: Any) -> None:
        dispatch(crew)
        for member in crew._members:
            if member.task is not None and member.task.volume == victim:
                member.process.kill()

    monkeypatch.setattr(generator, "_dispatch", dispatch_and_kill)
    outcome = generator.run(generator.plan())
    assert outcome.made == 2
    assert "signal 9" in outcome.failed[victim]


def test_four_coordinators_share_sixteen_items_without_repeating_one(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(16))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number)
    generators = [project.generator(workers=1) for _ in range(4)]
    plans = [generator.plan() for generator in generators]
    threads = [
        threading.Thread(target=generator.run, args=[plan])
        for generator, plan in zip(generators, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(generator.outcome.made for generator in generators) == 16
    assert sum(generator.outcome.elsewhere for generator in generators) == 48
    assert all(generator.outcome.exit_code() == 0 for generator in generators)
    project.assert_sound()


@pytest.mark.soak
def test_four_processes_share_sixteen_items_without_repeating_one(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(16))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number)
    running = [project.start("--num-workers", "1", "--json") for _ in range(4)]
    made = []
    for run in running:
        out, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors
        made.append(rows(out)[-1]["result"]["made"])
    assert sum(made) == 16
    project.assert_sound()


def test_a_claim_of_the_dead_is_taken_over(tmp_path: Path) -> None:
    from voxtier.system import durable
    from voxtier.tensors import claims

    project = Project(tmp_path / "p", names_of(1))
    put_raw(project.base, project.names[0])
    project.folder.mkdir(parents=True)
    path = claims.Claim.path_for(project.final(project.names[0]))
    holder = {"pid": 999_999_999, "host": os.uname().nodename, "boot": durable.boot_id()}
    path.write_text(json.dumps(holder))
    assert project.run().made == 1
    assert not path.exists()
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "00000000"}))
    assert claims.Claim.take(project.final(project.names[0])) is None
    os.utime(path, (1, 1))  # no heartbeat for decades
    assert claims.Claim.take(project.final(project.names[0])) is not None


def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(server: HubServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        config = CONFIG.replace("cache_dir: ${BASE}/cache", f"cache_dir: {disk}/cache")
        project = Project(tmp_path / "p", names_of(20), server, config=config)
        refused = project.cli("--yes")
        assert (refused.returncode, "--until-full" in refused.stderr) == (2, True)
        outcome = project.run(until_full=True)
        assert outcome.stop_reason
        assert outcome.exit_code() == 3
        assert 1 <= outcome.made < 20
        project.assert_sound()
        stopped = Project(tmp_path / "q", names_of(20), server, config=config.replace("-1.0", "-2.0"))
        assert stopped.run(until_full=True, min_free=690_000).made == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_of_images_is_a_reason_to_stop(server: HubServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        config = CONFIG.replace("img_dir: ${IMG_DIR}", f"img_dir: {disk}/images")
        project = Project(tmp_path / "p", names_of(4), server, config=config)
        for number, name in enumerate(project.names):
            server.files[hub_path(name)] = nifti_bytes(number, shape=(60, 60, 30))
        outcome = project.run()
        assert (outcome.made, "is full" in outcome.stop_reason, outcome.exit_code()) == (0, True, 3)
        assert list(disk.rglob("*.nii.gz")) == []  # a part that was told to stop is continued another time
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_d13_tensors_do_not_travel_through_shared_memory(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(3))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number)
    script = (
        "mount -t tmpfs -o size=16k tmpfs /dev/shm && exec"
        f" {sys.executable} -m voxtier tensors generate --config {project.path} --yes --num-workers 2"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("a file system of one's own needs privileges")
    assert done.returncode == 0, done.stderr
    assert len(list(project.folder.glob("*.pt"))) == 3


def test_d9_peak_disk_and_max_raw_bytes(server: HubServer, tmp_path: Path) -> None:
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
            held = sizes()
            if sizes().keys() == held.keys():  # else one that went and one that came might both be counted
                peak[0] = max(peak[0], sum(held.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcome = project.run(max_raw_bytes=2 * largest)
    finally:
        over.set()
    watcher.join()
    assert outcome.made == 8
    assert largest <= peak[0] <= 2 * largest * 1.05


def test_d12_the_order_of_keys_is_the_same_under_any_hash_seed(tmp_path: Path) -> None:
    orders = set()
    for seed in ("1", "2"):
        script = (
            "from voxtier.tensors.identity.pipeline import KeyCleanerD, KEPT\n"
            "print(list(KeyCleanerD(KEPT)({'x': 0, 'image_meta_dict': 1, 'image': 2})))"
        )
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
        orders.add(done.stdout)
    assert orders == {"['image', 'image_meta_dict']\n"}


def test_d14_the_status_file_is_valid_at_every_moment(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(12))
    for number, name in enumerate(project.names):
        put_raw(project.base, name, number)
    status = project.base / "logs" / "generate_cache_status.json"
    seen: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            if status.exists():
                seen.append(json.loads(status.read_text())["status"])
            time.sleep(0.0005)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        project.run()
    finally:
        over.set()
    reader.join()
    assert len(seen) > 10
    assert set(seen) <= {"started", "running", "completed"}
    final = json.loads(status.read_text())
    assert 0 < final["process_rss_mb"] < 1e6


def test_shards_are_disjoint_and_complete(server: HubServer, tmp_path: Path) -> None:
    names = names_of(11)
    parts = [shard(names, 3, index) for index in range(3)]
    assert [name for part in parts for name in part] == names
    with pytest.raises(ConfigError):
        shard(names, 3, 3)
    project = Project(tmp_path / "p", names_of(4), server)
    for number in (0, 1, 2):
        put_raw(project.base, project.names[number], number)
    project.server = None
    assert project.run(num_shards=2, shard_id=0).made == 2
    outcome = project.run(num_shards=2, shard_id=1)
    assert (outcome.made, outcome.unavailable, outcome.exit_code()) == (1, 1, 3)
    assert server.requests == []


@pytest.mark.parametrize("memory", [1 << 28, 1 << 30, 3 << 30, 8 << 30, 1 << 37])
def test_workers_fit_into_memory(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < available_memory() < 1 << 50
    monkeypatch.setattr(resources, "available_memory", lambda: memory)  # other processes change it
    assert affordable_workers(8, 10**12) == 1
    room = (memory - resources.RESERVE) // (resources.WORKER_BASE + 10 * resources.BYTES_PER_VOXEL)
    assert affordable_workers(3, 10) == min(3, max(1, room))
    assert affordable_workers(10**6, None) * 51 * 512 * 512 * 240 < memory + 4e9


def test_voxels_are_read_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(1, shape=(5, 6, 7)))
    assert nifti_voxels(tmp_path / "a.nii.gz") == 210
    (tmp_path / "b.nii.gz").write_bytes(b"no volume")
    assert nifti_voxels(tmp_path / "b.nii.gz") is None
    assert nifti_voxels(tmp_path / "c.nii.gz") is None


def test_a_real_volume_that_nibabel_ships(tmp_path: Path) -> None:
    import gzip

    import nibabel

    source = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
    project = Project(tmp_path / "p", ["train_1_a_1.nii.gz"])
    raw = project.raw("train_1_a_1.nii.gz")
    raw.parent.mkdir(parents=True)
    raw.write_bytes(gzip.compress(source.read_bytes()))
    assert project.run().made == 1
    loaded = torch.load(project.final("train_1_a_1.nii.gz"), weights_only=True)
    assert loaded["image"].shape == (1, 16, 32, 32)
    assert "affine" in loaded["image_meta_dict"]


def test_float16_and_an_unreadable_cache_folder(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1), config=CONFIG.replace("float32", "float16"))
    put_raw(project.base, project.names[0])
    assert project.run().made == 1
    assert torch.load(project.final(project.names[0]))["image"].dtype == torch.float16
    blocked = dataclasses.replace(project.config, cache_dir=project.base / "configs" / "config.yaml" / "x")
    generator = Generator(blocked, Options(min_free=0))
    generator.hub = None
    with pytest.raises(ConfigError, match="cannot be written"):
        generator.run(generator.plan())


def test_the_token_is_in_no_log(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    server.token = "hf_very_secret"
    server.faults[hub_path(project.names[0])] = [Fault("status", at=503)] * 99
    project.env |= {"HF_TOKEN": "hf_very_secret", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    generator = project.generator()
    generator.hub = Hub("some/CT-RATE", endpoint=server.endpoint, token="hf_very_secret", pause=0.001)
    outcome = generator.run(generator.plan())
    assert (outcome.made, outcome.exit_code()) == (1, 3)
    for path in project.base.rglob("*"):
        if path.is_file():
            assert b"hf_very_secret" not in path.read_bytes(), path


def test_an_unfinished_download_of_a_killed_run_is_continued(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    name = project.names[0]
    server.files[hub_path(name)] = nifti_bytes(1, shape=(80, 80, 60))
    server.held.add(hub_path(name))
    running = project.start()
    part, _ = part_paths(project.raw(name))
    wait_until(running, lambda: part.exists() and part.stat().st_size > 60_000)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert not project.raw(name).exists()
    server.release.set()
    before = len(server.requests)
    assert project.run().made == 1
    assert any("Range" in headers for _, _, headers in server.requests[before:])
    assert not part.exists()

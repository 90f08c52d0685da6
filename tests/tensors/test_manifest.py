"""The manifest: segments of several processes are joined, damaged lines skipped."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from monai.data import PersistentDataset
from monai.transforms import Compose, Transform

from tensors.cases import fill_cache, names_of, run_cli, write_project
from voxtier.errors import ConfigError
from voxtier.tensors import Manifest, claims, list_cache, load_config, verify
from voxtier.tensors import manifest as manifest_module
from voxtier.tensors.identity.folders import item_folder
from voxtier.tensors.keeping.adopt import Stale, adopt, find_stale
from voxtier.tensors.keeping.disk_usage import choose_evictions, find_duplicates
from voxtier.tensors.keeping.migrate import Move, carry_out, plan_folder_moves, plan_renames
from voxtier.tensors.making.ledger import Ledger
from voxtier.tensors.making.plan import make_plan
from voxtier.tensors.manifest import Manifests


class Refuse(Transform):
    def __call__(self, _: object) -> object:
        raise AssertionError("recomputed")


def test_the_manifest_survives_set_data(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    fill_cache(cache, healthy, 2)
    list(adopt(cache))
    PersistentDataset([1], Compose([Refuse()]), cache).set_data([2])
    assert list(cache.iterdir()) == []
    assert len(Manifest(cache).read()) == 2


def _shut(manifest: Manifest, part: str) -> None:
    """Make the folder or a segment unreadable: a link in a circle refuses root too."""
    manifest.path.mkdir(parents=True, exist_ok=True)
    if part == "segment":
        (manifest.path / "of another user.jsonl").symlink_to("of another user.jsonl")
    else:
        manifest.path.rename(manifest.path.with_name("away"))
        manifest.path.symlink_to(manifest.path)


@pytest.mark.parametrize("part", ["folder", "segment"])
def test_a_manifest_that_cannot_be_read_refuses_what_depends_on_it(
    healthy: Path, tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A valid cache was refused as a whole, and a segment passed over in silence: pins were unknown."""
    cache = tmp_path / "c"
    paths = fill_cache(cache, healthy, 2)
    list(adopt(cache))
    manifest = Manifest(cache)
    _shut(manifest, part)
    assert manifest.read().keys() == ({path.stem for path in paths} if part == "segment" else set())
    assert "the manifest cannot be read, so it is left out" in caplog.text
    assert {state.state for state in verify(list_cache(cache), since_last=True)} == {"ok"}
    manifest.compact()
    with pytest.raises(ConfigError, match="what is pinned is not known"):
        choose_evictions(list_cache(cache), 0, can_be_remade=lambda _: True, force=True)
    for refused in (
        lambda: plan_folder_moves(cache, tmp_path / "new"),
        lambda: plan_renames(cache, [1], str, str),
        lambda: list(carry_out([Move(paths[0], cache / "new.pt")])),
        lambda: list(adopt(cache)),
        lambda: list(find_stale(cache, {})),
    ):
        with pytest.raises(OSError, match="symbolic links"):
            refused()
    assert all(path.is_file() for path in paths)
    done = run_cli("verify", cache)
    assert (done.returncode, "2 ok" in done.stdout, "left out" in done.stderr) == (0, True, True)


def test_segments_of_finished_processes_are_joined(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    for number in range(3):
        Manifest(cache).record([{"key": "a", "n": number}, {"key": f"b{number}"}])
    Manifest(cache).forget(["b1"])
    manifest = Manifest(cache)
    before = manifest.read()
    manifest.compact()
    assert len(list(manifest.path.iterdir())) == 1
    assert Manifest(cache).read() == before
    assert before["a"]["n"] == 2
    assert "b1" not in before


def test_joined_lines_keep_their_times_beside_those_of_a_process_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joined key had one time, the newest: old fields overrode what a living process had said since."""
    folder = tmp_path / "c"
    ended, living, others = Manifest(folder), Manifest(folder), Manifest(folder)
    living.record([{"key": "gone", "state": "ok"}])
    ended.record([{"key": "a", "raw": {"ours": True}, "state": "ok", "unavailable": {"reason": "404"}}])
    living.record([{"key": "a", "raw": None, "unavailable": None, "state": "bad_crc"}])
    living.record([{"key": "again", "state": "ok"}])
    ended.forget(["gone", "again"])
    living.record([{"key": "again", "size": 1}])
    ended.record([{"key": "a", "size": 5}])
    others.record([{"key": "b"}])
    before = Manifest(folder).read()
    assert (before["a"]["raw"], before["a"]["state"], before["a"]["size"]) == (None, "bad_crc", 5)
    assert ("gone" in before, "state" in before["again"]) == (False, False)
    own = living._own_segment
    assert own is not None
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "_is_in_use", own.__eq__)
        others.compact()
    assert sorted(path.name for path in living.path.iterdir()) == sorted([own.name, "joined.jsonl"])
    assert Manifest(folder).read() == before
    others.compact()  # the process has ended
    assert Manifest(folder).read() == before
    (joined,) = living.path.iterdir()
    assert "forgotten" not in joined.read_text()
    assert joined.read_text().count('"state"') == 1, "what was overridden is gone"


def test_a_segment_that_cannot_be_read_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Manifest(tmp_path / "c").record([{"key": f"a{number}"}])
    manifest = Manifest(tmp_path / "c")
    first = min(manifest.path.iterdir())
    read = Path.read_bytes

    def fail_once(path: Path) -> bytes:
        if path == first:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail_once)
        manifest.compact()
    assert sorted(manifest.read()) == ["a0", "a1", "a2"]


def test_runs_that_end_together_lose_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two joiners would write a file without what only the other has read, and remove the rest."""
    cache = tmp_path / "c"
    for number in range(3):
        Manifest(cache).record([{"key": f"a{number}"}])
    manifest = Manifest(cache)
    segments = sorted(manifest.path.iterdir())
    claim = claims.Claim.take(manifest.path / "joined.jsonl")
    assert claim is not None
    manifest.compact()
    assert sorted(path for path in manifest.path.iterdir() if path != claim.path) == segments
    claim.release()
    join = Manifest._merge

    def join_late(reader: Manifest, segments: list[Path], *rest: Any) -> dict[str, dict[str, object]]:
        if reader is manifest:
            Manifest(cache).compact()  # between the list of files and their contents
        return join(reader, segments, *rest)

    monkeypatch.setattr(Manifest, "_merge", join_late)
    assert sorted(manifest.read()) == ["a0", "a1", "a2"]
    assert [path.name for path in manifest.path.iterdir()] == ["joined.jsonl"]


STRANGE = [
    {"state": ["ok"], "mtime_ns": 1},
    {"mtime_ns": "x", "state": "ok"},
    {"size": 10**400},
    {"seconds": float("inf")},
    {"at": "now"},
    {"at": None},
    {"digest": [1]},
    {"source": {"mtime_ns": 1}},
    {"source": {"mtime_ns": 1, "size": 1, "path": 5}},
    {"source": {"mtime_ns": 1, "size": 1, "path": "a\0b"}},
    {"raw": 5},
    {"unavailable": "yes"},
    {"records": []},
    {"fingerprint": "old"},
]


@pytest.mark.parametrize("part", STRANGE, ids=str)
def test_values_of_a_wrong_type_stop_no_reader_of_the_manifest(
    part: dict[str, object], healthy: Path, tmp_path: Path
) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    (file,) = fill_cache(folder, healthy, 1)
    manifest = Manifest(folder)
    manifest.path.mkdir(parents=True)
    (manifest.path / "x-y-\u00b2-3.jsonl").write_text("{}\n")
    (manifest.path / "x.jsonl").write_text(json.dumps({"key": file.stem, "at": 1, **part}) + "\n")
    listing = list_cache(folder)
    assert [state.state for state in verify(listing, since_last=True)] == ["ok"]
    assert list(find_stale(folder, {})) in ([], [Stale(file.stem, None, [])])
    assert find_duplicates(manifest.read()) == []
    with pytest.raises(ConfigError, match="cannot be made again"):
        choose_evictions(listing, 0, can_be_remade=Manifests().has_source)
    assert make_plan(config).missing == 1
    ledger = Ledger(config, folder)
    ledger.clean_leftovers(names_of(2))
    assert ledger.result.raw_files_removed == 0
    manifest.compact()


def test_damaged_lines_are_skipped(healthy: Path, tmp_path: Path) -> None:
    (path,) = fill_cache(tmp_path / "cache", healthy, 1)
    manifest = Manifest(path.parent)
    manifest.record([{"key": path.stem, "volume": "a"}])
    (segment,) = manifest.path.glob("*.jsonl")
    segment.write_bytes(b"\xff\xfe{\n[1]\n" + b"[" * 200_000 + b"\n" + segment.read_bytes() + b'{"key": "tor')
    assert Manifest(path.parent).read()[path.stem]["volume"] == "a"
    assert run_cli("verify", path.parent, "--since-last").returncode == 0

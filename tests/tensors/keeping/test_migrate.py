"""`migrate`: other names, prefixes and folders without recomputing; files made safe for newer versions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import PersistentDataset
from monai.data.utils import json_hashing
from monai.transforms import Compose, Transform
from monai.utils.enums import TraceKeys

from tensors.cases import fill_cache, fork, run_forked
from voxtier.errors import ConfigError
from voxtier.tensors import Manifest, list_cache, verify
from voxtier.tensors.keeping.migrate import (
    Move,
    carry_out,
    change_prefix,
    make_safe,
    monai_key,
    plan_folder_moves,
    plan_renames,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Refuse(Transform):
    def __call__(self, _: object) -> object:
        raise AssertionError("recomputed")


def test_every_generation_of_names_is_migrated_without_recomputing(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(FIXTURES / "monai-1.5.2", folder)
    known = json.loads((folder / "facts.json").read_text())
    items = tmp_path / "items.json"
    items.write_text(json.dumps(known["items"]))
    dry = run_forked("migrate", folder, "--items", items)
    assert (dry.returncode, dry.stdout.count("would be moved")) == (0, 10)
    assert run_forked("migrate", folder, "--items", items, "--yes").returncode == 0
    stock = PersistentDataset(known["items"], Compose([Refuse()]), folder)
    assert [float(torch.as_tensor(item["image"]).double().sum()) for item in stock] == known["sums"]


def test_items_with_a_moved_prefix_are_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(FIXTURES / "monai-1.6.1", folder)
    known = json.loads((folder / "facts.json").read_text())
    moved = [{**item, "image": item["image"].replace("raw/", "/new/place/")} for item in known["items"]]
    items = tmp_path / "items.json"
    items.write_text(json.dumps(moved))
    options = ["--from", "sha256", "--old-prefix", "raw/", "--new-prefix", "/new/place/", "--yes"]
    done = run_forked("migrate", folder, "--items", items, *options)
    assert done.returncode == 0
    assert "10 moved" in done.stdout
    stock = PersistentDataset(moved, Compose([Refuse()]), folder)
    assert [float(torch.as_tensor(item["image"]).double().sum()) for item in stock] == known["sums"]


def test_names_with_a_hash_of_the_transforms_get_the_new_one(tmp_path: Path) -> None:
    """Both names got the old hash, which no version asks for beside the new names of the items."""

    def use(transform: Transform) -> PersistentDataset:
        return PersistentDataset(items, Compose([transform]), tmp_path / "c", hash_transform=json_hashing)

    items = [{"image": f"/data/{number}.nii"} for number in range(2)]
    (tmp_path / "items.json").write_text(json.dumps(items))
    (tmp_path / "c").mkdir()
    old = hashlib.md5(b'"Refuse"').hexdigest()  # what MONAI up to 1.6.0 makes of the names of the classes
    for number, item in enumerate(items):
        torch.save(number, tmp_path / "c" / f"{monai_key(item, 'md5')}{old}.pt")
    command = ["migrate", tmp_path / "c", "--items", tmp_path / "items.json", "--yes"]
    refused = run_forked(*command, "--transform-hash", old)
    assert (refused.returncode, "--new-transform-hash" in refused.stderr) == (2, True)
    new = use(Refuse()).transform_hash
    done = run_forked(*command, "--transform-hash", old, "--new-transform-hash", new)
    assert (done.returncode, "2 moved, 0 left" in done.stdout) == (0, True)
    assert list(use(Refuse())) == [0, 1]


def test_a_prefix_ends_where_a_name_ends(tmp_path: Path) -> None:
    """The neighbour of a moved folder was taken for a part of it, and kept its old name without a word."""
    before = [
        {"image": path} for path in ("/old/a.nii", "/data2/b.nii", "/old", "/database.nii", "data/c.nii")
    ]
    now = [
        {"image": path} for path in ("/data/a.nii", "/data2/b.nii", "/data", "/database.nii", "data/c.nii")
    ]
    for item in before:
        (tmp_path / f"{monai_key(item, 'md5')}.pt").write_bytes(b"x")
    items = tmp_path / "items.json"
    items.write_text(json.dumps([*now, {"image": "/data/absent.nii"}]))
    options = ["--old-prefix", "/old", "--new-prefix", "/data", "--yes"]
    done = run_forked("migrate", tmp_path, "--items", items, *options)
    assert (done.returncode, "5 moved, 0 left" in done.stdout) == (0, True)
    assert "so to be computed: 1 of 6 items" in done.stderr
    assert {path.stem for path in tmp_path.glob("*.pt")} == {monai_key(item, "sha256") for item in now}


@pytest.mark.parametrize(
    ("value", "before", "after", "expected"),
    [
        ("/data/a", "/data/", "raw/", "raw/a"),
        ("/data2/a", "/data/", "raw/", "/data2/a"),
        ("/data/a", "/data/", "", "a"),
        ("a", "", "/old/", "/old/a"),
        ("/data/a", "/data/", "/old", "/old/a"),
        ("/data/a", "/data", "/old/", "/old/a"),
        ("/data/a", "/", "/mnt", "/mnt/data/a"),
        ("text", "/", "/mnt", "text"),
        ("/mnt/data/a", "/mnt", "/", "/data/a"),
        ("C:\\data\\a", "C:\\data", "D:", "D:\\a"),
        ("C:\\data2\\a", "C:\\data", "D:", "C:\\data2\\a"),
        ({"image": ["/data/a", 1, "/data-b"]}, "/data", "/old", {"image": ["/old/a", 1, "/data-b"]}),
    ],
)
def test_a_prefix_is_changed(value: Any, before: str, after: str, expected: Any) -> None:
    assert change_prefix(value, before, after) == expected


def test_files_of_1_5_0_are_made_safe_for_stock_monai(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(FIXTURES / "monai-1.5.0", folder)
    known = json.loads((folder / "facts.json").read_text())
    dry = run_forked("migrate", folder, "--make-safe")
    assert dry.stdout.count("would be converted") == 10
    done = run_forked("migrate", folder, "--make-safe", "--yes")
    assert (done.returncode, done.stdout.count("converted")) == (0, 10)
    assert {state.state for state in verify(list_cache(folder))} == {"ok"}

    def md5(item: object) -> bytes:
        return monai_key(item, "md5").encode()

    stock = PersistentDataset(known["items"], Compose([Refuse()]), folder, hash_func=md5)
    assert [float(item["image"].double().sum()) for item in stock] == known["sums"]
    assert make_safe(next(folder.glob("*.pt"))) == "fine"


def test_make_safe_leaves_files_that_may_run_code(tmp_path: Path) -> None:
    torch.save({"x": os.path.join}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    assert make_safe(tmp_path / "a.pt").startswith("left: unsafe_globals")
    assert (tmp_path / "a.pt").read_bytes() == before


def test_make_safe_converts_the_legacy_format_and_leaves_what_no_plain_value_stands_for(
    tmp_path: Path,
) -> None:
    value = {"image": torch.arange(5.0), "n": np.arange(3), "key": TraceKeys.NONE}
    contents: dict[str, Any] = {
        "legacy": {"image": torch.arange(5.0)},
        "legacy arrays": value,
        "path": {"x": Path("/data")},
        "own": {"x": Move(Path("a"), Path("b"))},
        "protocol": value,
    }
    for name, content in contents.items():
        options = {"_use_new_zipfile_serialization": "legacy" not in name}
        torch.save(
            content, tmp_path / f"{name}.pt", **options, pickle_protocol=4 if name == "protocol" else 2
        )
    before = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    results = {name: make_safe(tmp_path / f"{name}.pt") for name in contents}
    assert {name for name, result in results.items() if result == "converted"} == {"legacy", "legacy arrays"}
    assert "pathlib.PosixPath" in results["path"]
    assert "keeping.migrate.Move" in results["own"]
    assert "protocol 2" in results["protocol"]
    for name in contents:
        path = tmp_path / f"{name}.pt"
        if results[name] == "converted":
            assert torch.equal(torch.load(path, weights_only=True)["image"], torch.arange(5.0))
        else:
            assert path.read_bytes() == before[name]


def test_make_safe_leaves_numbers_that_would_become_negative(tmp_path: Path) -> None:
    """uint64 above 2**63 came back negative, in the only copy, and was called converted."""
    most = np.array([2**63 - 1, 0], dtype=np.uint64)
    values = {
        "most": most,
        "empty": most[:0],
        "more": most + np.uint64(1),
        "nested": {"a": [most, (np.array(2**64 - 1, dtype=">u8"),)]},
    }
    for name, value in values.items():
        torch.save({"image": torch.ones(2), "x": value}, tmp_path / f"{name}.pt")
    before = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    results = {name: make_safe(tmp_path / f"{name}.pt") for name in values}
    assert (results["most"], results["empty"]) == ("converted", "converted")
    assert torch.load(tmp_path / "most.pt")["x"].tolist() == [2**63 - 1, 0]
    for name in ("more", "nested"):
        assert results[name].startswith("left: it holds numbers above 2**63 - 1")
        assert (tmp_path / f"{name}.pt").read_bytes() == before[name]


def test_make_safe_names_the_class_of_an_error_without_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"image": torch.arange(5.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)

    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr("voxtier.tensors.saving.save_checked", refuse)
    assert make_safe(tmp_path / "a.pt") == "left: OSError"


def test_a_taken_name_is_never_overwritten(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "old", healthy, 3)
    taken = tmp_path / "new" / paths[1].name
    taken.parent.mkdir()
    taken.write_bytes(b"mine")
    Manifest(tmp_path / "old").record([{"key": paths[0].stem, "volume": "v"}])
    results = [result for _, result in carry_out(plan_folder_moves(tmp_path / "old", tmp_path / "new"))]
    assert sorted(results) == ["left: the new name is taken", "moved", "moved"]
    assert taken.read_bytes() == b"mine"
    assert Manifest(tmp_path / "new").read()[paths[0].stem]["volume"] == "v"
    assert plan_renames(tmp_path / "new", [1], str, str) == []
    with pytest.raises(ConfigError):
        plan_folder_moves(tmp_path / "absent", tmp_path / "new")


def test_a_file_comes_with_its_row_and_that_of_a_gone_file_of_its_name_is_forgotten(
    healthy: Path, tmp_path: Path
) -> None:
    """The rows kept their times, so a newer row of the target held, and what only that one said held too."""
    old, new = tmp_path / "old", tmp_path / "new"
    first, second, third = fill_cache(old, healthy, 3)
    Manifest(old).record([{"key": first.stem, "size": 5}, {"key": second.stem, "size": 6}])
    gone = {"size": 1, "fingerprint": {"dtype": "other"}}
    Manifest(new).record([{"key": path.stem, **gone} for path in (first, third)])
    assert [result for _, result in carry_out(plan_folder_moves(old, new))] == ["moved"] * 3
    rows = {key: {**row, "at": 0} for key, row in Manifest(new).read().items()}
    assert rows == {
        path.stem: {"key": path.stem, "at": 0, "size": n} for n, path in ((5, first), (6, second))
    }
    assert Manifest(old).read() == {}
    # Names that follow each other, as where an item takes the place of another.
    moves = [Move(new / second.name, new / "c.pt"), Move(new / first.name, new / second.name)]
    assert [result for _, result in carry_out(moves)] == ["moved"] * 2
    assert {key: row["size"] for key, row in Manifest(new).read().items()} == {"c": 6, second.stem: 5}


def _die_at_rename(number: int, old: Path, new: Path) -> None:
    """In a forked child: begin a migration, and be killed at one of its renames."""
    calls = iter(range(1, 1000))
    link = os.link

    def link_or_die(*arguments: Any, **options: Any) -> None:
        if next(calls) == number:
            os._exit(9)
        link(*arguments, **options)

    os.link = link_or_die
    list(carry_out(plan_folder_moves(old, new)))


def test_a_killed_migration_leaves_no_row_behind(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows were written at the end alone: those of files that had moved were never joined to them again."""
    monkeypatch.setattr("voxtier.tensors.keeping.migrate._BATCH", 4)
    old, new = tmp_path / "old", tmp_path / "new"
    paths = fill_cache(old, healthy, 10)
    Manifest(old).record([{"key": path.stem, "volume": path.stem} for path in paths])
    Manifest(new).record([{"key": path.stem, "volume": "of a file that is gone"} for path in paths])
    process = fork(_die_at_rename, 7, old, new)
    process.join()
    moved = {path.stem for path in new.glob("*.pt")}
    assert (process.exitcode, len(moved)) == (9, 6)
    assert {key for key, row in Manifest(new).read().items() if row["volume"] == key} >= moved
    assert {result for _, result in carry_out(plan_folder_moves(old, new))} == {"moved"}
    assert [path.name for path in paths if not (new / path.name).is_file()] == []
    assert {key: row["volume"] for key, row in Manifest(new).read().items()} == {
        path.stem: path.stem for path in paths
    }
    assert Manifest(old).read() == {}


def test_an_interrupted_migration_keeps_each_row_with_its_file(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    paths = fill_cache(old, healthy, 5)
    Manifest(old).record([{"key": path.stem, "volume": "mine"} for path in paths])
    Manifest(new).record([{"key": path.stem, "volume": "of a file that is gone"} for path in paths])
    unlink, calls = Path.unlink, iter(range(5))

    def unlink_and_interrupt(path: Path, **options: bool) -> None:
        unlink(path, **options)
        if next(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(carry_out(plan_folder_moves(old, new)))
    moved = {path.stem for path in new.glob("*.pt")}
    assert len(moved) == 3
    volumes = {key: row["volume"] for key, row in Manifest(new).read().items()}
    assert volumes == {
        path.stem: "mine" if path.stem in moved else "of a file that is gone" for path in paths
    }
    assert Manifest(old).read().keys() == {path.stem for path in paths} - moved


def test_rows_that_an_earlier_version_left_behind_follow_their_files(healthy: Path, tmp_path: Path) -> None:
    """That version wrote the rows after all renames; of another file of the name nothing is known."""
    old, new = tmp_path / "old", tmp_path / "new"
    paths = fill_cache(old, healthy, 3)
    rows = [
        {"key": path.stem, "volume": "v", "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
        for path in paths
    ]
    Manifest(old).record(rows)
    old.rename(new)
    old.mkdir()
    os.utime(new / paths[2].name, ns=(1, 1))
    assert [result for _, result in carry_out(plan_folder_moves(old, new))] == ["moved"] * 2
    assert set(Manifest(new).read()) == {paths[0].stem, paths[1].stem}
    assert set(Manifest(old).read()) == {paths[2].stem}
    # The same within a folder, under names of items.
    (new / paths[0].name).rename(new / "sha.pt")
    moves = plan_renames(new, ["a"], lambda _: paths[0].stem, lambda _: "sha")
    assert [result for _, result in carry_out(moves)] == ["moved"]
    assert Manifest(new).read()["sha"]["volume"] == "v"


def test_a_name_that_is_taken_meanwhile_keeps_its_row(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = fill_cache(tmp_path / "old", healthy, 1)
    old, new = Manifest(tmp_path / "old"), Manifest(tmp_path / "new")
    old.record([{"key": path.stem, "volume": "mine"}])
    new.record([{"key": path.stem, "volume": "theirs"}])
    link = os.link

    def lay_and_link(source: Path, final: Path, **options: Any) -> None:
        final.write_bytes(b"theirs")
        link(source, final, **options)

    monkeypatch.setattr(os, "link", lay_and_link)
    results = [result for _, result in carry_out(plan_folder_moves(old.folder, new.folder))]
    assert results == ["left: the new name is taken"]
    assert (old.read()[path.stem]["volume"], new.read()[path.stem]["volume"]) == ("mine", "theirs")


def test_files_are_moved_where_no_manifest_can_be_written(healthy: Path, tmp_path: Path) -> None:
    (path,) = fill_cache(tmp_path / "old", healthy, 1)
    Manifest(tmp_path / "old").record([{"key": path.stem, "size": 5}])
    (tmp_path / ".voxtier" / "new").write_text("no folder")
    assert [result for _, result in carry_out([Move(path, tmp_path / "new" / "a.pt")])] == ["moved"]
    assert (tmp_path / "new" / "a.pt").is_file()
    assert Manifest(tmp_path / "old").read()[path.stem]["size"] == 5


def test_a_rename_killed_between_link_and_unlink_is_finished(healthy: Path, tmp_path: Path) -> None:
    linked, pointed = fill_cache(tmp_path / "old", healthy, 2)
    new = tmp_path / "new"
    new.mkdir()
    os.link(linked, new / linked.name)
    (new / pointed.name).symlink_to(pointed)  # the one copy must not go
    results = {move.old: result for move, result in carry_out(plan_folder_moves(tmp_path / "old", new))}
    assert results == {linked: "moved", pointed: "left: the new name is taken"}
    assert not linked.exists()
    assert pointed.exists()
    assert (new / linked.name).is_file()


def test_relative_links_lead_to_the_same_files_from_another_folder(healthy: Path, tmp_path: Path) -> None:
    """They were renamed as they are, and all of them dangled."""
    stored = fill_cache(tmp_path / "store", healthy, 4)
    old, new = tmp_path / "cache" / "old", tmp_path / "elsewhere" / "below" / "new"
    old.mkdir(parents=True)
    new.mkdir(parents=True)
    for path in stored[:3]:
        (old / path.name).symlink_to(f"../../store/{path.name}")
    (old / stored[3].name).symlink_to(stored[3])
    # An earlier run was killed between its two steps; and a link of another program has the name.
    (new / stored[1].name).symlink_to(f"{old}/../../store/{stored[1].name}")
    (new / stored[2].name).symlink_to(stored[2])
    moves = plan_folder_moves(old, new)
    results = {move.old.name: result for move, result in carry_out(moves)}
    taken = "left: the new name is taken"
    assert [results[path.name] for path in stored] == ["moved", "moved", taken, "moved"]
    assert [path.name for path in old.iterdir()] == [stored[2].name]
    assert all((new / path.name).samefile(path) for path in stored)
    # Within one folder a link stays as it is.
    (old / "a.pt").symlink_to("../../store")
    assert [result for _, result in carry_out([Move(old / "a.pt", old / "b.pt")])] == ["moved"]
    assert (old / "b.pt").readlink() == Path("../../store")


def test_an_item_that_is_listed_twice_is_renamed_once(healthy: Path, tmp_path: Path) -> None:
    (path,) = fill_cache(tmp_path, healthy, 1)
    moves = plan_renames(tmp_path, ["a", "a"], lambda _: path.stem, lambda _: "new")
    assert [result for _, result in carry_out(moves)] == ["moved"]


def test_a_folder_is_not_moved_into_itself(healthy: Path, tmp_path: Path) -> None:
    """Every file was taken for a rename that was cut short, and its only name removed."""
    paths = fill_cache(tmp_path / "c", healthy, 2)
    os.link(paths[0], tmp_path / "kept elsewhere.pt")
    (tmp_path / "link").symlink_to("c")
    for same in (tmp_path / "c", tmp_path / "link", tmp_path / "link" / ".." / "c"):
        with pytest.raises(ConfigError, match="itself"):
            plan_folder_moves(tmp_path / "c", same)
        moves = [Move(path, same / path.name) for path in paths]
        assert [result for _, result in carry_out(moves)] == ["left: the new name is taken"] * 2
        done = run_forked("migrate", tmp_path / "c", "--into", same, "--yes")
        assert (done.returncode, "itself" in done.stderr) == (2, True)
    assert [path.read_bytes() for path in paths] == [healthy.read_bytes()] * 2


def test_a_name_that_a_dangling_link_takes_is_left_without_hard_links(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = fill_cache(tmp_path / "c", healthy, 1)
    new = tmp_path / "new.pt"
    new.symlink_to(tmp_path / "absent")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [result for _, result in carry_out([Move(old, new)])] == ["left: the new name is taken"]
    assert new.is_symlink() and old.is_file()

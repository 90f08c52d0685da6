"""Keys of items, paths of volumes, names in CSV files, and their comparison with a cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from monai.data.utils import json_hashing, pickle_hashing

from tensors.cases import fill_cache, names_of
from voxtier.errors import ConfigError
from voxtier.tensors import item_key, stable_hash, volume_hash
from voxtier.tensors.identity.keys import hub_path, missing_keys, raw_path, read_volume_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_1_a_1.nii.gz", "a688fe64537c110e725a890a41ac3dde"),
        ("train_1_a_1", "60b28cef86d5d8bad3e4a1a4790eedec"),
    ],
)
def test_item_key_vectors(name: str, expected: str) -> None:
    assert item_key(name) == expected


@pytest.mark.parametrize(
    ("item", "sha"),
    [
        ({"image": "/data/ct/vol_001.nii.gz", "label": 1}, "2a475ec5f22e"),
        ("/data/ct/vol_001.nii.gz", "ec6da58e682c"),
        ({"image": ["/d/a.nii.gz", "/d/b.nii.gz"], "label": [0, 1]}, "c80c34e4ebe1"),
        (7, "88c41c8c31a3"),
        ({"b": 1, "a": 2}, "d1200ce1d4ac"),
    ],
)
def test_monai_item_hash_vectors(item: object, sha: str) -> None:
    assert pickle_hashing(item)[:12].decode() == sha


def test_monai_json_hash_vector() -> None:
    assert json_hashing({"image": "/data/ct/vol_001.nii.gz", "label": 1})[:12] == b"8df28bfd073a"


def test_stable_hash_ignores_roots_types_and_order() -> None:
    text = "/data/ct/vol_001.nii.gz"
    item = {"image": text, "label": 1}
    same = [
        {"label": np.int64(1), "image": Path("/elsewhere/ct/vol_001.nii.gz")},
        {"image": str(text.encode(), "ascii"), "label": 1.0},
        {"image": "C:\\x\\ct\\vol_001.nii.gz", "label": 1},
    ]
    assert {stable_hash(other) for other in same} == {stable_hash(item)}
    different = [{"image": text, "label": 2}, {"image": text}, [text, 1], {"image": text + "x", "label": 1}]
    assert stable_hash(item) not in {stable_hash(other) for other in different}
    assert stable_hash(["ab", "c"]) != stable_hash(["a", "bc"])
    assert stable_hash({"x": float("nan")}) == stable_hash({"x": np.float32("nan")}) != stable_hash({"x": 0})
    assert stable_hash(float("inf")) != stable_hash(float("-inf"))
    assert stable_hash(2**80) == stable_hash(float(2**80))
    with pytest.raises(TypeError, match="hash_func"):
        stable_hash({"image": object()})


def test_file_names_that_are_no_utf_8_have_hashes() -> None:
    raw = (b"/d/M\xfcller.nii.gz", b"/d/M\xf6ller.nii.gz", "/d/Müller.nii.gz".encode())
    names = [os.fsdecode(name) for name in raw] + ["/d/M\ud800ller.nii.gz"]
    for name_of in (
        lambda name: stable_hash({"image": name}),
        lambda name: volume_hash({"volume_name": name}),
    ):
        found = [name_of(name) for name in names]
        assert len(set(found)) == len(names)
        assert all(set(name) <= set(b"0123456789abcdef") for name in found)
    assert stable_hash({"image": names[0]}) == stable_hash({"image": Path(names[0])})
    known = "7151d0a74fdff37f85f3ba3e13d431f1d893e035adadbca849e87eaf0bbfc373"
    assert stable_hash({"image": names[2]}).decode() == known  # as before


@pytest.mark.parametrize(
    ("name", "nested", "flat", "hub"),
    [
        (
            "train_1_a_1.nii.gz",
            "train_1/train_1_a/train_1_a_1.nii.gz",
            "train_1_a_1__transformed.nii.gz",
            "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz",
        ),
        (
            "valid_12_b_2",
            "valid_12/valid_12_b/valid_12_b_2.nii.gz",
            "valid_12_b_2__transformed.nii.gz",
            "dataset/valid_fixed/valid_12/valid_12_b/valid_12_b_2.nii.gz",
        ),
        ("x_1.nii.gz", "x_1.nii.gz", "x_1__transformed.nii.gz", "dataset/x/x_1.nii.gz"),
    ],
)
def test_paths_on_disk_and_on_the_hub(name: str, nested: str, flat: str, hub: str) -> None:
    base = Path("/b")
    assert raw_path(base, name, "nested") == base / nested
    assert raw_path(base, name, "flat") == base / flat
    assert hub_path(name) == hub
    with pytest.raises(ConfigError):
        raw_path(base, name, "deep")


def test_csv_names_are_distinct_and_checked(tmp_path: Path) -> None:
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text("\ufeffLabel,VolumeName\n0,a.nii.gz\n1,b.nii.gz\n2,a.nii.gz\n3,\n")
    two.write_text("VolumeName\nb.nii.gz\nc.nii.gz\n")
    assert read_volume_names([one, two]) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert read_volume_names(one) == read_volume_names(str(one)) == ["a.nii.gz", "b.nii.gz"]
    two.write_text("volumename\nb\n")
    with pytest.raises(ConfigError, match="VolumeName, found volumename"):
        read_volume_names([two])
    two.write_text("VolumeName\n../../etc/passwd\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_volume_names([two])
    two.write_text(f"VolumeName\n{'é' * 120}\n")  # 240 bytes, and more as a path
    with pytest.raises(ConfigError, match="cannot be a file name"):
        read_volume_names([two])
    two.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ConfigError):
        read_volume_names([two])


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("VolumeName,VolumeName\na,b\n", "needs a column VolumeName, found VolumeName, VolumeName"),
        ("VolumeName \na\n", "found 'VolumeName '"),
        ('VolumeName\n"a.nii.gz\nb.nii.gz\n', "cannot be read"),
        ('VolumeName\n"a.nii.gz\nb.nii.gz"\n', "line 3: .*cannot be a file name"),
        ('VolumeName\n"a"b\n', "cannot be read"),
        ("VolumeName\na\x1b[31m\n", "line 2: .*cannot be a file name"),
        ("VolumeName\na\x00\n", "line 2: .*cannot be a file name"),
    ],
    ids=["two columns", "blank in header", "open quote", "line break", "text after quote", "escape", "NUL"],
)
def test_a_list_that_could_be_read_in_two_ways_is_refused(table: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(table)
    with pytest.raises(ConfigError, match=named):
        read_volume_names([path])


def test_a_file_in_the_place_of_the_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        missing_keys(["a"], tmp_path / "file" / "folder")


def test_missing_orphaned_and_ambiguous_names_are_told_apart(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "c", healthy, 3)
    paths[0].rename(paths[0].with_name(f"{'0' * 32}.pt"))
    (tmp_path / "c" / "cache_params.json").write_text("{}")
    found = missing_keys([f"train_{n}_a_1.nii.gz" for n in range(1, 6)] + ["train_2_a_1"], tmp_path / "c")
    assert found.missing == ["train_1_a_1.nii.gz", "train_4_a_1.nii.gz", "train_5_a_1.nii.gz", "train_2_a_1"]
    assert found.orphans == [f"{'0' * 32}.pt"]
    assert found.ambiguous == ["train_2_a_1"]
    assert len(missing_keys(["a"], tmp_path / "absent").missing) == 1


def test_a_name_that_is_no_file_is_neither_present_nor_missing(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = names_of(6)
    folder = tmp_path / "c"
    plain, linked, dangling, circle, directory, pipe = fill_cache(folder, healthy, 6)
    for path in (linked, dangling, circle, directory, pipe):
        path.unlink()
    linked.symlink_to(plain)
    dangling.symlink_to(tmp_path / "gone.pt")
    circle.symlink_to(circle)
    directory.mkdir()
    os.mkfifo(pipe)
    looked: list[Path] = []
    stat = Path.stat

    def count(path: Path, **options: bool) -> os.stat_result:
        looked.append(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", count)
    found = missing_keys(names, folder)
    assert plain not in looked
    assert found.missing == []
    expected = {
        names[2]: "target is gone",
        names[3]: "Too many levels",
        names[4]: "a folder",
        names[5]: "no file",
    }
    assert found.unreadable.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found.unreadable[name]
        assert f"{item_key(name)}.pt" in found.unreadable[name]

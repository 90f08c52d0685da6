"""The map from keys to volume names."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tensors.cases import fill_cache, run_cli
from voxtier.errors import ConfigError
from voxtier.tensors import hash_to_volume, write_map


def test_every_key_of_the_map_names_a_file(healthy: Path, tmp_path: Path) -> None:
    """D3: the predecessor wrote the hexadecimal form of digits that were hexadecimal already."""
    paths = fill_cache(tmp_path / "c", healthy, 8)
    table = tmp_path / "v.csv"
    table.write_text("VolumeName\n" + "".join(f"train_{n}_a_1.nii.gz\n" for n in range(1, 9)))
    target = tmp_path / "new" / "folder" / "map.json"
    assert run_cli("map", "--csv-path", table, "--output-path", target).returncode == 0
    text = target.read_text()
    mapping = json.loads(text)
    assert {f"{key}.pt" for key in mapping} == {path.name for path in paths}
    assert text == json.dumps(mapping, indent=4)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run_cli("map", "--csv-path", table, "--output-path", target, "--legacy-hex").returncode == 0
    legacy = json.loads(target.read_text())
    assert {bytes.fromhex(key).decode() for key in legacy} == set(mapping)
    assert all(len(key) == 64 for key in legacy)
    assert run_cli("map", "--csv-path", table, "--output-path", target, "--redact").returncode == 0
    redacted = json.loads(target.read_text())
    assert redacted.keys() == mapping.keys()
    assert "train" not in target.read_text()
    table.write_text("Name\nx\n")
    failed = run_cli("map", "--csv-path", table, "--output-path", target)
    assert (failed.returncode, "VolumeName" in failed.stderr) == (2, True)
    assert json.loads(target.read_text()) == redacted


def test_one_name_counts_as_one_and_an_iterator_as_its_names() -> None:
    """Not as its letters, each of which would have a key."""
    assert list(hash_to_volume("train_1").values()) == ["train_1"]
    assert hash_to_volume(iter(["a", "b"])) == hash_to_volume(["a", "b"])


def test_a_map_replaces_a_map_and_no_other_file(healthy: Path, tmp_path: Path) -> None:
    """`--output-path` with the name of a list or a volume once destroyed it."""
    mapping = {"0" * 32: "train_1_a_1.nii.gz"}
    others = {
        "list.csv": b"VolumeName\na\n",
        "volume.nii.gz": b"\x1f\x8b\x08",
        "tensor.pt": healthy.read_bytes(),
        "settings.json": b'{"epochs": 3}',
        "names.json": b'["a"]',
        "deep.json": b"[" * 100_000,
    }
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match="is no map"):
            write_map(tmp_path / name, mapping)
        assert (tmp_path / name).read_bytes() == data
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(ConfigError, match="is no map"):
            write_map(tmp_path / name, mapping)
    before = json.dumps({"1" * 64: "volume_1"}).encode()
    for name, data in (("empty.json", b""), ("no volumes.json", b"{}"), ("older.json", before)):
        (tmp_path / name).write_bytes(data)
        write_map(tmp_path / name, mapping)
        assert json.loads((tmp_path / name).read_text()) == mapping

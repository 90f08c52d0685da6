"""The map from keys to volume names."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tensors.cases import fill_cache, run_cli


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

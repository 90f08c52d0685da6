"""Refusals of this room: each has a kind of the closed list, and arguments are never among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tree.graph import PACKAGE
from volumes.support.images import series
from voxtier import _core
from voxtier.errors import VOLUME_KINDS, ConfigError, FormatError
from voxtier.volumes import Volume

# Kinds of the core that say the same of a volume's file.
OF_THE_CORE = {"not_dicom", "truncated_header", "value_past_end"}
# Another refusal's kind, with the place.
PASSED_ON = (
    "FormatError(kind, None, f'{where}: {why}')",
    "FormatError(error.kind, error.offset, f'{failure.name}: {error.detail}')",
)


def raised_kinds() -> Iterator[tuple[str, str]]:
    """Yield the place and the kind of every refusal that the room makes."""
    for path in sorted((PACKAGE / "volumes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("FormatError", "refusal"):
                kind = node.args[0]
                if isinstance(kind, ast.Constant):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", kind.value
                else:
                    assert ast.unparse(node) in PASSED_ON, path


def test_every_refusal_has_a_kind_of_the_closed_list() -> None:
    found = list(raised_kinds())
    assert len(found) > 30
    assert [each for each in found if each[1] not in {*VOLUME_KINDS, *OF_THE_CORE}] == []
    assert set(_core.ERROR_KINDS) >= OF_THE_CORE


def test_no_kind_of_the_list_is_unused() -> None:
    assert set(VOLUME_KINDS) == {kind for _, kind in raised_kinds()} - OF_THE_CORE | {"images_refused"}


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)])
def test_an_affine_that_a_caller_gives_is_an_argument(tmp_path: Path, affine: object) -> None:
    with pytest.raises(ConfigError, match="affine="):
        Volume.from_numpy(tmp_path / "v", np.zeros((2, 2, 2), np.int16), affine=affine)
    assert not (tmp_path / "v").exists()


HELD = [  # stored type, values, whether it holds them
    ("i2", 70_000, False),
    ("i2", np.int64(-32_768), True),
    ("i2", np.uint16(40_000), False),
    ("u1", 1, True),  # a plain box of integers, for a mask
    ("u1", -1, False),
    ("u1", 256, False),
    ("u1", True, True),
    ("u8", np.int64(-1), False),
    ("i8", np.uint64(2**63), False),
    ("i8", 2.0**63, False),
    ("bool", 1, True),
    ("bool", 2, False),
    ("i2", 3.0, True),
    ("i2", 2.5, False),
    ("i2", np.nan, False),
    ("i2", np.inf, False),
    ("f4", 1e300, False),
    ("f4", -1e300, False),
    ("f4", np.nan, True),
    ("f4", -np.inf, True),
    ("f4", 0.1, True),  # rounded
    ("f2", 70_000.0, False),
    ("f2", 70_000, False),
    ("f2", 65_504, True),
    ("f4", 1j, False),
    ("c8", 1e300j, False),
    ("c8", 2 + 1j, True),
    ("f4", "1", False),
]


@pytest.mark.parametrize(("dtype", "value", "is_held"), HELD)
def test_an_update_stores_the_numbers_that_it_is_given_or_refuses_them(
    tmp_path: Path, dtype: str, value: object, *, is_held: bool
) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.zeros((3, 3, 3), dtype))
    box = np.array([[[0, value]]], np.array(value).dtype)
    if not is_held:
        with pytest.raises(ConfigError, match="cannot hold"):
            volume.update((1, 1, 1), box)
        assert not volume.to_numpy().any()
        return
    volume.update((1, 1, 1), box)
    wanted = np.asarray(value) if np.dtype(dtype).kind in "bui" else np.dtype(dtype).type(value)
    assert np.array_equal(volume[1, 1, 2], wanted, equal_nan=np.dtype(dtype).kind == "f")
    assert volume.dtype == np.dtype(dtype)


def test_a_type_that_cannot_hold_the_pixels_of_a_series_is_refused(tmp_path: Path) -> None:
    pixels = np.array([[-1024, 40], [300, 3071]], np.int16)
    folder = series(tmp_path / "in", [(0, 0, z) for z in range(3)], pixels=pixels)
    for dtype in (np.uint8, np.int8, np.uint16):
        with pytest.raises(ConfigError, match="cannot hold"):
            Volume.from_dicom(tmp_path / "v", folder, dtype=dtype)
    for dtype in (np.int16, np.int64, np.float32):
        volume = Volume.from_dicom(tmp_path / np.dtype(dtype).name, folder, dtype=dtype)
        assert volume.stored_dtype == dtype
        assert np.array_equal(volume[:, :, 1], pixels.T)


def test_arguments_and_refusals_are_both_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(FormatError, ValueError)


def test_what_is_no_volume_and_what_tiledb_cannot_open_have_kinds_of_their_own(tmp_path: Path) -> None:
    import tiledb

    tiledb.from_numpy(str(tmp_path / "plain"), np.zeros(3)).close()
    with pytest.raises(FormatError) as caught:
        Volume.open(tmp_path / "plain")
    assert caught.value.kind == "not_a_volume"
    volume = Volume.from_numpy(tmp_path / "v", np.zeros((2, 2, 2), np.int16))
    for file in (tmp_path / "v" / "__schema").glob("__*_*"):
        file.write_bytes(file.read_bytes()[:-8] + b"\xff" * 8)
    volume.refresh()
    with pytest.raises(FormatError) as caught:
        Volume.open(tmp_path / "v")
    assert caught.value.kind == "store_damaged"

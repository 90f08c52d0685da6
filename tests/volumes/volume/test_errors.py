"""Refusals of this room: each has a kind of the closed list, and arguments are never among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tree.graph import PACKAGE
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

"""Frames of many files as one dataset, in loops and in the workers of a DataLoader."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frames.indexing.files import native
from voxtier.errors import SourceError
from voxtier.frames import FrameDataset, read_frame, read_table, read_tables, zarr_references


def test_frames_stand_in_the_order_of_their_files(tmp_path: Path) -> None:
    counts = [3, 1, 4, 2]
    paths = [tmp_path / f"{number}.dcm" for number in (2, 0, 3, 1)]
    for number, (path, count) in enumerate(zip(paths, counts, strict=True)):
        path.write_bytes(native(count, number))
    (tmp_path / "bad.dcm").write_bytes(b"no image")
    frames = FrameDataset([*paths[:2], tmp_path / "bad.dcm", *paths[2:], paths[0]], transform=np.copy)
    assert len(frames) == 13
    assert [result.path for result in frames.refused] == [str(tmp_path / "bad.dcm")]
    want = [(path, frame) for path, count in zip(paths, counts, strict=True) for frame in range(count)]
    want += want[:3]
    for index, (path, frame) in enumerate(want):
        assert frames.place(index) == (str(path), frame)
        assert np.array_equal(frames[index], read_frame(path, read_table(path), frame, decode=True))
        assert np.array_equal(frames[index - len(frames)], frames[index])
    for index in (13, -14):
        with pytest.raises(IndexError, match="of 13"):
            frames[index]
    raw = FrameDataset(paths, decode=False)
    assert raw[4] == read_frame(paths[2], read_table(paths[2]), 0)
    assert len(FrameDataset([])) == 0


@pytest.mark.parametrize("make", [FrameDataset, zarr_references])
def test_files_of_which_none_can_be_read_are_an_error_that_names_the_first(
    tmp_path: Path, make: Callable[[Any], object]
) -> None:
    """A dataset of length 0 would end a training before its first step, in silence."""
    (tmp_path / "good.dcm").write_bytes(native(1))
    gone, folder = str(tmp_path / "gone.dcm"), str(tmp_path)
    with pytest.raises(SourceError, match="No such file") as caught:
        make([gone, tmp_path / "gone too.dcm"])
    assert caught.value.__notes__[0] == f"file: {gone}"
    with pytest.raises(SourceError) as caught:
        make(folder)
    assert caught.value.__notes__ == [f"folder: {folder}", "name its files; `voxtier index` takes folders"]
    assert len(FrameDataset([gone, tmp_path / "good.dcm"])) == 1
    with pytest.raises(SourceError) as caught:
        zarr_references([tmp_path / "good.dcm", gone])
    assert caught.value.__notes__ == [f"file: {gone}"]


@pytest.mark.parametrize("as_given", [str, Path])
def test_one_path_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_given: type) -> None:
    """Not as its letters, each of which would be a file that is not there."""
    monkeypatch.chdir(tmp_path)
    Path("ab.dcm").write_bytes(native(3))
    given = as_given("ab.dcm")
    frames = FrameDataset(given)
    assert (len(frames), frames.refused) == (3, [])
    assert [result.path for result in read_tables(given)] == [given]
    assert [result.error for result in read_tables(os.fsencode(given))] == [None]  # type: ignore[arg-type]
    assert len(json.loads(zarr_references(given)["refs"]["frames/.zarray"])["shape"]) == 3


@pytest.mark.parametrize("content", [bytearray, memoryview, BytesIO])
def test_the_bytes_of_one_file_count_as_one(content: Callable[[bytes], Any]) -> None:
    """Not as numbers, which are descriptors of other files."""
    [result] = read_tables(content(native(3)))
    assert result.table is not None
    assert len(result.table) == 3


def test_a_dataset_goes_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(native(2))
    frames = FrameDataset([tmp_path / "a.dcm"])
    sent = pickle.loads(pickle.dumps(frames))
    assert len(sent) == 2
    assert np.array_equal(sent[1], frames[1])
    assert sent.place(np.int64(1)) == (str(tmp_path / "a.dcm"), 1)
    with pytest.raises(TypeError):
        sent.place(0.5)


@pytest.mark.soak  # three processes import torch
def test_workers_of_a_data_loader_read_every_frame(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    paths = [tmp_path / f"{number}.dcm" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(native(2, number))
    frames = FrameDataset(paths)
    loader = DataLoader(frames, batch_size=5, num_workers=2, multiprocessing_context="spawn")  # type: ignore[arg-type]
    found = torch.cat(list(loader))
    assert found.shape == (12, 4, 4)
    assert all(np.array_equal(found[index].numpy(), frames[index]) for index in range(12))

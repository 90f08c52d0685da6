"""Frames of many files as one dataset, in loops and in the workers of a DataLoader."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from frames.indexing.files import native
from voxtier.frames import FrameDataset, read_frame, read_table


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


def test_a_dataset_goes_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(native(2))
    frames = FrameDataset([tmp_path / "a.dcm"])
    sent = pickle.loads(pickle.dumps(frames))
    assert len(sent) == 2
    assert np.array_equal(sent[1], frames[1])


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

"""The frames of many files as one sequence, for `torch.utils.data.DataLoader` and loops."""

from __future__ import annotations

import operator
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

from voxtier.arguments import as_several
from voxtier.errors import FormatError, SourceError
from voxtier.frames.dicom.table import TableResult, read_tables
from voxtier.frames.exchange.decoding import read_frame
from voxtier.frames.sources.address import anchored
from voxtier.frames.sources.opening import Opener, name_source
from voxtier.system.text import format_count


class FrameDataset:
    """Frames of files in the order in which the files were given: a map-style dataset, without torch itself.

    The tables are read when it is made, frames when they are asked for. Pickles, so that it goes to workers:
    they reach ``s3://`` as was configured when it was made (`S3Config`, which holds no keys).

    Parameters
    ----------
    paths : path or iterable of path
        The files, not folders of them. Relative ones are of the working folder of this moment.
    decode : bool
        Give pixels (see `read_frame`) and not the bytes of the file.
    transform : callable or None
        Applied to each frame; such as ``torch.from_numpy``.
    threads : int
        Reads in flight while the tables are read.

    Attributes
    ----------
    refused : list of TableResult
        The files that have no table, each with its error; their frames are left out.

    Raises
    ------
    FormatError, SourceError
        None of the files has a table: the error of the first.

    Examples
    --------
    >>> from pydicom.data import get_testdata_file
    >>> from voxtier.frames import FrameDataset
    >>> frames = FrameDataset([get_testdata_file("CT_small.dcm")])
    >>> len(frames), frames[0].shape
    (1, (128, 128))
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        decode: bool = True,
        transform: Callable[[Any], Any] | None = None,
        threads: int = 16,
    ) -> None:
        wanted = [anchored(os.fspath(path)) for path in as_several(paths)]
        self._open = Opener()
        results: dict[str, TableResult] = {
            os.fspath(result.path): result for result in read_tables(dict.fromkeys(wanted), threads=threads)
        }
        self.decode, self.transform = decode, transform
        self.refused = [results[path] for path in dict.fromkeys(wanted) if results[path].table is None]
        if wanted and len(self.refused) == len(results):
            raise _all_refused(self.refused)
        self._files = [(path, table) for path in wanted if (table := results[path].table) is not None]
        self._past = list(accumulate(len(table) for _, table in self._files))

    def __len__(self) -> int:
        """Return the number of frames of all files."""
        return self._past[-1] if self._past else 0

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of a frame, and the frame's number in it, from 0."""
        file, frame = self._place(index)
        return self._files[file][0], frame

    def __getitem__(self, index: int) -> Any:
        """Return one frame; negative numbers count from the end."""
        file, frame = self._place(index)
        path, table = self._files[file]
        place = (self._open(path), table, frame)
        found = read_frame(*place, decode=True) if self.decode else read_frame(*place)
        return found if self.transform is None else self.transform(found)

    def _place(self, index: int) -> tuple[int, int]:
        index = operator.index(index)
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        file = bisect_right(self._past, wanted)
        return file, wanted - (self._past[file - 1] if file else 0)


def _all_refused(refused: list[TableResult]) -> FormatError | SourceError:
    """Return the first error: a dataset of no frame would end a training in silence."""
    error = refused[0].error
    assert error is not None
    name_source(error, refused[0].path)
    if len(refused) > 1:
        error.add_note(f"the other {format_count(len(refused) - 1, 'file')} cannot be read either")
    return error

"""The Rust core. Written by hand, checked against the binary by `mypy.stubtest`."""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Final, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

__version__: Final[str]
DEBUG_BUILD: Final[bool]
ERROR_KINDS: Final[list[str]]
PARSER_VERSION: Final[int]

Verify = Literal["none", "ends", "all"]

@final
class FrameTable:
    """Everything needed to fetch any frame of one SOP Instance. Frozen, picklable, hashable by value."""

    @property
    def status(self) -> str: ...  # ok | truncated | no_pixels
    @property
    def kind(self) -> str: ...  # native | encapsulated | video | none
    @property
    def method(self) -> str: ...
    @property
    def verified(self) -> str: ...
    @property
    def offsets_in(self) -> str: ...  # file | inflated
    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def number_of_frames(self) -> int: ...  # declared; video keeps N while len(table) == 1
    def __len__(self) -> int: ...  # frames that can be addressed
    @property
    def fragment_count(self) -> int: ...
    @property
    def truncated_from(self) -> int | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def pixel_data_pos(self) -> int | None: ...  # offset of the pixel *tag*
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def samples_per_pixel(self) -> int: ...
    @property
    def bits_allocated(self) -> int: ...
    @property
    def photometric_interpretation(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def study_instance_uid(self) -> str: ...
    @property
    def size(self) -> int: ...  # fingerprint: bytes of the file
    @property
    def mtime_ns(self) -> int | None: ...  # fingerprint: modification time
    @property
    def offsets(self) -> NDArray[np.uint64]: ...  # fragment payload offsets, frame order
    @property
    def lengths(self) -> NDArray[np.uint64]: ...
    @property
    def frame_first(self) -> NDArray[np.uint32]: ...  # len N+1: first fragment of each frame
    def ranges(self, index: int) -> list[tuple[int, int]]: ...  # half-open [start, end)
    def bit_offset(self, index: int) -> int: ...
    @property
    def packed(self) -> bytes: ...  # reference/cache.md section 4, the bytea of the store
    def to_bytes(self) -> bytes: ...  # self-contained record: attributes + packed
    @staticmethod
    def from_bytes(record: bytes) -> FrameTable: ...

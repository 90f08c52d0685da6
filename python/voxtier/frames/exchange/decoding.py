"""Frames as pixels, by pydicom's decoders; and all frames of a file one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from voxtier._core import FrameTable
from voxtier.errors import FormatError, MissingExtraError
from voxtier.frames.dicom.metadata import read_metadata
from voxtier.frames.dicom.table import RangedSource, read_table, state_of
from voxtier.frames.dicom.table import read_frame as read_bytes
from voxtier.frames.sources.address import anchored
from voxtier.frames.sources.opening import read_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

Source: TypeAlias = str | PathLike[str] | bytes | bytearray | memoryview | int | RangedSource

# What a decoder must know of the image (PS3.3 C.7.6.3), by tag; the number of frames is 1 for each.
_ATTRIBUTES = [f"0028{each:04X}" for each in (0x02, 0x04, 0x06, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103)]
_PIXELS = ("7FE00010", "7FE00008", "7FE00009")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


@overload
def read_frame(
    source: Source, table: FrameTable, index: int, *, align: bool = False, decode: Literal[False] = False
) -> bytes: ...
@overload
def read_frame(
    source: Source, table: FrameTable, index: int, *, align: bool = False, decode: Literal[True]
) -> NDArray[Any]: ...
def read_frame(
    source: Source, table: FrameTable, index: int, *, align: bool = False, decode: bool = False
) -> bytes | NDArray[Any]:
    """Read one frame: its bytes with fragments joined and item headers stripped, or its pixels.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        The file that `table` describes.
    table : FrameTable
        Its table.
    index : int
        Frame, counted from 0; negative from the end.
    align : bool
        Move a native frame of pixels that are no whole bytes (Bits Allocated 1) to the first bit: without it
        the first and the last byte may hold bits of the frames beside (PS3.5 8.1.1).
    decode : bool
        Return the pixels as pydicom's decoders give them: YCbCr becomes RGB.

    Returns
    -------
    bytes or ndarray
        The frame as it is encoded in the file; aligned, its ``ceil(frame_bits / 8)`` bytes, the bits behind
        it 0. Decoded, shape ``(rows, columns)`` or ``(rows, columns, samples)``, of the type that its bits
        need.

    Raises
    ------
    SourceError
        ``changed_during_read``: the file is not the one that `table` describes.
    FormatError
        ``truncated_frame``: the frame reaches past the end of a cut file; ``unsupported_image``: it has no
        decoder, as a video.
    IndexError
        The table has no such frame.
    MissingExtraError
        `decode` without pydicom. A compressed frame needs a plug-in of pydicom beside it, whose absence
        pydicom tells (RuntimeError).

    Examples
    --------
    >>> from pydicom.data import get_testdata_file
    >>> from voxtier.frames import read_frame, read_table
    >>> path = get_testdata_file("CT_small.dcm")
    >>> read_frame(path, read_table(path), 0, decode=True).shape
    (128, 128)
    """
    if decode:
        return _decoder_of(source, table)(index)
    return read_bytes(source, table, index, align=align)


@overload
def generate_frames(
    source: Source, table: FrameTable | None = None, *, decode: Literal[False] = False
) -> Iterator[bytes]: ...
@overload
def generate_frames(
    source: Source, table: FrameTable | None = None, *, decode: Literal[True]
) -> Iterator[NDArray[Any]]: ...
def generate_frames(
    source: Source, table: FrameTable | None = None, *, decode: bool = False
) -> Iterator[bytes] | Iterator[NDArray[Any]]:
    """Yield every frame of a file, one in memory at a time, as ``pydicom.encaps.generate_frames`` does.

    pydicom takes the whole of Pixel Data; this takes the file and reads each frame when it is asked for.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        The file.
    table : FrameTable or None
        Its table; None: it is read.
    decode : bool
        See `read_frame`.

    Yields
    ------
    bytes or ndarray
        See `read_frame`; native frames too.

    Raises
    ------
    FormatError, SourceError
        See `read_table` and `read_frame`.
    """
    # The place of the file is taken here, and not with the first frame: the working folder may change.
    source = anchored(fspath(source)) if isinstance(source, str | PathLike) else source
    return _generate(source, table, decode=decode)


def _generate(source: Source, table: FrameTable | None, *, decode: bool) -> Iterator[Any]:
    found = read_table(source) if table is None else table
    read = _decoder_of(source, found) if decode else None
    for index in range(len(found)):
        yield read_bytes(source, found, index, align=True) if read is None else read(index)


def _decoder_of(source: Source, table: FrameTable) -> Callable[[int], NDArray[Any]]:
    """Return a function from the number of a frame to its pixels; the attributes are read here, once."""
    try:
        import pydicom
        from pydicom.encaps import encapsulate
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise MissingExtraError("pydicom", "dicom") from None
    if table.kind == "video":
        raise FormatError(
            "unsupported_image", table.pixel_data_pos, "a video is no sequence of images: read its stream"
        )
    found = read_metadata(source, bulk_data_uri="-")
    tag = next((tag for tag in _PIXELS if tag in found), _PIXELS[0])
    vr = found[tag]["vr"] if tag in found else "OW"
    attributes = {tag: found[tag] for tag in _ATTRIBUTES if tag in found}
    # OW is swapped by words, OB is not (PS3.5 7.3): the last byte of an odd image lies behind the padding.
    is_odd = table.transfer_syntax_uid == _BIG_ENDIAN and vr == "OW" and (table.frame_bits or 0) % 16 != 0
    if is_odd and (table.bits_allocated != 8 or len(table) != 1):
        raise FormatError(
            "unsupported_image",
            table.pixel_data_pos,
            "frames of half words in big endian: read the whole file",
        )
    value_vr = "OB" if is_odd else vr

    def decode(index: int) -> NDArray[Any]:
        frame = read_bytes(source, table, index, align=True)
        if is_odd:
            frame = _swap_bytes(source, table, frame)
        dataset = pydicom.Dataset.from_json(attributes)
        dataset.NumberOfFrames = 1
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(table.transfer_syntax_uid)
        value = encapsulate([frame]) if table.kind == "encapsulated" else frame + b"\0" * (len(frame) % 2)
        dataset.add_new(int(tag, 16), value_vr, value)
        array: NDArray[Any] = pixel_array(dataset)
        return array

    return decode


def _swap_bytes(source: Source, table: FrameTable, frame: bytes) -> bytes:
    """Return the only frame of an image of an odd number of bytes, its words of two bytes swapped."""
    [(_, end)] = table.ranges(0)
    [padding] = read_ranges(source, [(end, end + 1)], state=state_of(table))
    if len(padding) != 1:
        raise FormatError("truncated_frame", end, "the file ends within the last word of the frame")
    words = bytearray(frame + padding)
    words[::2], words[1::2] = words[1::2], words[::2]
    return bytes(words[:-1])

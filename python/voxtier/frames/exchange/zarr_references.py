"""Frames of files as one zarr array that refers to their bytes: nothing is copied.

The form is kerchunk's, as JSON or Parquet, which fsspec's reference file system reads and zarr, xarray and
dask open. Its Parquet form knows the metadata of zarr 2 alone, so both are written with it; zarr-python 3
reads them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voxtier._core import FrameTable
from voxtier.arguments import as_several
from voxtier.errors import ConfigError, FormatError, MissingExtraError
from voxtier.frames.dicom.metadata import read_metadata
from voxtier.frames.dicom.table import read_frames, read_tables, state_of
from voxtier.frames.exchange.code_streams import HEAD_BYTES, read_jpeg_2000, read_jpeg_ls
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.sources.address import is_address
from voxtier.frames.sources.opening import name_source, read_ranges
from voxtier.system.durable import temporary_path, write_file, write_output

_BIG_ENDIAN = {"1.2.840.10008.1.2.2", "1.2.840.113619.5.2"}
_FLOATS = {"7FE00008": 4, "7FE00009": 8}
# Codecs of imagecodecs by transfer syntax, whose pixels of one sample are those of pydicom's decoders.
_CODECS = {
    "1.2.840.10008.1.2.1.98": None,
    "1.2.840.10008.1.2.4.80": "imagecodecs_jpegls",
    "1.2.840.10008.1.2.4.81": "imagecodecs_jpegls",
    "1.2.840.10008.1.2.4.90": "imagecodecs_jpeg2k",
    "1.2.840.10008.1.2.4.91": "imagecodecs_jpeg2k",
}
_HEADERS = {"imagecodecs_jpegls": read_jpeg_ls, "imagecodecs_jpeg2k": read_jpeg_2000}
_RECORDS = 10_000  # references in one file of Parquet
_FRAMES_AT_ONCE, _BYTES_AT_ONCE = 256, 16 << 20


def zarr_references(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, name: str = "frames"
) -> dict[str, Any]:
    """Return references by which zarr reads the frames of files as one array, in the order of the paths.

    Parameters
    ----------
    paths : path or iterable of path
        Files and objects (not folders) of one form of image: a CT series in the order of its slices, a
        slide's level.
    name : str
        The array's name in the group.

    Returns
    -------
    dict
        kerchunk's JSON, version 1. The array has the axes frame, row, column, and sample for colour (sample
        before row where the planes are apart); a chunk is a frame.

    Raises
    ------
    FormatError
        A file is refused or cut off, or its frames are no chunks: several fragments, pixels that are no whole
        bytes, another codec than JPEG-LS and JPEG 2000 of one sample (JPEG, RLE and video are refused). Or
        zarr would read other numbers than a DICOM reader: a compressed frame differs from the attributes in
        its bits or sign, or the bits above Bits Stored are no extension of the number.
    SourceError
        A file cannot be read.
    ConfigError
        There is no frame, files differ in their form, or `name` is no plain name.

    Notes
    -----
    Whoever reads by references is not told when a file has changed: write them again then. Stored numbers are
    not rescaled, and colours stay those of the attribute ``photometric_interpretation``.

    The header of every compressed frame is read, and all pixels where Bits Stored is less than Bits
    Allocated: zarr has no codec that would clear the bits above.

    Examples
    --------
    >>> from pydicom.data import get_testdata_file
    >>> from voxtier.frames import zarr_references
    >>> references = zarr_references([get_testdata_file("CT_small.dcm")])
    >>> sorted(references["refs"])
    ['.zgroup', 'frames/.zarray', 'frames/.zattrs', 'frames/0.0.0']
    """
    if not name or not name.replace("_", "").isalnum() or not name.isascii():
        raise ConfigError(f"{name!r} is no name of an array: use letters, digits and underscores")
    wanted = [os.fspath(path) for path in as_several(paths)]
    results = {os.fspath(result.path): result for result in read_tables(dict.fromkeys(wanted), verify="all")}
    form: dict[str, Any] | None = None
    first, chunks = "", []
    for path in wanted:
        if (error := results[path].error) is not None:
            name_source(error, path)
            raise error
        table = results[path].table
        assert table is not None
        found, bits_stored = _form_of(path, table)
        if form is None:
            form, first = found, path
        elif found != form:
            differing = ", ".join(key for key in form if form[key] != found.get(key))
            raise ConfigError(f"{path} differs from {first} in {differing}: one array has one form of image")
        address = absolute(path)
        url = address if is_address(address) else f"file://{address}"
        places = [_chunk(path, table, number) for number in range(len(table))]
        if found["codec"] is not None:
            _check_headers(path, table, found, places)
        elif found["type"][1] != "f" and 0 < bits_stored < table.bits_allocated:
            _check_bits(path, table, found["type"], bits_stored)
        chunks += [[url, *place] for place in places]
    if form is None or not chunks:
        raise ConfigError("there is no frame: an array needs one")
    frame, axes = form["frame"], form["axes"]
    array = {
        "zarr_format": 2,
        "shape": [len(chunks), *frame],
        "chunks": [1, *frame],
        "dtype": form["type"],
        "compressor": None if form["codec"] is None else {"id": form["codec"]},
        "filters": None,
        "fill_value": 0,
        "order": "C",
    }
    attributes = {"_ARRAY_DIMENSIONS": axes, "photometric_interpretation": form["photometric_interpretation"]}
    tail = ".0" * len(frame)
    references: dict[str, Any] = {".zgroup": json.dumps({"zarr_format": 2})}
    references |= {f"{name}/.zarray": json.dumps(array), f"{name}/.zattrs": json.dumps(attributes)}
    references |= {f"{name}/{number}{tail}": chunk for number, chunk in enumerate(chunks)}
    return {"version": 1, "refs": references}


def write_zarr_references(references: Mapping[str, Any], output: str | os.PathLike[str]) -> None:
    """Write what `zarr_references` returned: as JSON, or as Parquet where the name ends in ``.parq[uet]``.

    Parameters
    ----------
    references : mapping
        See `zarr_references`.
    output : path
        A file for JSON; for Parquet a folder, which must not be there yet.

    Raises
    ------
    ConfigError
        The folder is there.
    MissingExtraError
        pyarrow is not installed.
    """
    target = Path(output)
    if target.suffix not in (".parq", ".parquet"):
        content = json.dumps(references).encode()
        write_output(target, lambda file: file.write(content))
        return
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingExtraError("pyarrow", "arrow") from None
    if target.exists():
        raise ConfigError(f"{target} is there: name a folder that is not")
    temporary = temporary_path(target)
    try:
        _write_parquet(temporary, references)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_parquet(folder: Path, references: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    metadata = {key: json.loads(value) for key, value in references["refs"].items() if isinstance(value, str)}
    chunks = [(key, value) for key, value in references["refs"].items() if not isinstance(value, str)]
    array = folder / chunks[0][0].partition("/")[0]
    array.mkdir(parents=True)
    for start in range(0, len(chunks), _RECORDS):
        part = [value for _, value in chunks[start : start + _RECORDS]]
        columns = {
            "path": pa.array([url for url, _, _ in part], pa.string()),
            "offset": pa.array([offset for _, offset, _ in part], pa.int64()),
            "size": pa.array([size for _, _, size in part], pa.int64()),
            "raw": pa.nulls(len(part), pa.binary()),
        }
        parquet.write_table(pa.table(columns), array / f"refs.{start // _RECORDS}.parq")
    content = json.dumps({"metadata": metadata, "record_size": _RECORDS}).encode()
    write_file(folder / ".zmetadata", lambda file: file.write(content))


def _form_of(path: str, table: FrameTable) -> tuple[dict[str, Any], int]:
    """Return what all files of an array share, and Bits Stored; refuse what is no sequence of chunks."""

    def refuse(why: str) -> FormatError:
        return FormatError("unsupported_image", table.pixel_data_pos, f"{path}: {why}")

    uid = table.transfer_syntax_uid
    codec = None if table.kind == "native" else _CODECS.get(uid, "")
    bits, samples = table.bits_allocated, table.samples_per_pixel
    if table.status != "ok" or table.offsets_in != "file":
        raise refuse(f"its frames are no ranges of the file ({table.status}, {table.offsets_in})")
    if table.kind not in ("native", "encapsulated") or codec == "":
        raise refuse(
            f"zarr has no codec for transfer syntax {uid}, only for uncompressed frames, JPEG-LS and"
            " JPEG 2000"
        )
    if codec is not None and samples != 1:
        raise refuse("compressed colour needs the conversion that a DICOM reader makes")
    if bits not in (8, 16, 32, 64) or (uid in _BIG_ENDIAN and bits == 8):
        raise refuse(f"Bits Allocated {bits} in transfer syntax {uid} is no type of zarr")
    attributes = read_metadata(path, bulk_data_uri="-")

    def number(tag: str) -> int:
        values = attributes.get(tag, {}).get("Value", [0])
        return int(values[0] or 0)

    floats = next((size for tag, size in _FLOATS.items() if tag in attributes), None)
    kind = "f" if floats else "i" if number("00280103") else "u"
    order = "|" if bits == 8 else ">" if uid in _BIG_ENDIAN else "<"
    plane, axes = [table.rows, table.columns], ["row", "column"]
    if samples > 1:
        is_planar = number("00280006") == 1
        plane = [samples, *plane] if is_planar else [*plane, samples]
        axes = ["sample", *axes] if is_planar else [*axes, "sample"]
    form = {
        "transfer syntax": uid,
        "type": f"{order}{kind}{bits // 8}",
        "frame": plane,
        "axes": ["frame", *axes],
        "codec": codec,
        "photometric_interpretation": table.photometric_interpretation,
    }
    return form, number("00280101")


def _chunk(path: str, table: FrameTable, number: int) -> tuple[int, int]:
    """Return offset and length of a frame; refuse one of several fragments, or of another length."""
    ranges = table.ranges(number)
    if len(ranges) != 1:
        raise FormatError(
            "unsupported_image", None, f"{path}: frame {number} (from 0) has {len(ranges)} fragments"
        )
    [(start, end)] = ranges
    length = end - start
    if table.kind == "native" or table.transfer_syntax_uid == "1.2.840.10008.1.2.1.98":
        exact = table.rows * table.columns * table.samples_per_pixel * table.bits_allocated // 8
        if not exact <= length <= exact + exact % 2:
            raise FormatError(
                "unsupported_image", start, f"{path}: frame {number} (from 0) has {length} bytes, not {exact}"
            )
        length = exact
    return start, length


def _check_headers(
    path: str, table: FrameTable, form: Mapping[str, Any], places: list[tuple[int, int]]
) -> None:
    """Refuse a compressed frame that its codec decodes to other numbers than the attributes say."""
    bits, is_signed = table.bits_allocated, form["type"][1] == "i"
    read = _HEADERS[form["codec"]]
    for first in range(0, len(places), _FRAMES_AT_ONCE):
        part = places[first : first + _FRAMES_AT_ONCE]
        ranges = [(start, start + min(length, HEAD_BYTES)) for start, length in part]
        heads = read_ranges(path, ranges, state=state_of(table))
        for number, (head, (start, _)) in enumerate(zip(heads, ranges, strict=True), first):

            def refuse(why: str, number: int = number, start: int = start) -> FormatError:
                place = f"{path}: frame {number} (from 0)"
                return FormatError(
                    "unsupported_image", start, f"{place} {why}: read_frame(..., decode=True) reads it"
                )

            found = read(head)
            if found is None:
                raise refuse(f"has no header of {form['codec'].removeprefix('imagecodecs_')} at its start")
            size = found.columns, found.rows, found.components
            if size != (table.columns, table.rows, 1):
                raise refuse("differs in its size from Columns, Rows or Samples per Pixel")
            # The decoder gives the smallest type that holds the precision.
            if max(8, 1 << (found.precision - 1).bit_length()) != bits:
                raise refuse(
                    f"has samples of {found.precision} bits, too few or many for Bits Allocated {bits}"
                )
            # Where all bits are used, the type of the array alone decides what they mean.
            if found.is_signed != is_signed and found.precision != bits:
                raise refuse(f"is {'' if found.is_signed else 'un'}signed, other than Pixel Representation")


def _check_bits(path: str, table: FrameTable, type_name: str, bits_stored: int) -> None:
    """Refuse pixels whose bits above Bits Stored are neither 0 nor the sign (PS3.5 8.1.1)."""
    type_ = np.dtype(type_name)
    low, high = 0, (1 << bits_stored) - 1
    if type_.kind == "i":
        low, high = -(1 << (bits_stored - 1)), (1 << (bits_stored - 1)) - 1
    length = table.rows * table.columns * table.samples_per_pixel * type_.itemsize
    step = max(_BYTES_AT_ONCE // max(length, 1), 1)
    for first in range(0, len(table), step):
        numbers = range(first, min(first + step, len(table)))
        for number, frame in zip(numbers, read_frames(path, table, numbers), strict=True):
            values = np.frombuffer(frame[:length], type_)
            if values.size and not low <= values.min() <= values.max() <= high:
                raise FormatError(
                    "unsupported_image",
                    table.ranges(number)[0][0],
                    f"{path}: frame {number} (from 0) has bits above Bits Stored {bits_stored} that zarr "
                    "cannot clear: read_frame(..., decode=True) reads it",
                )

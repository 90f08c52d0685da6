"""Slides as people ask for them: a pyramid of levels, and the tile at a column and row (PS3.3 C.8.12).

A level is one instance or several: parts of a concatenation, or one for each optical path. The core reads the
headers and keeps the map from a tile to a frame; the bytes of a frame are read by its frame table. A reader's
memory and index hold what the headers say, so that a second look reads none.
"""

from __future__ import annotations

import operator
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from voxtier._core import FrameTable, SlideHeader, TileMap
from voxtier.arguments import as_several
from voxtier.errors import FormatError, SourceError
from voxtier.frames.dicom.table import Fingerprint, read_frame, read_table
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.sources.address import anchored, is_address
from voxtier.frames.sources.opening import Opener, name_source

if TYPE_CHECKING:
    from voxtier.frames.serving.reader import FrameReader


_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DRAWN = (48, 12)  # characters
_ATTEMPTS = 3


def _spread(start: int, end: int) -> range:
    """Return about four numbers of a stretch, evenly."""
    return range(start, end, max((end - start) // 4, 1))


def _difference(one: SlideHeader, other: SlideHeader) -> str | None:
    """Return what tells that two images are of two slides, or of two pyramids of one; None: nothing does.

    Levels of one slide may be series of their own, and some writers give each image a Frame of Reference: one
    of these two alone tells nothing. What a header lacks tells nothing either.
    """

    def differ(name: str) -> bool:
        pair = getattr(one, name), getattr(other, name)
        return "" not in pair and pair[0] != pair[1]

    if differ("study_instance_uid"):
        return "Study Instance UID"
    if differ("series_instance_uid") and differ("frame_of_reference_uid"):
        return "Series Instance UID and Frame of Reference UID"
    return "Pyramid UID" if differ("pyramid_uid") else None


class Tile(NamedTuple):
    """A tile of a level, and the frame that it is.

    Attributes
    ----------
    column, row : int
        Place in the grid of tiles, from 0.
    left, top : int
        Place of its first pixel in the total pixel matrix, from 0.
    file : str
        The instance that holds it.
    frame : int
        Its frame, from 0.
    """

    column: int
    row: int
    left: int
    top: int
    file: str
    frame: int


class Level:
    """One level of a pyramid: a total pixel matrix cut into tiles.

    Parameters
    ----------
    files : list of str
        Its instances.
    headers : list of SlideHeader
        What their headers say.

    Attributes
    ----------
    size, tile_size, grid : (int, int)
        Columns and rows: of pixels in all, of pixels in a tile, of tiles.
    spacing : (float, float) or None
        Millimetres from row to row and from column to column.
    optical_paths : list of str
        Optical Path Identifiers; a `path` is a place in this list.
    focal_planes : list of float
        Offsets in micrometres (PS3.3 C.8.12.2), or numbers where the header has none; a `plane` is a place
        in this list.
    organization : str
        ``TILED_FULL``, ``TILED_SPARSE`` or empty.
    """

    def __init__(self, files: list[str], headers: list[SlideHeader]) -> None:
        try:
            self._map = TileMap(headers)
        except FormatError as error:
            raise FormatError(error.kind, None, f"{', '.join(files)}: {error.detail}") from None
        self.files = tuple(files)
        self.size, self.tile_size, self.grid = headers[0].total, headers[0].tile, self._map.grid
        self.spacing = headers[0].spacing
        self.optical_paths, self.focal_planes = self._map.paths, self._map.planes
        self.organization = headers[0].organization

    def find(self, column: int, row: int, *, plane: int = 0, path: int = 0) -> Tile | None:
        """Return the tile at a column and row of the grid.

        Parameters
        ----------
        column, row : int
            Place in the grid, from 0.
        plane, path : int
            Focal plane and optical path, by their places in the lists.

        Returns
        -------
        Tile or None
            None where the slide has no such tile, as TILED_SPARSE may.

        Raises
        ------
        IndexError
            The level has no such place.
        """
        column, row, plane, path = map(operator.index, (column, row, plane, path))
        (columns, rows), planes, paths = self.grid, len(self.focal_planes), len(self.optical_paths)
        if not (0 <= column < columns and 0 <= row < rows and 0 <= plane < planes and 0 <= path < paths):
            raise IndexError(
                f"tile ({column}, {row}), plane {plane}, path {path}: the level has {columns} by {rows} "
                f"tiles, {planes} planes and {paths} paths, counted from 0"
            )
        found = self._map.find(column, row, plane, path)
        if found is None:
            return None
        width, height = self.tile_size
        return Tile(column, row, column * width, row * height, self.files[found[0]], found[1])

    def region(
        self, left: int, top: int, width: int, height: int, *, plane: int = 0, path: int = 0
    ) -> list[Tile]:
        """Return the tiles that a rectangle of pixels touches, row by row, without those that are not there.

        Parameters
        ----------
        left, top : int
            First column and row of pixels, from 0.
        width, height : int
            Pixels; what lies outside of the level is left out.
        plane, path : int
            See `find`.

        Returns
        -------
        list of Tile
            To be decoded and cut by the caller: voxtier has no codec.
        """
        (across, down), (columns, rows) = self.tile_size, self.grid
        if width <= 0 or height <= 0 or left >= self.size[0] or top >= self.size[1]:
            return []
        wanted = (
            self.find(column, row, plane=plane, path=path)
            for row in range(max(top // down, 0), min((top + height - 1) // down + 1, rows))
            for column in range(max(left // across, 0), min((left + width - 1) // across + 1, columns))
        )
        return [tile for tile in wanted if tile is not None]

    @property
    def shape(self) -> tuple[object, ...]:
        """What tells whether a tile has the same place in another level."""
        return self.size, self.tile_size, self.optical_paths, self.focal_planes

    def agrees_with(self, file: str, state: Fingerprint) -> bool:
        """Return whether a file may be in a state, by what was known of it when the level was made."""
        return self._map.agrees_with(self.files.index(file), state)

    def draw(self) -> str:
        """Return the grid as text: ``#`` where tiles are there, ``+`` where some are missing, ``.`` all.

        Of a large grid a character stands for many tiles, of which some are looked at.
        """
        columns, rows = self.grid
        across, down = min(columns, _DRAWN[0]), min(rows, _DRAWN[1])

        def mark(x: int, y: int) -> str:
            some = [
                self.find(column, row) is not None
                for column in _spread(x * columns // across, (x + 1) * columns // across)
                for row in _spread(y * rows // down, (y + 1) * rows // down)
            ]
            return "#" if all(some) else "+" if any(some) else "."

        return "\n".join("".join(mark(x, y) for x in range(across)) for y in range(down))

    def __repr__(self) -> str:
        size, grid = ("x".join(map(str, pair)) for pair in (self.size, self.grid))
        return f"Level({size} pixels, {grid} tiles, {self.organization or 'one frame'})"


class Slide:
    """The pyramid of a slide, the largest level first.

    All its levels are of one study, of one series or Frame of Reference, and of one Pyramid UID. Without a
    reader, ``s3://`` is reached as was configured when the slide was opened.

    Parameters
    ----------
    paths : path or iterable of path
        Its files, or a folder of them. Relative ones are of the working folder of this moment.
    reader : FrameReader, optional
        Reads headers and frames, with its memory and index; by default files are read, and their tables kept
        here.

    Attributes
    ----------
    levels : tuple of Level
        Of the whole slide images with VOLUME as the third value of Image Type; of all such images where none
        says so, and of all with a total pixel matrix where none is of that SOP Class.
    others : dict of str to str
        The other files, such as label and overview, with their Image Types.

    Raises
    ------
    FormatError
        A file is refused, or what it says of its tiles is contradictory; there is no level; the files are of
        several slides.
    SourceError
        A file cannot be read.

    Examples
    --------
    >>> from voxtier.frames import Slide  # doctest: +SKIP
    >>> slide = Slide("slide-folder")  # doctest: +SKIP
    >>> slide.tile(0, 17, 4)  # doctest: +SKIP
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        reader: FrameReader | None = None,
    ) -> None:
        files = list(iter_files([anchored(os.fspath(path)) for path in as_several(paths)], extension=None))
        self._reader, self._open = reader, Opener()
        self._tables: dict[str, FrameTable] = {}
        headers = self._headers(files)
        tiled = {file: header for file, header in headers.items() if 0 not in (*header.total, *header.tile)}
        # Segmentations and maps of parameters of a slide may have its matrix, and VOLUME too.
        images = {file for file in tiled if headers[file].sop_class_uid == _WHOLE_SLIDE} or set(tiled)
        volumes = {file for file in images if headers[file].image_type[2:3] == ["VOLUME"]}
        groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        chosen = sorted(volumes or images)
        for file in chosen:
            if (difference := _difference(headers[chosen[0]], headers[file])) is not None:
                raise FormatError(
                    "misplaced_element",
                    None,
                    f"{chosen[0]} and {file} are of different slides ({difference}): give the files of one",
                )
            groups[headers[file].total].append(file)
        if not groups:
            raise FormatError(
                "unsupported_image",
                None,
                f"{', '.join(files[:3]) or 'no file'}: no image has a total pixel matrix",
            )
        self._first = headers[chosen[0]]
        levels = [Level(group, [headers[file] for file in group]) for group in groups.values()]
        self.levels = tuple(sorted(levels, key=lambda level: level.size, reverse=True))
        own = {file for level in self.levels for file in level.files}
        self.others = {
            file: "\\".join(header.image_type) for file, header in headers.items() if file not in own
        }

    def tile(self, level: int, column: int, row: int, *, plane: int = 0, path: int = 0) -> bytes | None:
        """Return the bytes of a tile as the file holds them.

        Parameters
        ----------
        level : int
            0 is the largest.
        column, row : int
            Place in the grid of tiles, from 0.
        plane, path : int
            See `Level.find`.

        Returns
        -------
        bytes or None
            None where the slide has no such tile.

        Raises
        ------
        IndexError
            There is no such level or place.
        FormatError, SourceError
            See `read_frame`. Where a file was replaced since the slide was opened, its header is read anew;
            ``changed_during_read`` where its level has another size, or other planes or paths then.
        """
        level = operator.index(level)
        if not 0 <= level < len(self.levels):
            raise IndexError(f"level {level} of {len(self.levels)}, counted from 0")
        for left in reversed(range(_ATTEMPTS)):
            tile = self.levels[level].find(column, row, plane=plane, path=path)
            if tile is None:
                return None
            found = self._read(tile, partial(self.levels[level].agrees_with, tile.file))
            if found is not None:
                return found
            if not left:
                raise SourceError("changed_during_read", None, f"{tile.file}: it changes again and again")
            self._renew(level)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(self, tile: Tile, agrees: Callable[[Fingerprint], bool]) -> bytes | None:
        """Read a frame; None where its file has another state than it had when its header was read."""
        if self._reader is not None:
            return self._reader.frame_in_state(tile.file, tile.frame, agrees)
        table = self._tables.get(tile.file)
        if table is None:
            table = self._tables[tile.file] = read_table(self._open(tile.file))
        try:
            if agrees((table.size, table.mtime_ns, table.ctime_ns, table.inode, table.etag)):
                found = read_frame(self._open(tile.file), table, tile.frame)
                # Objects are read in the state of the table; of files, size and time alone are compared.
                if is_address(tile.file) or table.describes(tile.file):
                    return found
        except SourceError as error:
            if error.kind != "changed_during_read":
                raise
        self._tables.pop(tile.file, None)
        return None

    def _headers(self, files: Iterable[str]) -> dict[str, SlideHeader]:
        names = list(files)
        if self._reader is not None:
            return dict(zip(names, self._reader.slide_headers(names), strict=True))
        headers = {}
        for file in names:
            try:
                headers[file] = SlideHeader.read(self._open(file))
            except (FormatError, SourceError) as error:
                name_source(error, file)
                raise
        return headers

    def _renew(self, level: int) -> None:
        """Make a level anew: the state of one of its files has changed, and maybe the places of its tiles."""
        old = self.levels[level]
        headers = list(self._headers(old.files).values())
        new = Level(list(old.files), headers)
        is_other = any(_difference(self._first, header) is not None for header in headers)
        if is_other or new.shape != old.shape:
            detail = f"{', '.join(old.files)}: replaced since the slide was opened: open the slide again"
            raise SourceError("changed_during_read", None, detail)
        self.levels = (*self.levels[:level], new, *self.levels[level + 1 :])

    def describe(self) -> str:
        """Return the pyramid as text, a line a level."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for number, level in enumerate(self.levels):
            (width, height), (columns, rows) = level.size, level.grid
            spacing = "" if level.spacing is None else f", {level.spacing[1] * 1000:.3g} um a pixel"
            yield (
                f"level {number}  {width:>9,} x {height:<9,} {columns:>5,} x {rows:<5,} tiles of "
                f"{level.tile_size[0]} x {level.tile_size[1]}{spacing}  {level.organization}"
            )
        for file, kind in self.others.items():
            yield f"other    {Path(file).name}  {kind}"

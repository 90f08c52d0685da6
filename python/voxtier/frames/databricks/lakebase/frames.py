"""Frames of the Lakebase interface: insert and retrieve byte ranges, count loads, rank files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from voxtier._core import FrameTable
from voxtier.errors import ConfigError
from voxtier.frames.databricks.frame_dicts import frame_range, frame_ranges, readable_frames
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import (
    FRAMES_TABLE,
    Backend,
    Groups,
    add_source,
    check_allowed_groups,
    check_path,
    keys_of,
)
from voxtier.frames.databricks.table_names import local_path
from voxtier.frames.memory.ranking import preload_priority_list
from voxtier.frames.store.row import stored
from voxtier.postgres.database import Connection

__all__ = ["FrameMethods", "claim_parameters"]

Range = dict[str, Any]
_POSITIONS = ("start_pos", "end_pos", "pixel_data_pos")
_LARGEST = 2**63 - 1


class FrameMethods(Backend):
    """Byte ranges of frames.

    For files that the index has read, ranges come from their verified tables; for others from the rows that
    were inserted or imported, unchanged. Frames are counted from 0; positions are bytes, ``end_pos`` is
    inclusive.
    """

    def retrieve_frame_range(
        self,
        filename: str,
        frame: int,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> Range | None:
        """Look up one frame.

        Parameters
        ----------
        filename : str
            Path of the file.
        frame : int
            Number of the frame.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict or None
            ``start_pos``, ``end_pos`` and ``pixel_data_pos``; None for an unknown frame.
        """
        tables, claims = self._look_up([filename], uc_table_name, table, user_groups)
        if tables:
            (read,) = tables.values()
            return frame_range(read, frame) if 0 <= frame < readable_frames(read) else None
        for claim in claims.get(local_path(filename), []):
            if claim["frame_number"] == frame:
                return {name: claim[name] for name in _POSITIONS}
        return None

    def retrieve_max_frame_range(
        self,
        filename: str,
        param_frames: int | Iterable[int],
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> Range | None:
        """Look up the last known frame up to a number.

        Parameters
        ----------
        filename : str
            Path of the file.
        param_frames : int or iterable of int
            Numbers of frames; the largest is the limit.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict or None
            ``max_frame_idx`` and ``max_start_pos``; None where no frame is known.
        """
        last = param_frames if isinstance(param_frames, int) else max(param_frames, default=-1)
        ranges = self.retrieve_all_frame_ranges(filename, uc_table_name, table, user_groups) or []
        below = [each for each in ranges if each["frame_number"] <= last]
        if not below:
            return None
        return {
            "max_frame_idx": max(each["frame_number"] for each in below),
            "max_start_pos": max(each["start_pos"] for each in below),
        }

    def retrieve_all_frame_ranges(
        self,
        filename: str,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> list[Range] | None:
        """Look up all frames of a file.

        Parameters
        ----------
        filename : str
            Path of the file.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        list of dict or None
            In order, each with ``frame_number``, ``start_pos``, ``end_pos``, ``pixel_data_pos``, and
            ``transfer_syntax_uid`` where it is known; None for an unknown file.
        """
        batch = self.retrieve_frame_ranges_batch([filename], uc_table_name, table, user_groups)
        return batch.get(filename)

    def retrieve_frame_ranges_batch(
        self,
        filenames: Sequence[str],
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> dict[str, list[Range]]:
        """Look up all frames of many files.

        Parameters
        ----------
        filenames : sequence of str
            Paths of the files.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict
            By file name, `retrieve_all_frame_ranges`; without unknown files.
        """
        tables, claims = self._look_up(filenames, uc_table_name, table, user_groups)
        ranges = claims | {path: _ranges_with_syntax(read) for path, read in tables.items()}
        return {name: ranges[local_path(name)] for name in filenames if ranges.get(local_path(name))}

    def insert_frame_range(
        self,
        filename: str,
        frame: int,
        start_pos: int,
        end_pos: int,
        pixel_data_pos: int,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        allowed_groups: Groups = None,
        user_groups: Groups = None,
    ) -> None:
        """Insert one frame, as `insert_frame_ranges` does.

        Parameters
        ----------
        filename : str
            Path of the file.
        frame : int
            Number of the frame.
        start_pos, end_pos : int
            First and last byte.
        pixel_data_pos : int
            Offset of the Pixel Data element's tag.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        allowed_groups, user_groups : sequence of str or None
            See `insert_frame_ranges`.

        Raises
        ------
        ConfigError
            See `insert_frame_ranges`.
        """
        values = (start_pos, end_pos, pixel_data_pos)
        row = {"frame_number": frame, **dict(zip(_POSITIONS, values, strict=True))}
        self.insert_frame_ranges(
            filename, [row], uc_table_name, None, table, allowed_groups, user_groups=user_groups
        )

    def insert_frame_ranges(
        self,
        filename: str,
        frame_ranges: Sequence[Mapping[str, Any]],
        uc_table_name: str | None = None,
        transfer_syntax_uid: str | None = None,
        table: str = FRAMES_TABLE,
        allowed_groups: Groups = None,
        *,
        user_groups: Groups = None,
    ) -> None:
        """Insert frames of a file without reading it; later ranges of a frame replace earlier ones.

        Parameters
        ----------
        filename : str
            Path of the file.
        frame_ranges : sequence of mapping
            Each with ``frame_number``, ``start_pos``, ``end_pos`` and ``pixel_data_pos``; an empty one does
            nothing.
        uc_table_name : str or None
            The source; None: that of the constructor.
        transfer_syntax_uid : str or None
            Of the file, where it is known.
        table : str
            ``dicom_frames``; another name is a source of its own.
        allowed_groups : sequence of str or None
            Groups that may see the rows; None: as the access rules say, or everyone.
        user_groups : sequence of str or None
            Groups of the writer; None: `allowed_groups`. Where row security binds the role, the writer must
            be in one of `allowed_groups`.

        Raises
        ------
        ConfigError
            A position or frame is out of range (the message names the row), `allowed_groups` is empty, or the
            path cannot be indexed.

        Notes
        -----
        The ranges are not compared with the file. Index the file instead: its verified table takes
        precedence.
        """
        if not frame_ranges:
            return
        source, path = self.source(uc_table_name, table), check_path(filename)
        rows = [_check_row(row, number) for number, row in enumerate(frame_ranges)]
        latest = {row[0]: row for row in rows}
        frames, starts, ends, pixels = (list(column) for column in zip(*latest.values(), strict=True))
        (key,) = keys_of(source, [path])
        may_see = check_allowed_groups(allowed_groups)
        claim = claim_parameters(source, [path], groups=may_see, syntaxes=[transfer_syntax_uid])

        def work(connection: Connection) -> None:
            add_source(connection, source)
            connection.execute(statements.CLAIM.encode(), claim)
            connection.execute(
                statements.CLAIM_FRAMES.encode(),
                {"key": key, "frames": frames, "starts": starts, "ends": ends, "pixels": pixels},
            )

        # By default the writer of rows for some groups is a member of them.
        self.run(work, may_see if user_groups is None else user_groups)

    def touch_frame_ranges(
        self,
        filename: str,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> int:
        """Count one load of a file.

        Parameters
        ----------
        filename : str
            Path of the file.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        int
            1, or 0 for an unknown file.
        """
        return self.touch_frame_ranges_batch([filename], uc_table_name, table, user_groups)

    def touch_frame_ranges_batch(
        self,
        filenames: Sequence[str],
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> int:
        """Count one load of each file.

        Parameters
        ----------
        filenames : sequence of str
            Paths of the files.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        int
            Number of known files.
        """
        keys = keys_of(self.source(uc_table_name, table), filenames)
        return len(self.rows(statements.TOUCH, {"keys": keys}, user_groups))

    def get_preload_priority_list(
        self,
        uc_table_name: str | None = None,
        limit: int = 10_000,
        *,
        user_groups: Groups = None,
    ) -> list[dict[str, Any]]:
        """Rank the files that the index has read by their priority for memory.

        Parameters
        ----------
        uc_table_name : str or None
            The source; None: that of the constructor.
        limit : int
            Files to return at most.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        list of dict
            Best first, each with
            ``filename``, ``frame_count``, ``transfer_syntax_uid``, ``last_used_at``, ``inserted_at``,
            ``access_count``, ``priority_score`` and ``frames``, see `frame_dicts.frame_ranges`.
        """
        return preload_priority_list(
            self.store,
            self.source(uc_table_name),
            max(limit, 0),
            ask=lambda query, parameters: self.rows(query, parameters, user_groups),
        )

    def _look_up(
        self, filenames: Sequence[str], uc_table_name: str | None, table: str, groups: Groups
    ) -> tuple[dict[str, FrameTable], dict[str, list[Range]]]:
        source = self.source(uc_table_name, table)
        paths = {local_path(name) for name in filenames}
        keys = keys_of(source, paths)

        def work(connection: Connection) -> tuple[dict[str, FrameTable], list[Any]]:
            with connection.cursor(binary=True) as cursor:
                read = cursor.execute(statements.TABLES.encode(), {"keys": keys}).fetchall()
                decoded = ((path, stored(row)) for path, *row in read if path in paths)
                tables = {path: table for path, table in decoded if isinstance(table, FrameTable)}
                if len(tables) == len(paths):
                    return tables, []
                return tables, cursor.execute(statements.CLAIMED_FRAMES.encode(), {"keys": keys}).fetchall()

        tables, claimed = self.run(work, groups)
        claims: dict[str, list[Range]] = {}
        for path, syntax, frame, *positions in claimed:
            if path in paths and path not in tables:
                row = {"frame_number": frame, **dict(zip(_POSITIONS, positions, strict=True))}
                claims.setdefault(path, []).append(row | ({"transfer_syntax_uid": syntax} if syntax else {}))
        return tables, claims


def claim_parameters(
    source: str,
    paths: list[str],
    *,
    groups: list[str] | None = None,
    syntaxes: Sequence[str | None] = (),
    sops: Sequence[str | None] = (),
    series: Sequence[str | None] = (),
    studies: Sequence[str | None] = (),
    frames: Sequence[int | None] = (),
) -> dict[str, Any]:
    """Return the parameters of `statements.CLAIM`.

    Parameters
    ----------
    source : str
        Source of the files.
    paths : list of str
        Their paths.
    groups : list of str or None
        Groups that may see the rows.
    syntaxes, sops, series, studies : sequence of str or None
        UIDs of transfer syntax, SOP Instance, series and study for each path; empty where unknown.
    frames : sequence of int or None
        Number of frames for each path; empty where unknown.

    Returns
    -------
    dict
        Values by the names of the statement's parameters.
    """
    unknown = [None] * len(paths)
    return {
        "source": source,
        "keys": keys_of(source, paths),
        "paths": paths,
        "groups": groups,
        "syntaxes": list(syntaxes) or unknown,
        "sops": list(sops) or unknown,
        "series": list(series) or unknown,
        "studies": list(studies) or unknown,
        "frames": list(frames) or unknown,
    }


def _check_row(row: Mapping[str, Any], number: int) -> tuple[int, int, int, int | None]:
    values = [row.get(name) for name in ("frame_number", "start_pos", "end_pos", "pixel_data_pos")]
    frame, start, end, pixels = values
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in values[:3])
    if not numbers or not (pixels is None or isinstance(pixels, int)):
        raise ConfigError(
            f"frame_ranges[{number}]: frame_number, start_pos and end_pos must be whole numbers"
        )
    assert isinstance(frame, int)
    assert isinstance(start, int)
    assert isinstance(end, int)
    if not (0 <= frame < 2**31 and 0 <= start <= end + 1 <= _LARGEST and 0 <= (pixels or 0) <= _LARGEST):
        raise ConfigError(
            f"frame_ranges[{number}]: frame {frame}, [{start}, {end}]: use frames from 0 on, "
            "and start_pos <= end_pos + 1"
        )
    return frame, start, end, pixels


def _ranges_with_syntax(table: FrameTable) -> list[Range]:
    syntax = {"transfer_syntax_uid": table.transfer_syntax_uid} if table.transfer_syntax_uid else {}
    return [{**each, **syntax} for each in frame_ranges(table)]

"""Frames of the Lakebase interface: retrieve byte ranges, count loads, rank files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from voxtier._core import FrameTable, decode_rows
from voxtier.arguments import whole_number
from voxtier.frames.databricks.frame_dicts import frame_range, frame_ranges, readable_frames
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import (
    FRAMES_TABLE,
    Groups,
    check_limit,
    check_paths,
    check_texts,
    keys_of,
)
from voxtier.frames.databricks.lakebase.claims import POSITIONS, ClaimMethods
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.memory.ranking import ranked_files
from voxtier.frames.store.adapters import fetch
from voxtier.frames.store.groups import check_groups
from voxtier.postgres.connection import Connection

Range = dict[str, Any]

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class FrameMethods(ClaimMethods):
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
        frame = whole_number("frame", frame)
        tables, claims = self._look_up([filename], uc_table_name, table, user_groups)
        if tables:
            (read,) = tables.values()
            return frame_range(read, frame) if 0 <= frame < readable_frames(read) else None
        for claim in claims.get(absolute(filename), []):
            if claim["frame_number"] == frame:
                return {name: claim[name] for name in POSITIONS}
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
        numbers = param_frames if isinstance(param_frames, Iterable) else [param_frames]
        last = max((whole_number("frame", number) for number in numbers), default=-1)
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
        names = check_texts(filenames, "filenames")
        tables, claims = self._look_up(names, uc_table_name, table, user_groups)
        ranges = claims | {path: _ranges_with_syntax(read) for path, read in tables.items()}
        return {name: found for name in names if (found := ranges.get(absolute(name)))}

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
        keys = keys_of(self.source(uc_table_name, table), check_paths(filenames))
        return len(self.rows(statements.TOUCH, {"keys": keys}, user_groups))

    def get_preload_priority_list(
        self,
        uc_table_name: str | None = None,
        limit: int = 10_000,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> list[dict[str, Any]]:
        """Rank the files that the index has read by their priority for memory.

        Parameters
        ----------
        uc_table_name : str or None
            The source; None: that of the constructor.
        limit : int
            Files to return at most.
        table : str
            ``dicom_frames``; another name is a source of its own.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        list of dict
            Best first, each with
            ``filename``, ``frame_count``, ``transfer_syntax_uid``, ``last_used_at``, ``inserted_at``,
            ``access_count``, ``priority_score`` and ``frames``, see `frame_dicts.frame_ranges`.

        Notes
        -----
        No value is None, so that Spark can infer the types of the rows: ``last_used_at`` of a file that was
        never used is 1970-01-01, which scores like never, and an unknown transfer syntax is empty. Files of
        which no frame is a range of bytes, such as deflated ones, are left out.
        """
        groups = None if user_groups is None else check_groups(user_groups)
        ranked = ranked_files(
            self.store,
            self.source(uc_table_name, table),
            check_limit(limit),
            has_ranges=True,
            query=lambda query, parameters: self.rows(query, parameters, groups),
        )
        tables, _ = self._look_up([file.path for file in ranked], uc_table_name, table, groups)
        return [
            {
                "filename": file.path,
                "frame_count": file.frame_count,
                "transfer_syntax_uid": file.transfer_syntax_uid or "",
                "last_used_at": file.last_used_at or _NEVER,
                "inserted_at": file.inserted_at,
                "access_count": file.access_count,
                "priority_score": file.score,
                "frames": frames,
            }
            for file in ranked
            if file.path in tables and (frames := frame_ranges(tables[file.path]))
        ]

    def _look_up(
        self, filenames: Sequence[str], uc_table_name: str | None, table: str, groups: Groups
    ) -> tuple[dict[str, FrameTable], dict[str, list[Range]]]:
        source = self.source(uc_table_name, table)
        paths = set(check_paths(filenames))
        keys = keys_of(source, paths)

        def work(connection: Connection) -> tuple[dict[str, FrameTable], list[Any]]:
            rows = b"".join(row for (row,) in fetch(connection, statements.TABLES, {"keys": keys}))
            decoded = ((path, found) for path, found, _ in decode_rows(rows) if path in paths)
            tables = {path: found for path, found in decoded if isinstance(found, FrameTable)}
            if len(tables) == len(paths):
                return tables, []
            return tables, fetch(connection, statements.CLAIMED_FRAMES, {"keys": keys})

        tables, claimed = self.run(work, groups)
        claims: dict[str, list[Range]] = {}
        for path, syntax, frame, *positions in claimed:
            if path in paths and path not in tables:
                row = {"frame_number": frame, **dict(zip(POSITIONS, positions, strict=True))}
                claims.setdefault(path, []).append(row | ({"transfer_syntax_uid": syntax} if syntax else {}))
        return tables, claims


def _ranges_with_syntax(table: FrameTable) -> list[Range]:
    syntax = {"transfer_syntax_uid": table.transfer_syntax_uid} if table.transfer_syntax_uid else {}
    return [{**each, **syntax} for each in frame_ranges(table)]

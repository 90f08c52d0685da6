"""Frames of the Lakebase interface: byte ranges of one, all or many files, inserted, touched, ranked."""

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
    allowed,
    checked_path,
    keys_of,
)
from voxtier.frames.databricks.table_names import local_path
from voxtier.frames.memory.ranking import preload_priority_list
from voxtier.frames.store.row import stored
from voxtier.postgres.database import Connection

Range = dict[str, Any]
_POSITIONS = ("start_pos", "end_pos", "pixel_data_pos")
_LARGEST = 2**63 - 1


class FrameMethods(Backend):
    """What is known of frames.

    A file that the index has read is answered from its verified table. What was inserted by hand or imported
    without its file answers for the rest, as it was given. ``user_groups`` asks for a user who is in these
    groups; None asks as the database role. Frames count from 0, ``end_pos`` is inclusive.
    """

    def retrieve_frame_range(
        self,
        filename: str,
        frame: int,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> Range | None:
        """Return ``start_pos``, ``end_pos`` and ``pixel_data_pos`` of one frame, or None."""
        tables, claims = self._known([filename], uc_table_name, table, user_groups)
        if tables:
            (found,) = tables.values()
            return frame_range(found, frame) if 0 <= frame < readable_frames(found) else None
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
        """Return the last known frame up to the last of `param_frames`, or None.

        Returns
        -------
        dict or None
            ``max_frame_idx`` and ``max_start_pos``.
        """
        wanted = [param_frames] if isinstance(param_frames, int) else list(param_frames)
        known = self.retrieve_all_frame_ranges(filename, uc_table_name, table, user_groups) or []
        below = [found for found in known if found["frame_number"] <= max(wanted, default=-1)]
        if not below:
            return None
        return {
            "max_frame_idx": max(found["frame_number"] for found in below),
            "max_start_pos": max(found["start_pos"] for found in below),
        }

    def retrieve_all_frame_ranges(
        self,
        filename: str,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> list[Range] | None:
        """Return every known frame with its ``frame_number``, in order; None for an unknown file.

        Each holds ``transfer_syntax_uid`` where that is known.
        """
        found = self.retrieve_frame_ranges_batch([filename], uc_table_name, table, user_groups)
        return found.get(filename)

    def retrieve_frame_ranges_batch(
        self,
        filenames: Sequence[str],
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> dict[str, list[Range]]:
        """Return `retrieve_all_frame_ranges` of many files; unknown ones are left out."""
        tables, claims = self._known(filenames, uc_table_name, table, user_groups)
        known = claims | {path: _with_syntax(found) for path, found in tables.items()}
        return {name: known[local_path(name)] for name in filenames if known.get(local_path(name))}

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
        """Insert one frame, see `insert_frame_ranges`."""
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
        """Insert what somebody says of frames; later words about a frame replace earlier ones.

        Parameters
        ----------
        filename : str
            The file.
        frame_ranges : sequence of mapping
            Each with ``frame_number``, ``start_pos``, ``end_pos`` (inclusive) and ``pixel_data_pos``; empty
            does nothing.
        uc_table_name, table : str
            Where.
        transfer_syntax_uid : str or None
            Of the file, where known.
        allowed_groups : sequence of str or None
            Who may see the rows; None: as the access rules say, without any everyone.
        user_groups : sequence of str or None
            Groups of the writer, who must be in one of `allowed_groups` where row security binds the role.

        Raises
        ------
        ConfigError
            A position or frame is no possible number; the message names the row.

        Notes
        -----
        Nothing is held against the file: index it instead, and the verified table counts.
        """
        if not frame_ranges:
            return
        source, path = self.source(uc_table_name, table), checked_path(filename)
        checked = [_checked(row, number) for number, row in enumerate(frame_ranges)]
        latest = {values[0]: values for values in checked}
        frames, starts, ends, pixels = (list(column) for column in zip(*latest.values(), strict=True))
        (key,) = keys_of(source, [path])
        may_see = allowed(allowed_groups)
        claim = claim_parameters(source, [path], groups=may_see, syntaxes=[transfer_syntax_uid])

        def work(connection: Connection) -> None:
            add_source(connection, source)
            connection.execute(statements.CLAIM.encode(), claim)
            connection.execute(
                statements.CLAIM_FRAMES.encode(),
                {"key": key, "frames": frames, "starts": starts, "ends": ends, "pixels": pixels},
            )

        # The writer of rows for some groups writes as one who is in them, unless it says otherwise.
        self.run(work, may_see if user_groups is None else user_groups)

    def touch_frame_ranges(
        self,
        filename: str,
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> int:
        """Count one load of a file; return the rows written: one for a known file, else none."""
        return self.touch_frame_ranges_batch([filename], uc_table_name, table, user_groups)

    def touch_frame_ranges_batch(
        self,
        filenames: Sequence[str],
        uc_table_name: str | None = None,
        table: str = FRAMES_TABLE,
        user_groups: Groups = None,
    ) -> int:
        """Count one load of each file; return the rows written."""
        keys = keys_of(self.source(uc_table_name, table), filenames)
        return len(self.rows(statements.TOUCH, {"keys": keys}, user_groups))

    def get_preload_priority_list(
        self,
        uc_table_name: str | None = None,
        limit: int = 10_000,
        *,
        user_groups: Groups = None,
    ) -> list[dict[str, Any]]:
        """Return the files that deserve memory most, best first, among those that the index has read.

        Returns
        -------
        list of dict
            ``filename``, ``frame_count``, ``transfer_syntax_uid``, ``last_used_at``, ``inserted_at``,
            ``access_count``, ``priority_score`` and ``frames``, see `frame_dicts.frame_ranges`.
        """
        return preload_priority_list(
            self.store,
            self.source(uc_table_name),
            max(limit, 0),
            ask=lambda query, parameters: self.rows(query, parameters, user_groups),
        )

    def _known(
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
    """Return the parameters of `statements.CLAIM`; what is not given is not known."""
    nothing = [None] * len(paths)
    return {
        "source": source, "keys": keys_of(source, paths), "paths": paths, "groups": groups,
        "syntaxes": list(syntaxes) or nothing, "sops": list(sops) or nothing,
        "series": list(series) or nothing, "studies": list(studies) or nothing,
        "frames": list(frames) or nothing,
    }  # fmt: skip


def _checked(row: Mapping[str, Any], number: int) -> tuple[int, int, int, int | None]:
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
            f"frame_ranges[{number}]: frame {frame}, [{start}, {end}]: frames count from 0, "
            "and start_pos <= end_pos + 1"
        )
    return frame, start, end, pixels


def _with_syntax(table: FrameTable) -> list[Range]:
    syntax = {"transfer_syntax_uid": table.transfer_syntax_uid} if table.transfer_syntax_uid else {}
    return [{**found, **syntax} for found in frame_ranges(table)]

"""Rows of files that were not read: frames that are inserted, and the parameters of such rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import (
    FRAMES_TABLE,
    Backend,
    Groups,
    add_source,
    check_allowed_groups,
    check_path,
    check_text,
    keys_of,
    uc_table_of,
)
from voxtier.postgres.connection import Connection

POSITIONS = ("start_pos", "end_pos", "pixel_data_pos")
_LARGEST = 2**63 - 1


class ClaimMethods(Backend):
    """Insert byte ranges of frames without reading their files."""

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
        row = {"frame_number": frame, **dict(zip(POSITIONS, values, strict=True))}
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
            ``dicom_frames``; another name is a source of its own, with access rules of its own.
        allowed_groups : sequence of str or None
            Groups that may see the rows, beside those of earlier calls and of the access rules, also where
            the file is indexed; None or empty: as before, for new rows as the access rules say, or everyone.
        user_groups : sequence of str or None
            Groups of the writer; None: `allowed_groups`. Where row security binds the role, the writer must
            be in one of `allowed_groups`.

        Raises
        ------
        ConfigError
            A position or frame is out of range (the message names the row), a name of a group is none, the
            path cannot be indexed; or the rows would be open to everyone, as they name no groups and `table`
            has no access rules, though `uc_table_name` has.

        Notes
        -----
        The ranges are not compared with the file. Index the file instead: its verified table takes
        precedence.
        """
        if not isinstance(frame_ranges, Sequence):
            raise ConfigError(f"frame_ranges={frame_ranges!r}: give a list of ranges")
        if not frame_ranges:
            return
        path, rows = check_path(filename), check_ranges(frame_ranges)
        latest = {row[0]: row for row in rows}
        frames, starts, ends, pixels = (list(column) for column in zip(*latest.values(), strict=True))
        may_see = check_allowed_groups(allowed_groups)
        syntax = check_text(transfer_syntax_uid, "transfer_syntax_uid", optional=True)
        source = self.source(uc_table_name, table, is_written=True)
        (key,) = keys_of(source, [path])
        claim = claim_parameters(source, [path], groups=may_see, syntaxes=[syntax])

        def work(connection: Connection) -> None:
            add_source(connection, source, sets_groups=may_see is not None)
            add_claims(connection, claim)
            connection.execute(
                statements.CLAIM_FRAMES.encode(),
                {"key": key, "frames": frames, "starts": starts, "ends": ends, "pixels": pixels},
            )

        # By default the writer of rows for some groups is a member of them.
        self.run(work, may_see if user_groups is None else user_groups)


def add_claims(connection: Connection, claim: dict[str, Any]) -> int:
    """Write claims, and their groups to the rows of the same files; return how many claims there are.

    Raises
    ------
    ConfigError
        The claims name no groups, and no rules are set for them, though there are for their table.
    """
    source, named = claim["source"], claim["groups"] is not None
    table, other = uc_table_of(source), source.partition(":")[2]
    if other and not named:
        rules = {"source": source, "table": table}
        [(would_be_open,)] = connection.execute(statements.IS_LEFT_OPEN.encode(), rules).fetchall()
        if would_be_open:
            raise ConfigError(
                f"{table} has access rules, which are not for rows under table={other!r}: everyone would see "
                f"these; give allowed_groups, or rules by upsert_access_rule(..., table={other!r})"
            )
    written = connection.execute(statements.CLAIM.encode(), claim).rowcount
    if named:
        connection.execute(statements.CLAIM_FILES.encode(), claim)
    return written


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


def check_ranges(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int, int | None]]:
    """Return frame, start_pos, end_pos and pixel_data_pos of good rows, or raise ConfigError."""
    return [_check_row(row, f"frame_ranges[{number}]") for number, row in enumerate(rows)]


def _check_row(row: Mapping[str, Any], what: str) -> tuple[int, int, int, int | None]:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{what} is {type(row).__name__}: give a mapping")
    frame = whole_number(f"{what}: frame_number", row.get("frame_number"), 0, 2**31 - 1)
    start = whole_number(f"{what}: start_pos", row.get("start_pos"), 0, _LARGEST)
    end = whole_number(f"{what}: end_pos", row.get("end_pos"), -1, _LARGEST - 1)
    if start > end + 1:
        raise ConfigError(f"{what}: start_pos {start} and end_pos {end}: use start_pos <= end_pos + 1")
    if (pixels := row.get("pixel_data_pos")) is not None:
        pixels = whole_number(f"{what}: pixel_data_pos", pixels, 0, _LARGEST)
    return frame, start, end, pixels

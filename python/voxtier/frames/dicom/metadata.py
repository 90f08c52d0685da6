"""Reads the attributes of a file as DICOM JSON (PS3.18 F), without an index."""

from __future__ import annotations

import json
from typing import Any

from voxtier import _core
from voxtier.errors import FormatError, SourceError
from voxtier.frames.sources.opening import name_source, open_source


def read_metadata_json(
    source: Any,
    *,
    bulk_data_uri: str | None = None,
    inline_limit: int = 1024,
    with_transfer_syntax: bool = False,
) -> bytes:
    """Read the attributes of one SOP Instance as text of the DICOM JSON Model.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        See `read_table`.
    bulk_data_uri : str, optional
        See `read_metadata`.
    inline_limit : int
        See `read_metadata`.
    with_transfer_syntax : bool
        See `read_metadata`.

    Returns
    -------
    bytes
        JSON with the file's own digits of decimal strings.

    Raises
    ------
    FormatError, SourceError
        See `read_metadata`.
    """
    opened = open_source(source)
    try:
        return _core.read_metadata_json(
            opened,
            bulk_data_uri=bulk_data_uri,
            inline_limit=inline_limit,
            with_transfer_syntax=with_transfer_syntax,
        )
    except (FormatError, SourceError) as error:
        name_source(error, source)
        raise


def read_metadata(
    source: Any,
    *,
    bulk_data_uri: str | None = None,
    inline_limit: int = 1024,
    with_transfer_syntax: bool = False,
) -> dict[str, Any]:
    r"""Read the attributes of one SOP Instance as a dict of the DICOM JSON Model.

    Parameters
    ----------
    source : path, address, file, bytes, int or source
        See `read_table`.
    bulk_data_uri : str, optional
        Beginning of the URIs that stand for pixels and for values longer than `inline_limit`. Without it
        every value is inline and pixels are left out.
    inline_limit : int
        Most bytes of a value that stays inline, of those VRs that may have a URI (PS3.18 F.2.2).
    with_transfer_syntax : bool
        Whether (0008,3002) Available Transfer Syntax UID names the transfer syntax of the file.

    Returns
    -------
    dict
        From a tag such as ``"00100010"`` to ``{"vr": ..., "Value": [...]}``, ascending. `read_metadata_json`
        returns the same as text, with the file's own digits of decimal strings.

    Raises
    ------
    FormatError
        The file is refused: `kind` and `offset` say why and where.
    SourceError
        The file could not be read, or changed while it was read.

    Notes
    -----
    The DICOM JSON Model is PS3.18 F.

    Examples
    --------
    >>> from voxtier.frames import read_metadata
    >>> read_metadata(b"\x08\x00\x60\x00CS\x02\x00CT")
    {'00080060': {'vr': 'CS', 'Value': ['CT']}}
    """
    text = read_metadata_json(
        source,
        bulk_data_uri=bulk_data_uri,
        inline_limit=inline_limit,
        with_transfer_syntax=with_transfer_syntax,
    )
    metadata: dict[str, Any] = json.loads(text)
    return metadata

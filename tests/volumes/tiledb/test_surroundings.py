"""What fails around a store, memory, rights, descriptors, is no damage of it, and not its absence either."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tiledb
from click.testing import CliRunner

from support.accounts import as_nobody
from voxtier.cli.commands import cli
from voxtier.errors import BackendError, FormatError, SourceError
from voxtier.volumes import Volume
from voxtier.volumes.tiledb.format import messages
from voxtier.volumes.tiledb.session import Session, read_kind


@pytest.mark.parametrize(
    "code",
    [
        *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT),
    ],
)
def test_what_the_system_refuses_is_not_damage(code: int) -> None:
    said = f"[TileDB::IO] Error: Cannot read from 'file:///a/b'; {os.strerror(code)}"
    with pytest.raises(SourceError) as refused, messages.translate_errors("read a"):
        raise tiledb.TileDBError(said)
    assert refused.value.errno == code
    assert str(refused.value).startswith("io_error: read a: ")


def test_the_words_of_a_store_that_does_not_answer_are_its_own() -> None:
    said = (
        "[TileDB::S3] Error: Error while listing with prefix 's3://b/x/' : curlCode: 28, Timeout "
        f"was reached; Details: {os.strerror(errno.ETIMEDOUT)} after 10803 milliseconds"
    )
    refused = pytest.raises(BackendError, match=r"store refused or did not answer.*curlCode: 28")
    with refused, messages.translate_errors("look at s3://b/x"):
        raise tiledb.TileDBError(said)


@pytest.mark.parametrize(
    "said", ["ArrayDirectory: std::bad_alloc", "MemoryError: Unable to allocate 256. KiB"]
)
def test_memory_that_is_missing_is_damage_only_where_there_is_enough(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        with messages.translate_errors("read a"):
            raise tiledb.TileDBError(f"[TileDB::Array] Error: {said}")

    monkeypatch.setattr(messages, "available_memory", lambda: 1 << 20)
    with pytest.raises(SourceError, match="not enough memory"):
        refuse()
    monkeypatch.setattr(messages, "available_memory", lambda: 1 << 40)
    with pytest.raises(FormatError, match="store_damaged"):
        refuse()


@pytest.mark.parametrize("closed", [".", "volume"])
def test_what_may_not_be_entered_is_not_absent(tmp_path: Path, closed: str) -> None:
    for folder in (*tmp_path.parents, tmp_path):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    uri = tmp_path / "closed" / "volume"
    uri.parent.mkdir(mode=0o755)
    Volume.from_numpy(str(uri), np.zeros((4, 4, 4), np.int16))
    session = Session.of(None)
    commands = [
        *(["tensors", name, str(uri / "cache")] for name in ("ls", "verify")),
        ["volumes", "info", str(uri)],
    ]
    for command in commands:
        CliRunner().invoke(cli, command)  # what they import lies where nobody may look
    (uri.parent / closed).chmod(0)
    try:
        with as_nobody():
            with pytest.raises(SourceError, match="Permission denied"):
                read_kind(str(uri), session)
            *caches, info = [CliRunner().invoke(cli, command) for command in commands]
            assert isinstance(info.exception, SourceError)
            assert all(done.exit_code == 2 and "Permission denied" in done.output for done in caches)
    finally:
        (uri.parent / closed).chmod(0o755)
    assert read_kind(str(uri), session) == "array"
    assert read_kind(str(tmp_path / "none"), session) is None
    assert read_kind(str(uri / "none"), session) is None
    assert read_kind(str(tmp_path / ("b" * 300)), session) is None

"""Every kind of damage that a torch file meets, as functions of its bytes."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

Damage = Callable[[bytes], bytes]


def flip(place: int) -> Damage:
    def damage(content: bytes) -> bytes:
        at = place % len(content)
        return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]

    return damage


def payload_of(content: bytes, record: str) -> tuple[int, int]:
    """Offset and length of a record's payload, by Python's own zipfile."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("/" + record))
    at = entry.header_offset
    name, extra = (int.from_bytes(content[at + k : at + k + 2], "little") for k in (26, 28))
    return at + 30 + name + extra, entry.file_size


def in_payload(record: str, share: float = 0.5) -> Damage:
    def damage(content: bytes) -> bytes:
        at, length = payload_of(content, record)
        return flip(at + int(length * share))(content)

    return damage


def zero_hole(content: bytes) -> bytes:
    at, _ = payload_of(content, "data/0")
    at += 16384
    return content[:at] + bytes(8192) + content[at + 8192 :]


def in_directory(field: int) -> Damage:
    """Damage the central directory's entry of data/0 at that offset within the entry."""

    def damage(content: bytes) -> bytes:
        name = content.rindex(b"/data/0")
        entry = content.rindex(b"PK\x01\x02", 0, name)
        return flip(entry + field)(content)

    return damage


def in_local_header(field: int) -> Damage:
    def damage(content: bytes) -> bytes:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
        return flip(entry.header_offset + field)(content)

    return damage


def random_bytes(content: bytes) -> bytes:
    return random.Random(7).randbytes(len(content))


# case -> (damage, allowed states, record). Reference: the damage matrix.
MATRIX: dict[str, tuple[Damage, set[str], str | None]] = {
    "bit flip in tensor": (in_payload("data/0"), {"bad_crc"}, "data/0"),
    "8 KiB zero hole": (zero_hole, {"bad_crc"}, "data/0"),
    "flip in data.pkl": (in_payload("data.pkl"), {"bad_crc"}, "data.pkl"),
    "cut to 50 %": (lambda c: c[: len(c) // 2], {"truncated"}, None),
    "last byte lost": (lambda c: c[:-1], {"truncated"}, None),
    "last 100 bytes lost": (lambda c: c[:-100], {"truncated"}, None),
    "last 4 KiB zero": (lambda c: c[:-4096] + bytes(4096), {"truncated", "bad_structure"}, None),
    "end signature flip": (flip(-22), {"truncated", "bad_structure"}, None),
    "zip64 end flip": (flip(-98), {"bad_structure"}, "end"),
    "zip64 locator flip": (flip(-34), {"bad_structure"}, "end"),
    "0 bytes": (lambda _: b"", {"truncated"}, None),
    "all zero": (lambda c: bytes(len(c)), {"bad_structure"}, None),
    "text": (lambda c: b"this is a note, not a tensor\n" * 40, {"bad_structure"}, None),
    "random bytes": (random_bytes, {"bad_structure"}, None),
    "byte 0 flip": (flip(0), {"bad_structure"}, "header"),
    "local signature": (in_local_header(1), {"bad_structure"}, "header"),
    "local name": (in_local_header(31), {"bad_structure"}, "header"),
    "directory crc": (in_directory(16), {"bad_crc"}, "data/0"),
    "directory signature": (in_directory(0), {"bad_structure"}, "directory"),
    "directory size": (in_directory(24), {"bad_structure"}, "directory"),
    "local crc field": (in_local_header(14), {"ok"}, None),
    "16 bytes appended": (lambda c: c + bytes(range(16)), {"ok_trailing"}, None),
}


def damage_file(path: Path, case: str) -> None:
    path.write_bytes(MATRIX[case][0](path.read_bytes()))

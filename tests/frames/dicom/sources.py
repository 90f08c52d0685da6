"""The four ways to hand a file to the parser, and one that counts what the parser reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtier.frames import RangedSource

KINDS = ("path", "bytes", "fd", "ranged")


@dataclass
class Store:
    """An object store of one object that remembers every request."""

    content: bytes
    requests: list[tuple[int, int]] = field(default_factory=list)

    def read(self, offset: int, length: int) -> bytes:
        """Return what lies at ``offset``, as ``pread`` does."""
        self.requests.append((offset, length))
        return self.content[offset : offset + length]

    @property
    def source(self) -> RangedSource:
        return RangedSource(self.read, len(self.content))

    @property
    def bytes_asked(self) -> int:
        return sum(length for _, length in self.requests)


@contextmanager
def opened(kind: str, content: bytes, folder: Path) -> Iterator[Any]:
    """``content`` as a source of the given kind."""
    if kind == "bytes":
        yield content
    elif kind == "ranged":
        yield Store(content).source
    else:
        path = folder / "image.dcm"
        path.write_bytes(content)
        if kind == "path":
            yield path
        else:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

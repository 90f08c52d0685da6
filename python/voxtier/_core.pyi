"""The Rust core. Written by hand, checked against the binary by `mypy.stubtest`."""

from typing import Final

__version__: Final[str]
DEBUG_BUILD: Final[bool]
ERROR_KINDS: Final[list[str]]

"""What a case is: the bytes of a file, and everything that is true of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from support.builders import (
    EXPLICIT_LE,
    JPEG,
    PIXEL_DATA,
    Element,
    Fragments,
    Layout,
    Syntax,
    dicom,
    element,
    image,
    jpeg,
    pattern,
)

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, repr=False)
class Case:
    """A file and its whole expected outcome: a table, or the kind of the refusal."""

    name: str
    content: bytes
    error: str | None = None
    status: str = "ok"
    kind: str = "none"
    method: str = "none"
    number_of_frames: int = 1
    ranges: tuple[Ranges, ...] = ()  # of every frame, one half-open range a fragment
    pixels: tuple[bytes, ...] = ()  # bytes of every frame that lies wholly in the file
    bit_offsets: tuple[int, ...] = ()
    truncated_from: int | None = None
    offsets_in: str = "file"
    transfer_syntax_uid: str | None = EXPLICIT_LE.uid
    pixel_tag: int | None = None
    notes: frozenset[str] = frozenset()
    found_when_read: bool = False  # a refusal that `verify="ends"` comes to when a frame is read
    table_serves: bool = False  # a BOT or EOT is right, so `verify="none"` may rely on it

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class SparseCase(Case):
    """A file of many gigabytes, nearly all of it a hole: ``parts`` are its only written bytes."""

    size: int = 0
    parts: tuple[tuple[int, bytes], ...] = field(default=())

    def write(self, file: IO[bytes]) -> None:
        """Write the file; the hole takes no room on disk."""
        for offset, part in self.parts:
            file.seek(offset)
            file.write(part)
        file.truncate(self.size)


def native(
    name: str,
    *,
    frames: int = 1,
    frame_bytes: int = 16,
    declared: int | str | bytes | Element | None = -1,
    value: bytes | None = None,
    keyword: str = "PixelData",
    vr: str = "OW",
    syntax: Syntax = EXPLICIT_LE,
    attributes: dict[str, Any] | None = None,
    before: Sequence[Element] = (),
    after: Sequence[Element] = (),
    file: dict[str, Any] | None = None,
    **outcome: Any,
) -> Case:
    """A native image of ``frames`` frames, each ``frame_bytes`` long.

    ``declared`` is NumberOfFrames as written; ``before`` and ``after`` are elements around the pixels;
    ``file`` goes to `builders.dicom`.
    """
    stored = b"".join(pattern(frame_bytes, seed) for seed in range(frames)) if value is None else value
    elements = [
        *image(**{"frames": frames if declared == -1 else declared, **(attributes or {})}),
        *before,
        element(keyword, stored, vr),
        *after,
    ]
    layout = dicom(elements, syntax, **(file or {}))
    end_of_file = layout.value + len(stored) if syntax.deflated else len(layout.content)
    spans = [
        (layout.value + index * frame_bytes, layout.value + (index + 1) * frame_bytes)
        for index in range(frames)
    ]
    expected: dict[str, Any] = {
        "kind": "native",
        "method": "native",
        "number_of_frames": frames,
        "ranges": tuple((span,) for span in spans),
        "pixels": tuple(
            stored[start - layout.value : end - layout.value] for start, end in spans if end <= end_of_file
        ),
        "offsets_in": "inflated" if syntax.deflated else "file",
        "transfer_syntax_uid": syntax.uid,
        "pixel_tag": layout.pixel_tag,
    }
    return make(name, layout, **(expected | outcome))


def encapsulated(
    name: str,
    payloads: Sequence[bytes],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    declared: int | str | bytes | Element | None = -1,
    bot: Sequence[int] | bytes = (),
    eot: tuple[Sequence[int], Sequence[int] | None] | None = None,
    syntax: Syntax = JPEG,
    vr: str = "OB",
    delimiter: bytes | None = None,
    item_lengths: dict[int, int] | None = None,
    value_length: int | None = None,
    before: Sequence[Element] = (),
    after: Sequence[Element] = (),
    file: dict[str, Any] | None = None,
    **outcome: Any,
) -> Case:
    """An encapsulated image; ``groups`` lists the fragments of each frame, by default one a frame.

    ``eot`` is the Extended Offset Table and its lengths (None leaves the lengths out).
    """
    frames = [[index] for index in range(len(payloads))] if groups is None else groups
    tables: list[Element] = []
    if eot is not None:
        tables.append(element("ExtendedOffsetTable", tuple(eot[0])))
        if eot[1] is not None:
            tables.append(element("ExtendedOffsetTableLengths", tuple(eot[1])))
    value = Fragments(payloads, bot, delimiter, item_lengths or {})
    elements = [
        *image(frames=len(frames) if declared == -1 else declared),
        *before,
        *tables,
        Element(PIXEL_DATA, vr, value, value_length),
        *after,
    ]
    layout = dicom(elements, syntax, **(file or {}))
    size = len(layout.content)
    expected: dict[str, Any] = {
        "kind": "encapsulated",
        "method": "one_fragment_per_frame",
        "number_of_frames": len(frames),
        "ranges": tuple(tuple(layout.fragments[index] for index in group) for group in frames),
        "pixels": tuple(
            b"".join(payloads[index] for index in group)
            for group in frames
            if all(layout.fragments[index][1] <= size for index in group)
        ),
        "transfer_syntax_uid": syntax.uid,
        "pixel_tag": layout.pixel_tag,
    }
    return make(name, layout, **(expected | outcome))


def make(name: str, layout: Layout | bytes, *, notes: Sequence[str] = (), **outcome: Any) -> Case:
    """A case with any outcome."""
    content = layout if isinstance(layout, bytes) else layout.content
    if outcome.get("error"):
        outcome = {name: outcome[name] for name in ("error", "found_when_read") if name in outcome}
    outcome.setdefault("bit_offsets", (0,) * len(outcome.get("ranges", ())))
    return Case(name, content, notes=frozenset(notes), **outcome)


def starts(first: bytes) -> Callable[[int, int], bytes]:
    """Payloads of a length and a seed that begin with ``first``."""
    return lambda length, seed: first + pattern(length - len(first), seed)


# The encapsulated base: one fragment a frame, Item tags at 0, 28 and 62.
A = [jpeg(20, 0), jpeg(26, 1), jpeg(30, 2)]
# The same number of frames in six fragments, Item tags at 0, 18 | 36 | 70, 86, 106.
M_GROUPS = [[0, 1], [2], [3, 4, 5]]


def split(whole: Sequence[bytes], *sizes: Sequence[int]) -> list[bytes]:
    """Cut each frame into fragments of the given sizes."""
    pieces = []
    for frame, lengths in zip(whole, sizes, strict=True):
        position = 0
        for length in lengths:
            pieces.append(frame[position : position + length])
            position += length
    return pieces


M = split(A, [10, 10], [26], [8, 12, 10])

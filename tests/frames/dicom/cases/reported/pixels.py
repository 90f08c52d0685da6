"""What a frame is: kinds A5, A6 and A8, sampling, compressed values, and bits that begin a byte."""

from __future__ import annotations

from typing import Any

from frames.dicom.cases.encapsulated import raw
from frames.dicom.cases.model import Case, encapsulated, make, native
from frames.dicom.cases.native import one_bit as packed
from frames.dicom.cases.reported.counts import CODECS, MARKED, frames_of, rle
from support.builders import (
    ENCAPSULATED_RAW,
    JPEG,
    RLE,
    Fragments,
    dicom,
    element,
    image,
    jpeg,
    pattern,
)

# A5: subsampled chroma is told by equality.


def ybr(photometric: str, frames: int, length: int, **outcome: Any) -> Case:
    """A value of ``length`` bytes of 4 x 4 pixels of three samples."""
    sampled = 32 if photometric.endswith("422") else 24
    full = outcome.pop("full", False)
    return native(
        f"r_{photometric.lower()}_{frames}f_{length}",
        frames=frames,
        frame_bytes=48 if full else sampled,
        value=pattern(length, 3),
        attributes={"samples": 3, "photometric": photometric, "planar": 0},
        **({"notes": ["ybr422_declared_but_full"]} if full else {}),
        **outcome,
    )


SAMPLING = [
    *(
        ybr(photometric, frames, size * frames)
        for photometric, size in (("YBR_PARTIAL_422", 32), ("YBR_FULL_420", 24), ("YBR_PARTIAL_420", 24))
        for frames in (1, 2, 5)
    ),
    *(ybr("YBR_FULL_422", frames, 48 * frames, full=True) for frames in (1, 5)),
    *(ybr("YBR_PARTIAL_420", frames, 48 * frames, full=True) for frames in (1, 2)),
    *(
        ybr(photometric, frames, size * frames + delta, error="ambiguous_frame_size")
        for photometric, size in (("YBR_FULL_422", 32), ("YBR_FULL_422", 48), ("YBR_PARTIAL_420", 24))
        for frames in (1, 2)
        for delta in (-2, 2)
    ),
    ybr("YBR_FULL_422", 1, 52, error="ambiguous_frame_size"),
]

# A6: compressed means compressed, and a frame is an image.


def in_defined_length(codec: str, length: int) -> Case:
    syntax, payload = CODECS[codec]
    return native(
        f"r_raw_{codec}_in_a_defined_length",
        value=payload(length, 0),
        vr="OB",
        syntax=syntax,
        error="not_a_frame",
    )


def in_two(codec: str, frames: int, **outcome: Any) -> Case:
    """One frame fewer than declared: the last one lies in two fragments."""
    syntax, payload = CODECS[codec]
    whole = [payload(80, seed) for seed in range(frames - 1)]
    payloads = [*whole[:-1], whole[-1][:40], whole[-1][40:]]
    return encapsulated(f"r_one_{codec}_as_two_of_{frames}_frames", payloads, syntax=syntax, **outcome)


def with_empty(codec: str, at: int) -> Case:
    payloads = frames_of(codec, 3)
    payloads[at] = b""
    return encapsulated(f"r_empty_frame_{at}_{codec}", payloads, syntax=CODECS[codec][0], error="not_a_frame")


COMPRESSED = [
    *(in_defined_length(codec, 500) for codec in CODECS),
    native("r_exact_size_in_a_compressed_syntax", frames=2, syntax=RLE, notes=["native_in_encapsulated_ts"]),
    *(in_two(codec, frames, error="not_a_frame") for codec in (*MARKED, "rle") for frames in (2, 3)),
    *(with_empty(codec, at) for codec in ("jpeg", "j2k", "rle", "raw") for at in (0, 1, 2)),
    encapsulated("r_single_empty_frame", [b""], error="not_a_frame"),
    encapsulated("r_single_frame_of_empty_fragments", [b"", b""], groups=[[0, 1]], error="not_a_frame"),
    encapsulated("r_empty_frame_of_a_bot", [b"", jpeg(20)], bot=(0, 8), error="not_a_frame"),
    encapsulated("r_raw_of_any_beginning", [rle(70, 0), raw(70, 1)], syntax=ENCAPSULATED_RAW),
    encapsulated(
        "r_rle_in_three_fragments",
        [rle(90, 0)[:66], rle(90, 0)[66:80], rle(90, 0)[80:]],
        groups=[[0, 1, 2]],
        syntax=RLE,
        method="single_frame",
    ),
    make(
        "r_pixels_before_the_number_of_frames",
        dicom(
            [
                element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7.4"),
                element("PixelData", Fragments(frames_of("jpeg", 3)), "OB"),
                *image(frames=3),
            ],
            JPEG,
        ),
        error="missing_image_attributes",
    ),
]

# A8: one-bit frames that each begin with a byte of their own.


def one_bit(rows: int, columns: int, frames: int, length: int, **outcome: Any) -> Case:
    return native(
        f"r_one_bit_{rows}x{columns}_{frames}f_{length}",
        frames=frames,
        frame_bytes=0,
        value=pattern(length, 5),
        attributes={"rows": rows, "columns": columns, "bits": 1},
        **outcome,
    )


ALIGNED = [
    # 50 bits and a pad byte, or two frames of 4 bytes: the standard knows the first only.
    packed("r_one_bit_5x5_2f_8", 5, 5, 2),
    one_bit(5, 5, 3, 12, error="ambiguous_frame_size"),
    one_bit(5, 5, 5, 20, error="ambiguous_frame_size"),
    one_bit(1, 5, 3, 4, error="ambiguous_frame_size"),
    one_bit(3, 3, 4, 8, error="ambiguous_frame_size"),
]

CASES: list[Case] = [*SAMPLING, *COMPRESSED, *ALIGNED]

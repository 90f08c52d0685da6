"""`voxtier frames read`: one frame to stdout or a file, written as a whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.running import FINDINGS, OK, PARTIAL, PROGRAM, USAGE, Cli, Done, finish, start
from frames.dicom.cases.native import one_bit
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, element, image, jpeg, pattern
from support.small_disk import without_bytecode


def test_stdout_gets_the_bytes_of_the_frame_alone(voxtier: Cli, folder: Path) -> None:
    assert voxtier("frames", "read", folder / "ok.dcm", 2) == Done(OK, pattern(32)[16:], "")
    assert voxtier("frames", "read", folder / "deep/jpeg.dcm", 1).stdout == jpeg(20, 0)


def test_frame_of_1_bit_pixels_names_its_bit_and_is_aligned_when_asked(voxtier: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(one_bit("a", 1, 5, 4).content)
    stored, aligned = voxtier("frames", "read", path, 2), voxtier("frame", path, 2, "--align")
    assert (stored.code, len(stored.stdout)) == (OK, 2)
    assert "5 bits, from bit 5" in stored.err
    assert "--align" in stored.err
    bits = int.from_bytes(stored.stdout, "little") >> 5 & 31
    assert aligned == Done(OK, bytes([bits]), "")


def test_output_file_is_replaced_by_the_frame(voxtier: Cli, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "frame.raw"
    target.write_bytes(b"what was there before, and longer than the frame")
    done = voxtier("frames", "read", folder / "ok.dcm", 1, "-o", target)
    assert (done.code, done.stdout) == (OK, b"")
    assert "16 bytes" in done.err
    assert target.read_bytes() == pattern(16)
    assert list(tmp_path.iterdir()) == [folder, target] or set(tmp_path.iterdir()) == {folder, target}


@pytest.mark.parametrize("number", ["0", "-1", "3", "99999999999999999999", "one"])
def test_a_frame_number_outside_the_file_exits_2(voxtier: Cli, folder: Path, number: str) -> None:
    done = voxtier("frames", "read", "--", folder / "ok.dcm", number)
    assert (done.code, done.stdout) == (USAGE, b"")


def test_a_frame_number_outside_the_file_names_the_number_of_frames(voxtier: Cli, folder: Path) -> None:
    assert "holds 2 frames" in voxtier("frames", "read", folder / "ok.dcm", 3).err
    assert "holds no frame" in voxtier("frames", "read", folder / "no_pixels.dcm", 1).err


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [
        ("truncated.dcm", 3, "truncated_frame"),
        ("error.dcm", 1, "not_dicom"),
        ("ambiguous.dcm", 1, "fewer_fragments_than_frames"),
        ("missing.dcm", 1, "io_error"),
    ],
)
def test_a_refused_frame_exits_1_or_2_and_leaves_no_file(
    voxtier: Cli, folder: Path, tmp_path: Path, name: str, number: int, kind: str
) -> None:
    done = voxtier("frames", "read", folder / name, number, "-o", tmp_path / "out")
    assert done.code == (USAGE if name == "missing.dcm" else FINDINGS)
    assert kind in done.err
    assert name in done.err
    assert not (tmp_path / "out").exists()


def test_a_frame_behind_the_cut_is_refused_by_the_number_that_was_asked_for(
    voxtier: Cli, folder: Path
) -> None:
    done = voxtier("frames", "read", folder / "truncated.dcm", 3)
    assert done.err.endswith("frame 3: the file is cut off, whole frames: 1 of 3\n")
    assert "from 0" not in done.err


def test_a_refusal_that_concerns_a_frame_counts_from_1(voxtier: Cli, tmp_path: Path) -> None:
    fragments = Fragments([jpeg(20, 0), b"", jpeg(26, 1)])
    (tmp_path / "gap.dcm").write_bytes(
        dicom([*image(frames=3), Element(PIXEL_DATA, "OB", fragments)], JPEG).content
    )
    done = voxtier("frames", "read", tmp_path / "gap.dcm", 2)
    assert done.code == FINDINGS
    assert "frame 2 has no bytes" in done.err
    assert "frame 1 (from 0) has no bytes" in voxtier("frames", "table", tmp_path / "gap.dcm").out


def test_an_output_path_that_is_the_source_is_refused(voxtier: Cli, folder: Path) -> None:
    before = (folder / "ok.dcm").read_bytes()
    (folder / "link").symlink_to("ok.dcm")
    for target in ("ok.dcm", "link"):
        assert voxtier("frames", "read", folder / "ok.dcm", 1, "-o", folder / target).code == USAGE
    assert (folder / "ok.dcm").read_bytes() == before


def test_a_link_is_written_through(voxtier: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert voxtier("frames", "read", folder / "ok.dcm", 1, "-o", tmp_path / "link").code == OK
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == pattern(16)


def test_an_output_path_that_is_a_device_stays_a_device(voxtier: Cli, folder: Path) -> None:
    assert voxtier("frames", "read", folder / "ok.dcm", 1, "-o", "/dev/null").code == OK
    assert Path("/dev/null").is_char_device()


def test_a_write_that_fails_midway_leaves_the_old_file(folder: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the write fails in the middle."""
    (tmp_path / "big.dcm").write_bytes(
        dicom([*image(rows=256, columns=256), element("PixelData", pattern(65536))]).content
    )
    target = tmp_path / "out.raw"
    target.write_bytes(b"before")
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); {PROGRAM}"
    arguments = ["frames", "read", str(tmp_path / "big.dcm"), "1", "-o", str(target)]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        env=without_bytecode(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == PARTIAL
    assert done.stderr.strip() == f"voxtier: {target}: File too large"
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"big.dcm", "out.raw", folder.name}


def test_an_output_folder_that_is_missing_exits_2(voxtier: Cli, folder: Path, tmp_path: Path) -> None:
    done = voxtier("frames", "read", folder / "ok.dcm", 1, "-o", tmp_path / "no" / "folder")
    assert done.code == USAGE
    assert "No such file" in done.err


def test_a_full_disk_behind_stdout_exits_3(folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = finish(start("frames", "read", folder / "ok.dcm", 1, stdout=full))
    assert done.code == PARTIAL
    assert "No space left" in done.err

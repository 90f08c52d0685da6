"""Independent readers as judges of a damaged file: pydicom, GDCM, dicomsdl and dcmtk, as far as installed.

Each answers with the frames that it finds, None where it refuses. Readers crash and hang on damaged files, so
each lives in a process of its own, with a limit of time and memory, which is started again when it is lost.
They only see files in memory or in /dev/shm.

Habits that make one of them no witness: all but pydicom take a Number of Frames that is no number for 1;
pydicom takes the last of two elements and follows an Extended Offset Table; GDCM gives stored fragments, one
a frame or none; dicomsdl trusts Number of Frames.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from support.builders import PIXEL_DATA
from support.oracles import pydicom_truth

Frames = tuple[bytes, ...]
Judge = Callable[[bytes], Frames | None]

SECONDS = 5.0
START_SECONDS = 60.0
MEMORY = 4 << 30  # address space of a judge
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def by_pydicom(content: bytes) -> Frames | None:
    truth = pydicom_truth(content)
    # A damaged VR makes pydicom hand out numbers.
    is_bytes = truth is not None and all(isinstance(frame, bytes) for frame in truth.frames)
    return tuple(truth.frames) if truth is not None and is_bytes else None


def by_gdcm(content: bytes) -> Frames | None:
    """Native values cut by GDCM's own dimensions, fragments as they are stored."""
    import gdcm

    with _as_file(content) as path:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        if not reader.Read():
            return None
        image = reader.GetImage()
        element = image.GetDataElement()
        count = image.GetDimension(2) if image.GetNumberOfDimensions() == 3 else 1
        dataset, number = reader.GetFile().GetDataSet(), gdcm.Tag(0x0028, 0x0008)
        if dataset.FindDataElement(number) and not _is_number(
            _bytes_of(dataset.GetDataElement(number).GetByteValue())
        ):
            return None
        fragments = element.GetSequenceOfFragments()
        if fragments is None:
            return cut(_bytes_of(element.GetByteValue()), image.GetBufferLength() // max(count, 1), count)
        stored = (
            fragments.GetFragment(index).GetByteValue() for index in range(fragments.GetNumberOfFragments())
        )
        frames = tuple(map(_bytes_of, stored))
        return frames if len(frames) == count else None


def by_dicomsdl(content: bytes) -> Frames | None:
    """Encapsulated frames as dicomsdl hands them out; native values cut by its attributes."""
    import dicomsdl

    dataset = dicomsdl.open_memory(content)
    element = dataset.getDataElement(f"{PIXEL_DATA:08x}")
    pixels = element.toPixelSequence()
    if pixels is not None:
        return tuple(pixels.encodedFrameData(index) for index in range(pixels.numberOfFrames()))
    info = dataset.getPixelDataInfo()
    if (number := dataset.getDataElement("00280008")) and not _is_number(number.toBytes()):
        return None
    size = info["Rows"] * info["Cols"] * info["SamplesPerPixel"] * info["BytesAllocated"]
    return cut(element.toBytes(), size, info["NumberOfFrames"] or 1)


def by_dcmdump(content: bytes) -> Frames | None:
    """What dcmtk's dcmdump writes as pixels: fragments one a frame, native values cut by its attributes."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, _as_file(content) as path:
        command = ["dcmdump", "-q", "+W", folder, str(path)]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
        if done.returncode != 0:
            return None
        text = done.stdout.decode("latin-1")
        written = sorted(Path(folder).glob("*.raw"), key=lambda path: int(path.suffixes[-2][1:]))
        values = tuple(path.read_bytes() for path in written)
        count = _attribute(text, "0028,0008", 1)
        if re.search(r"^\(7fe0,0010\) \w\w \(PixelSequence", text, re.M):
            return values[1:] if len(values) == count + 1 else None
        if len(values) != 1 or (count == 1 and re.search(r"^\(0028,0008\) \w\w (?!\[?\d)", text, re.M)):
            return None
        sides = _attribute(text, "0028,0010", 0) * _attribute(text, "0028,0011", 0)
        bits = sides * _attribute(text, "0028,0002", 1) * _attribute(text, "0028,0100", 0)
        return cut(values[0], bits // 8, count) if bits % 8 == 0 else None


def _is_number(text: bytes) -> bool:
    return text.strip(b" \0")[:1].isdigit()


def cut(value: bytes, size: int, count: int) -> Frames | None:
    """``count`` frames of ``size`` bytes, where the value has them all."""
    if not 0 < size * count <= len(value):
        return None
    return tuple(value[index * size : (index + 1) * size] for index in range(count))


def _attribute(text: str, tag: str, default: int) -> int:
    found = re.search(rf"^\({tag}\) \w\w \[?(\d+)\]? ", text, re.M)
    return int(found[1]) if found else default


def _bytes_of(value: object) -> bytes:
    """The bytes of a GDCM ByteValue, which its binding hands out as text or bytes."""
    if value is None:
        return b""
    text: str | bytes = value.GetBuffer()  # type: ignore[attr-defined]
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=".dcm", dir=IN_MEMORY) as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


class Guarded:
    """A judge in a process of its own.

    Parameters
    ----------
    judge : Judge
        A function of a module, for the process imports it.
    seconds : float
        After so long without an answer the process is killed, and the answer is None.
    """

    def __init__(self, judge: Judge, seconds: float = SECONDS) -> None:
        self.judge = judge
        self.seconds = seconds
        self.lost = 0  # crashes and hangs
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, content: bytes) -> Frames | None:
        connection = self._connection or self._start()
        try:
            connection.send_bytes(content)
            if connection.poll(self.seconds):
                answer: Frames | None = connection.recv()
                return answer
        except (EOFError, OSError):
            pass
        self.lost += 1
        self.close()
        return None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.judge, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if self._connection.poll(START_SECONDS):
            self._connection.recv()  # it is there: its imports are not part of any file's time
        return self._connection


def _serve(judge: Judge, connection: Connection) -> None:
    """Answer until the other side is gone. What a reader prints goes nowhere."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send("ready")
    while True:
        try:
            content = connection.recv_bytes()
        except EOFError:
            return
        answer = None
        with suppress(Exception):  # whatever a reader raises is a refusal
            answer = judge(content)
        connection.send(answer)


def available() -> list[Guarded]:
    """The judges that this machine has."""
    found: list[Judge] = [by_pydicom]
    if importlib.util.find_spec("gdcm"):
        found.append(by_gdcm)
    if importlib.util.find_spec("dicomsdl"):
        found.append(by_dicomsdl)
    if shutil.which("dcmdump"):
        found.append(by_dcmdump)
    return [Guarded(judge) for judge in found]

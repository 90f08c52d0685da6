"""Write the reference cases as the first corpus of the fuzz targets.

Run it by ``PYTHONPATH=tests python rust/fuzz/seed.py``. Needs only the standard library; seeds tables and
records too where voxtier is installed.
"""

from __future__ import annotations

import random
from pathlib import Path

from frames.dicom.cases import CASES

CORPUS = Path(__file__).parent / "corpus"
TORCH_FILES = Path(__file__).parents[2] / "tests" / "tensors" / "fixtures"
LARGEST = 8_000
WHOLE_FILE, PICKLE = b"\0", b"\1"

# What torch.save writes for {"image": torch.ones(4, 4), "size": torch.Size([4])}, and what it does not.
PICKLES = {
    "tensor": b"\x80\x02}q\x00(X\x05\0\0\0imageq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\0\0\0"
    b"storageq\x03ctorch\nFloatStorage\nq\x04X\x01\0\0\x000q\x05X\x03\0\0\0cpuq\x06K\x10tq\x07QK\0K\x04K\x04\x86q\x08K\x04"
    b"K\x01\x86q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rX\x04\0\0\0sizectorch\nSize\n(K\x04t\x85Ru.",
    "evil": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
    "instance": b"(X\x02\0\0\0lsiposix\nsystem\n.",
}

REQUESTS = [
    "/dicomweb/studies/1.2/series/1.3/instances/1.4/frames/3,1,2",
    "/ct/dicomweb/studies/1/series/2/instances/3/bulkdata/54000100/1/54001010",
    "/wado?requestType=WADO&studyUID=1&seriesUID=2&objectUID=3",
    'multipart/related; type="application/octet-stream"; transfer-syntax="*", image/jpeg;q=0.5',
    "bytes=0-65535",
    "1,2,3%2C4",
    'W/"a", "b", *',
]


def main() -> None:
    """Write one file for each case."""
    small = [case for case in CASES if len(case.content) <= LARGEST]
    for case in small:
        write("parse", case.name, case.content)
        write("dicom_json", case.name, case.content)
    for path in TORCH_FILES.rglob("*.pt"):
        if path.stat().st_size <= LARGEST:
            write("torch_file", f"{path.parent.name}-{path.stem}", WHOLE_FILE + path.read_bytes())
    for name, program in PICKLES.items():
        write("torch_file", name, PICKLE + program)
    for number, text in enumerate(REQUESTS):
        write("gateway", str(number), text.encode())
    for number in range(64):  # the target builds its file from numbers: shape, extents, filters, ranges
        write("tiledb", str(number), random.Random(number).randbytes(12 + number))
    try:
        from voxtier.frames import read_table
    except ImportError:
        return
    for case in small:
        if not case.error:
            table = read_table(case.content, verify="all")
            write("packed", case.name, table.packed)
            write("record", case.name, table.to_bytes())


def write(target: str, name: str, content: bytes) -> None:
    """Write one file of a target's corpus."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()

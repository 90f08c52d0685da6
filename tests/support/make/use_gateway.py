"""Index pydicom's own files and ask the gateway for each frame: ``use_gateway.py DSN`` with any Python.

`foreign.py` runs it with a wheel of another machine. pydicom is the oracle of what comes over HTTP.
"""

from __future__ import annotations

import json
import platform
import sys
import urllib.request
import warnings
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from voxtier.frames import FileIndexer, FrameReader, FrameStore, Gateway, index_files

# Native and encapsulated, one frame and many.
NAMES = ("CT_small.dcm", "rtdose.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm")


def frames(path: Path) -> tuple[pydicom.Dataset, list[bytes]]:
    """Return what pydicom makes of a file."""
    dataset = pydicom.dcmread(path)
    number = int(dataset.get("NumberOfFrames") or 1)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return dataset, list(generate_frames(dataset.PixelData, number_of_frames=number))
    size = dataset.Rows * dataset.Columns * dataset.get("SamplesPerPixel", 1) * dataset.BitsAllocated // 8
    return dataset, [dataset.PixelData[at * size : (at + 1) * size] for at in range(number)]


def ask(url: str, accept: str) -> tuple[str, bytes]:
    """Return type and body of an answer."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as answer:
        return answer.headers["Content-Type"], answer.read()


def main(dsn: str) -> None:
    """Hold every frame against pydicom, by a reader and over HTTP."""
    warnings.simplefilter("ignore")
    paths = [Path(get_testdata_file(name, download=False)) for name in NAMES]
    count = 0
    with FrameStore(dsn) as store:
        indexer = FileIndexer(store, source="foreign")
        reports = [each for batch in index_files(indexer, map(str, paths)) for each in batch]
        assert all(each.status == "ok" for each in reports), reports
        with Gateway(store, "foreign", port=0) as gateway, FrameReader(store, "foreign") as reader:
            listed = json.loads(ask(f"{gateway.url}/dicomweb/instances", "application/dicom+json")[1])
            assert len(listed) == len(paths), len(listed)
            for path in paths:
                dataset, expected = frames(path)
                place = f"studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
                url = f"{gateway.url}/dicomweb/{place}/instances/{dataset.SOPInstanceUID}/frames"
                for index, frame in enumerate(expected):
                    assert reader.frame(str(path), index) == frame, (path.name, index)
                    accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
                    kind, body = ask(f"{url}/{index + 1}", accept)
                    whole = BytesParser(policy=HTTP).parsebytes(
                        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
                    )
                    [part] = whole.iter_parts()
                    assert part.get_payload(decode=True).startswith(frame), (path.name, index)
                    count += 1
    print(f"{count} frames of {len(paths)} files over HTTP on {platform.machine()}, as pydicom reads them")


if __name__ == "__main__":
    main(sys.argv[1])

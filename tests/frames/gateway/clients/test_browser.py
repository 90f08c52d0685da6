"""Real viewers in a real browser: OHIF and a page with Cornerstone3D, in Chromium, show what pydicom reads.

Skipped, and says why, where npm or Chromium is missing, or the packages cannot be fetched.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_rescale

from frames.gateway.clients import browser
from frames.gateway.conftest import Begin
from frames.gateway.slides import tile_colour, write_slide

ROOT = "1.2.826.0.1.3680043.8.498"
STUDY, SLIDE, SYNTAXES = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"
SLICES = 24
COLUMNS, ROWS = 20, 15
MANY = int(os.environ.get("VIEWER_SLICES", "200"))
OTHER = "other source"
# Files that pydicom ships, with the file that holds the same pixels in a form that pydicom decodes by itself.
SHIPPED = {
    "MR_small.dcm": "MR_small.dcm",
    "MR_small_implicit.dcm": "MR_small.dcm",
    "MR_small_bigendian.dcm": "MR_small.dcm",
    "MR_small_padded.dcm": "MR_small.dcm",
    "MR_small_RLE.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
    "image_dfl.dcm": "image_dfl.dcm",
}


def write_series(folder: Path, slices: int) -> dict[str, np.ndarray]:
    """Write a series of CT slices with a real header, each with pixels of its own; return these."""
    first = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    written = {}
    for number in range(1, slices + 1):
        dataset = copy.deepcopy(first)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.1.{number}"
        dataset.InstanceNumber = number
        dataset.ImagePositionPatient = [-158.1, -179.0, -75.0 + 2 * number]
        dataset.PatientName = "Test^Viewer"
        dataset.PixelData = (first.pixel_array + number).astype("<i2").tobytes()
        path = folder / f"slice {number}.dcm"
        dataset.save_as(path)
        written[dataset.SOPInstanceUID] = pixels_of(path)
    return written


def pixels_of(path: str | Path) -> np.ndarray:
    """Return what pydicom reads from a file, rescaled as its header says."""
    dataset = pydicom.dcmread(path)
    return apply_rescale(dataset.pixel_array, dataset).astype(np.int32)


def write_syntaxes(folder: Path) -> dict[str, np.ndarray]:
    """Write files that pydicom ships as one series; return their pixels."""
    written = {}
    for number, (name, same) in enumerate(SHIPPED.items(), 1):
        dataset = pydicom.dcmread(str(get_testdata_file(name)))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = SYNTAXES, f"{SYNTAXES}.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{SYNTAXES}.1.{number}"
        dataset.InstanceNumber, dataset.PatientName = number, "Test^Syntaxes"
        dataset.save_as(folder / name)
        written[dataset.SOPInstanceUID] = pixels_of(str(get_testdata_file(same)))
    return written


def decoded(pixels: list[list[str]]) -> dict[str, np.ndarray]:
    """Return what a browser decoded, by SOP Instance UID."""
    found = {}
    for image, text in pixels:
        [uid] = re.findall(r"/instances/([0-9.]+)/frames/1", image)
        found[uid] = np.frombuffer(base64.b64decode(text), np.int32)
    return found


def check_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for uid, pixels in wanted.items():
        assert found[uid].sum(dtype=np.int64) == pixels.sum(dtype=np.int64), uid
        assert np.array_equal(found[uid], pixels.ravel()), uid


def check_clean(seen: dict[str, Any]) -> None:
    assert seen["faults"] == []
    assert seen["outside"] == []  # nothing but the gateway was asked


def program(get: Callable[[], Path]) -> Path:
    """Return a program of others, or skip and say what is missing."""
    try:
        browser.chromium()
        return get()
    except browser.MissingProgramError as missing:
        pytest.skip(f"viewers in a browser: {missing}")


class Show:
    """What the viewers showed: steps, and the pixels that the files hold."""

    def __init__(self, seen: dict[str, dict[str, Any]], series: Any, syntaxes: Any) -> None:
        self.seen, self.series, self.syntaxes = seen, series, syntaxes


@pytest.fixture(scope="module")
def show(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> Show:
    """Run all steps of the gate in one Chromium."""
    program(browser.modules)
    viewer, page = program(browser.ohif), program(browser.cornerstone)
    folder = tmp_path_factory.mktemp("images")
    series, syntaxes = write_series(folder, SLICES), write_syntaxes(folder)
    write_slide(folder / "slide.dcm", (SLIDE, f"{SLIDE}.1", f"{SLIDE}.1.1"), COLUMNS, ROWS)
    sources = {"default": sorted(folder.iterdir()), OTHER: [folder / "slide.dcm"]}
    with browser.served(page) as origin:
        gateway = begin(sources, viewer=viewer, cors_origins=[origin])
        url = gateway.url
        seen = browser.browse(
            ("status", {"url": url, "studies": 4}),
            ("cornerstone", {"url": url, "page": origin, "study": SYNTAXES, "series": f"{SYNTAXES}.1"}),
            ("ohif", {"url": url, "count": SLICES}),
        )
    return Show(seen, series, syntaxes)


def test_the_status_page_shows_sources_studies_and_links_into_the_viewer(show: Show) -> None:
    seen = show.seen["status"]
    check_clean(seen)
    for word in ("serving", "Source default", f"Source {OTHER}", "/other%20source/dicomweb", "3 studies"):
        assert word in seen["text"]
    assert sorted(seen["links"]) == [
        f"/microscopy/default?StudyInstanceUIDs={SLIDE}",
        f"/microscopy/other%20source?StudyInstanceUIDs={SLIDE}",
        f"/viewer/default?StudyInstanceUIDs={STUDY}",
        f"/viewer/default?StudyInstanceUIDs={SYNTAXES}",
    ]


def test_cornerstone_decodes_every_transfer_syntax_to_the_pixels_of_pydicom(show: Show) -> None:
    seen = show.seen["cornerstone"]
    check_clean(seen)
    check_equal(decoded(seen["pixels"]), show.syntaxes)


def test_ohif_lists_studies_and_decodes_a_series_to_the_pixels_of_pydicom(show: Show) -> None:
    seen = show.seen["ohif"]
    check_clean(seen)
    assert seen["slices"] == SLICES
    check_equal(decoded(seen["pixels"]), show.series)
    assert f"I:{SLICES} (1/{SLICES})" in seen["text"]


def test_ohif_shows_the_tiles_of_a_slide(show: Show) -> None:
    assert show.seen["ohif"]["tiles"] > 0
    with Image.open(browser.PICTURES / "slide.png") as picture:
        shown = np.array([colour for many, colour in picture.convert("RGB").getcolors(1 << 24) if many > 100])
    # Each tile has a colour of its own, but for what JPEG loses of it.
    wanted = np.array([tile_colour(column, row) for column in range(COLUMNS) for row in range(ROWS)], int)
    is_shown = (abs(wanted[:, None] - shown[None]) <= 4).all(axis=2).any(axis=1)
    assert is_shown.sum() >= 12


@pytest.mark.soak
def test_a_scroll_of_200_slices_and_a_pan_over_a_slide_are_timed(begin: Begin, tmp_path: Path) -> None:
    """The times are written beside the pictures; how long they are is the machine's business."""
    viewer = program(browser.ohif)
    series = write_series(tmp_path, MANY)
    write_slide(tmp_path / "slide.dcm", (SLIDE, f"{SLIDE}.1", f"{SLIDE}.1.1"), columns=100, rows=80)
    url = begin({"default": sorted(tmp_path.glob("*.dcm"))}, viewer=viewer).url
    seen = browser.browse(("ohif", {"url": url, "count": MANY, "isTimed": True}))["ohif"]
    check_clean(seen)
    check_equal(decoded(seen["pixels"]), series)
    assert f"({MANY}/{MANY})" in seen["end"]
    assert seen["panned"] > 0
    times = {
        "slices": MANY,
        "ms to open and decode them": seen["opened"],
        "ms to scroll through them": seen["scroll"],
        "tiles of the pan": seen["panned"],
        "ms of the pan": seen["pan"],
    }
    (browser.PICTURES / "times.json").write_text(json.dumps(times) + "\n")
    print(times)

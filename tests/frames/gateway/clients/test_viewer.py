"""A real viewer in a real browser: OHIF from its npm package, in Chromium, shows a series of the gateway."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from frames.gateway.conftest import Start
from frames.gateway.serving import index
from frames.gateway.slides import write_slide
from voxtier.frames.store.store import FrameStore

OHIF = "@ohif/app@3.12.10"
PLAYWRIGHT = "playwright-core@1"
STUDY = "1.2.826.0.1.3680043.8.498.1"
SLIDE = "1.2.826.0.1.3680043.8.498.2"
# More of them by the environment: scrolling 200 slices is timed so.
SLICES = int(os.environ.get("VIEWER_SLICES", "24"))


def _browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OHIF's built files and playwright-core, from the registry of npm; kept between runs."""
    if shutil.which("npm") is None or _browser() is None:
        pytest.skip("OHIF in a browser: needs npm and chromium (apt-get install npm chromium)")
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "voxtier-tests" / "ohif-3.12.10"
    if not (place / "package" / "dist" / "index.html").exists():
        made = tmp_path_factory.mktemp("ohif")
        for command in (["npm", "pack", OHIF], ["npm", "install", "--no-save", "--prefix", ".", PLAYWRIGHT]):
            done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=280, check=False)
            if done.returncode:
                pytest.skip(f"OHIF in a browser: {' '.join(command)} failed: {done.stderr[-200:]}")
        [archive] = made.glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(made, filter="data")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place, symlinks=True)
    return place


@pytest.fixture
def series(tmp_path: Path, store: FrameStore) -> None:
    """Write a CT series that OHIF can show, from a slice that pydicom ships, and a slide."""
    first = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    paths = []
    for number in range(SLICES):
        dataset = copy.deepcopy(first)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.1.{number + 1}"
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [-158.1, -179.0, -75.0 + 2 * number]
        dataset.PatientName = "Test^Viewer"
        paths.append(tmp_path / f"{number}.dcm")
        dataset.save_as(paths[-1])
    slide = tmp_path / "slide.dcm"
    write_slide(slide, (SLIDE, f"{SLIDE}.1", f"{SLIDE}.1.1"), columns=40, rows=30)
    index(store, [*paths, slide])


@pytest.mark.timeout(600)
def test_ohif_shows_all_slices_and_a_slide(tmp_path: Path, viewer: Path, series: None, start: Start) -> None:
    gateway = start(viewer=viewer / "package" / "dist")
    modules, browser = viewer / "node_modules", _browser()
    script = Path(__file__).with_name("browse.js")
    command = ["node", script, modules, browser, gateway.url, STUDY, SLICES, SLIDE, tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["frames"] == SLICES
    assert seen["faults"] == []
    assert seen["outside"] == []  # nothing but the gateway was asked
    assert f"I:{SLICES} (1/{SLICES})" in seen["text"]
    kept = viewer.parent / "screenshots"
    kept.mkdir(exist_ok=True)
    for picture in tmp_path.glob("*.png"):
        shutil.copy(picture, kept)
    assert (tmp_path / "viewer.png").stat().st_size > 50_000
    assert f"({SLICES}/{SLICES})" in seen["end"]
    first, all_tiles = seen["tiles"]
    assert 0 < first <= all_tiles
    print(f"ms to scroll {SLICES} slices and to pan a slide: {seen['times']}")
    assert str(SLICES) in seen["status"]

"""Slides of wsidicom and a segmentation of highdicom, fetched by programs of others: every byte equal."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin

import highdicom
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.sr.codedict import codes
from pydicom.uid import VLWholeSlideMicroscopyImageStorage
from requests import HTTPError
from wsidicom import WsiDicom, WsiDicomWebClient

from frames.gateway.conftest import Begin
from frames.gateway.slides import TILE, write_slide
from voxtier.frames import Gateway

pytestmark = [
    pytest.mark.filterwarnings("ignore:No bulk data URI handler"),  # wsidicom asks for frames alone
]
STUDY = "1.2.826.0.1.3680043.8.498.7"
COLUMNS, ROWS = 7, 5
TABLES = ("bot", "eot", "empty")
SHIPPED = ("CT_small.dcm", "waveform_ecg.dcm", "SC_rgb_small_odd.dcm", "chrFren.dcm")
SLICES = 5


def shipped(name: str) -> Path:
    """Return the path of a file that pydicom ships."""
    return Path(str(get_charset_files(name)[0] if name.startswith("chr") else get_testdata_file(name)))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a pyramid for each kind of offset table, by wsidicom; return its folder."""
    made = tmp_path_factory.mktemp("slides")
    uids = (f"{STUDY}.1", f"{STUDY}.1.1", f"{STUDY}.1.1.1")
    (made / "one level").mkdir()
    write_slide(made / "one level" / "slide.dcm", uids, COLUMNS, ROWS)
    with WsiDicom.open(made / "one level") as slide:
        for table in TABLES:
            slide.save(made / table, offset_table=table, add_missing_levels=True, workers=1)
    return {table: made / table for table in TABLES}


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Write a binary segmentation of odd frames, 37 x 45 bits each, by highdicom; return it and its mask."""
    slices = []
    for number in range(SLICES):
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{STUDY}.2", f"{STUDY}.2.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.2.1.{number + 1}"
        dataset.ImagePositionPatient = [0, 0, 2.0 * number]
        dataset.PixelData = dataset.pixel_array[:37, :45].tobytes() + b"\0" * (37 * 45 * 2 % 2)
        dataset.Rows, dataset.Columns = 37, 45
        slices.append(dataset)
    mask = np.random.default_rng(3).random((SLICES, 37, 45)) < 0.4
    segment = highdicom.seg.SegmentDescription(
        1,
        "tissue",
        codes.SCT.Tissue,
        codes.SCT.Tissue,
        highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    written = highdicom.seg.Segmentation(
        slices,
        mask.astype(np.uint8),
        highdicom.seg.SegmentationTypeValues.BINARY,
        [segment],
        f"{STUDY}.2.2",
        2,
        f"{STUDY}.2.2.1",
        1,
        "voxtier",
        "tests",
        "1",
        "1",
    )
    path = tmp_path_factory.mktemp("segmentation") / "seg.dcm"
    written.save_as(path)
    return path, mask


@pytest.fixture(scope="module")
def gateway(begin: Begin, slides: dict[str, Path], segmentation: tuple[Path, np.ndarray]) -> Gateway:
    """Serve them all: each pyramid and the segmentation as a source, files of pydicom as the first."""
    folders = {table: sorted(folder.glob("*.dcm")) for table, folder in slides.items()}
    return begin({"default": map(shipped, SHIPPED), **folders, "seg": [segmentation[0]]})


def client(gateway: Gateway, source: str = "default") -> DICOMwebClient:
    return DICOMwebClient(url=f"{gateway.url}/{source}/dicomweb")


@pytest.mark.parametrize("table", TABLES)
def test_wsidicom_reads_the_tiles_and_regions_of_all_levels(
    gateway: Gateway, slides: dict[str, Path], table: str
) -> None:
    first = pydicom.dcmread(next(slides[table].glob("*.dcm")), stop_before_pixels=True)
    web = WsiDicomWebClient(client(gateway, table))
    with (
        WsiDicom.open(slides[table]) as local,
        WsiDicom.open_web(web, first.StudyInstanceUID, first.SeriesInstanceUID) as remote,
    ):
        levels = [level.level for level in local.pyramid]
        assert [level.level for level in remote.pyramid] == levels
        assert len(levels) >= 3
        for level in local.pyramid:
            for place in np.ndindex(level.tiled_size.width, level.tiled_size.height):
                assert remote.read_encoded_tile(level.level, place) == local.read_encoded_tile(
                    level.level, place
                )
        region = ((TILE // 2, TILE // 3), 0, (3 * TILE, 2 * TILE))
        assert remote.read_region(*region).tobytes() == local.read_region(*region).tobytes()


@pytest.mark.parametrize("table", TABLES)
def test_dicomweb_client_retrieves_lists_of_frames_of_a_slide(
    gateway: Gateway, slides: dict[str, Path], table: str
) -> None:
    asked = client(gateway, table)
    for path in slides[table].glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        count = int(dataset.NumberOfFrames)
        extended = None
        if "ExtendedOffsetTable" in dataset:
            extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        wanted = list(generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=extended))
        order = [int(frame) + 1 for frame in np.random.default_rng(count).permutation(count)]
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        for media in ("image/jpeg", dataset.file_meta.TransferSyntaxUID), ("application/octet-stream", "*"):
            found = asked.retrieve_instance_frames(*uids, order, media_types=[media])
            assert found == [wanted[frame - 1] for frame in order]
        assert list(asked.iter_instance_frames(*uids, [count, 1][:count])) == [wanted[-1], wanted[0]][:count]


def test_a_segmentation_of_highdicom_comes_back_as_its_mask(
    gateway: Gateway, segmentation: tuple[Path, np.ndarray]
) -> None:
    path, mask = segmentation
    asked = client(gateway, "seg")
    [found] = asked.search_for_instances(search_filters={"Modality": "SEG"})
    uids = [found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
    frames = asked.retrieve_instance_frames(*uids, list(range(1, SLICES + 1)))
    bits = [np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little") for frame in frames]
    stored = pydicom.dcmread(path).pixel_array
    assert np.array_equal([each[: 37 * 45].reshape(37, 45) for each in bits], stored)
    whole = highdicom.seg.Segmentation.from_dataset(asked.retrieve_instance(*uids))
    volume = whole.get_pixels_by_source_instance(
        [f"{STUDY}.2.1.{number + 1}" for number in range(SLICES)], combine_segments=True
    )
    assert np.array_equal(volume, mask)


@pytest.mark.parametrize("name", SHIPPED)
def test_headers_and_bulk_data_make_the_data_set_of_the_file(gateway: Gateway, name: str) -> None:
    wanted = pydicom.dcmread(shipped(name))
    asked = client(gateway)
    uids = (wanted.StudyInstanceUID, wanted.SeriesInstanceUID, wanted.SOPInstanceUID)
    fetched = []

    def fetch(uri: str) -> bytes:
        [value] = asked.retrieve_bulkdata(urljoin(gateway.url, uri))
        fetched.append(uri)
        return bytes(value)

    header = asked.retrieve_instance_metadata(*uids)
    header.pop("00083002", None)
    found = pydicom.Dataset.from_json(header, lambda _tag, _vr, uri: fetch(uri))
    assert fetched
    # Padding behind the pixels has no meaning (PS3.5 7.2); it is not looked for.
    assert {each.tag: each for each in found} == {each.tag: each for each in wanted if each.tag != 0xFFFCFFFC}
    assert asked.retrieve_instance(*uids) == wanted
    assert asked.retrieve_series_metadata(*uids[:2]) == [header | asked.retrieve_instance_metadata(*uids)]


def test_searches_of_dicomweb_client(gateway: Gateway, slides: dict[str, Path]) -> None:
    files = [pydicom.dcmread(shipped(name)) for name in SHIPPED]
    asked = client(gateway)
    every = asked.search_for_instances()
    assert {each["00080018"]["Value"][0] for each in every} == {file.SOPInstanceUID for file in files}
    pages = [asked.search_for_instances(limit=1, offset=offset) for offset in range(len(files) + 1)]
    assert [page for each in pages for page in each] == every
    assert pages[-1] == []  # status 204
    assert asked.search_for_instances(limit=3, get_remaining=True) == every
    [one] = asked.search_for_instances(
        search_filters={"PatientID": files[0].PatientID}, fields=["00180050", "KVP"], fuzzymatching=False
    )
    assert (one["00180050"]["Value"], one["00180060"]["Value"]) == ([files[0].SliceThickness], [files[0].KVP])
    assert "00180050" not in every[0]
    [literal] = asked.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "buc*j*"})
    assert literal["0020000D"]["Value"] == [files[3].StudyInstanceUID]
    assert asked.search_for_studies(search_filters={"PatientName": "Nobody"}) == []
    [series] = asked.search_for_series(files[1].StudyInstanceUID)
    assert series["0020000E"]["Value"] == [files[1].SeriesInstanceUID]
    levels = client(gateway, "bot").search_for_instances(
        fields=["AvailableTransferSyntaxUID"],
        search_filters={"SOPClassUID": VLWholeSlideMicroscopyImageStorage},
    )
    assert len(levels) == len(list(slides["bot"].glob("*.dcm")))
    with pytest.raises(HTTPError, match="400"):
        asked.search_for_studies(search_filters={"Foo": "1"})

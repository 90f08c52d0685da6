"""What matches a search: values by what they mean, by the same rules over headers and in the search index."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from frames.gateway.serving import index
from voxtier.frames.gateway.search.matching import matches, rule_of
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.headers import texts
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore


def write(path: Path, uid: str, **attributes: Any) -> Path:
    """Write one instance in a study of its own, whose UID is given."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid, f"{uid}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.1"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def found_both_ways(store: FrameStore, level: str, queries: list[str]) -> list[set[str]]:
    """Return the last number of the UIDs of the studies that each search finds, the same in both ways."""
    ways = []
    for _ in range(2):
        searches = Search()
        ways.append(
            [
                {
                    each["0020000D"]["Value"][0].rpartition(".")[2]
                    for each in searches.answer(store, "default", parse(level, query), "")[0]
                }
                for query in queries
            ]
        )
        made = SearchIndex(store)
        made.switch_on("default")
        list(fill_search_index(made, "default"))
    assert searches.counts()["index"] == len(queries)
    assert ways[0] == ways[1]
    return ways[0]


@pytest.mark.parametrize(
    "name",
    ["Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou=山田^太郎", "=山田^太郎", "==やまだ", "Straße"],
)
def test_the_value_of_a_name_matches_itself(name: str) -> None:
    dataset = Dataset()
    dataset.PatientName = name
    element = dataset.to_json_dict()["00100010"]
    for wanted in (name, name.upper(), name[:-1] + "?", *filter(None, name.split("="))):
        assert matches(element, wanted), wanted
    for wanted in (name[:-1], f"{name}=", f"x{name}"):
        assert not matches(element, wanted), wanted


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("2020-2021", True),
        ("2020-", True),
        ("-2021", True),
        ("2021-2022", False),
        ("20201231101010.5+0100", True),
        ("20201231101010.5+0200", False),
        ("20200101+0100-20210101+0100", True),
        ("20200101-0500-20210101-0500", True),
        ("20200101-0500-20200201-0500", False),
        ("20200101-0500-", True),
        ("2020-1130", False),  # a year with an offset
        ("20201231091010.50+0000", True),
        ("20201231041010.4-0500-20201231091010.5+0000", True),
        ("20201231091010.6+0000-", False),
        ("-202012310910+0000", True),
        ("20201231091011+0000-20201231235959+0000", False),
        ("20201231101010-20201231101010", True),  # without an offset its clock is that of the value
    ],
)
def test_ranges_of_date_and_time_with_offsets(wanted: str, found: bool) -> None:
    assert matches({"vr": "DT", "Value": ["20201231101010.5+0100"]}, wanted) == found


TIMES = ["10", "1000", "100000", "100000.0", "10:00:00.5", "1030", "103000", "103000.50", "1100", "late"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("100000-100000", TIMES[:5]),
        ("100001-103000", TIMES[5:8]),
        ("1001-1030", TIMES[5:8]),
        ("100000.1-103000", TIMES[4:8]),
        ("103000.500000-103000.500000", ["103000.50"]),
        ("1000-1000", TIMES[:5]),
        ("-095959", []),
        ("-10:00", TIMES[:5]),
        ("103001-", ["1100", "late"]),
        ("10-10", TIMES[:8]),
        ("10", TIMES[:4]),
        ("10:00:00.000", TIMES[:4]),
        ("1030", ["1030", "103000"]),
        ("103000.5", ["103000.50"]),
        ("late", ["late"]),
    ],
)
def test_times_match_by_what_they_mean(wanted: str, found: list[str]) -> None:
    assert [time for time in TIMES if matches({"vr": "TM", "Value": [time]}, wanted)] == found


@pytest.mark.parametrize("date", ["19930422", "1993.04.22"])
def test_dates_of_the_old_form_match(date: str) -> None:
    element = {"vr": "DA", "Value": [date]}
    for wanted in ("19930422", "1993.04.22", "1993.04.22-1993.04.22", "-1993", "199304-1993.05.01"):
        assert matches(element, wanted), wanted
    for wanted in ("19930423", "1993.04.23-", "-1993.04.21"):
        assert not matches(element, wanted), wanted


def test_studies_are_found_by_times_of_any_precision(store: FrameStore, tmp_path: Path) -> None:
    times = ["10", "1000", "100000.5", "103000", "1100"]
    paths = [
        write(tmp_path / f"{number}.dcm", f"1.2.3.{number}", StudyTime=time)
        for number, time in enumerate(times)
    ]
    index(store, paths)
    queries = ["StudyTime=100000-1030", "StudyTime=100000-100000", "StudyTime=1030", "StudyTime=-095959"]
    wanted = [{"0", "1", "2", "3"}, {"0", "1", "2"}, {"3"}, set()]
    assert found_both_ways(store, "studies", queries) == wanted


@pytest.mark.parametrize(
    ("vr", "value", "wanted", "found"),
    [
        ("FD", 1000.0, ["1000", "1000.0", "1e3", "+1000"], True),
        ("FD", 0.1, ["0.1", "0.10", "1e-1"], True),
        ("FD", 0.1, ["0.10000000149011612", "0", "1e999", "x"], False),
        ("FL", 0.10000000149011612, ["0.1", "0.10000000149011612", "1e-1"], True),
        ("FL", 0.10000000149011612, ["0.10001", "1e300", "x"], False),
        ("SV", -5, ["-5", "-05", "-5.0"], True),
        ("UV", 18446744073709551615, ["18446744073709551615"], True),
        ("UV", 18446744073709551615, ["18446744073709551614", "1.8446744073709551e19"], False),
        ("UV", "18446744073709551615", ["18446744073709551615", "+18446744073709551615"], True),
    ],
)
def test_numbers_match_by_their_value(vr: str, value: Any, wanted: list[str], found: bool) -> None:
    for each in wanted:
        assert matches({"vr": vr, "Value": [value]}, each) == found, each


MOMENTS = [
    ("20260705", "090000"),
    ("20260705", "190000"),
    ("20260706", "030000"),
    ("2026.07.07", "17"),
    ("20260707", "180059.5"),
    ("20260707", "190000"),
    ("20260706", None),
    (None, "120000"),
]


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_range_of_dates_and_one_of_times_are_one_range_of_moments(
    store: FrameStore, tmp_path: Path
) -> None:
    """PS3.18 8.3.4.1.1; where the two have not the same form, each matches for itself."""
    for levels in ("Study", "Series"):
        paths = [
            write(
                tmp_path / f"{number}.dcm",
                f"1.2.3.{number}",
                **{f"{levels}Date": date, f"{levels}Time": time},
            )
            for number, (date, time) in enumerate(MOMENTS)
        ]
        index(store, paths)
        cases = {
            "{0}Date=20260705-20260707&{0}Time=1000-1800": "12346",
            "{0}Date=20260705-20260706&{0}Time=2000-0400": "26",
            "{0}Date=20260706-20260706&{0}Time=0000-2359": "26",
            "{0}Date=2026.07.06-&{0}Time=00:30-": "2345",
            "{0}Date=-20260706&{0}Time=-0300": "0126",
            "{0}Date=20260705-20260707&{0}Time=1200-": "1345",
            "{0}Date=2026-&{0}Time=1800-": "145",
            "{0}Date=20260707&{0}Time=1000-1800": "34",
            "{0}Date=20260705-20260707&{0}Time=*": "0123456",
            "{0}Date=-&{0}Time=-": "0123456",
        }
        queries = [query.format(levels) for query in cases]
        found = found_both_ways(store, "series", queries)
        assert dict(zip(cases, map(sorted, found), strict=True)) == {k: list(v) for k, v in cases.items()}


def test_ranges_of_other_dates_and_times_and_in_items_are_one_range(
    store: FrameStore, tmp_path: Path
) -> None:
    step = Dataset()
    step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = "20260705", "190000"
    attributes = {
        "AcquisitionDate": "20260705",
        "AcquisitionTime": "190000",
        "RequestAttributesSequence": [step],
    }
    index(store, [write(tmp_path / "1.dcm", "1.2.3.1", **attributes)])
    item = "RequestAttributesSequence.ScheduledProcedureStepStart"
    for name in ("Acquisition", item):
        for times, count in (("1000-1800", 1), ("1000-0400", 1), ("2000-0400", 0)):
            query = f"{name}Date=20260705-20260706&{name}Time={times}"
            found, _ = Search().answer(store, "default", parse("instances", query), "")
            assert len(found) == count, query


def test_keys_of_a_sequence_match_in_one_of_its_items(store: FrameStore, tmp_path: Path) -> None:
    """PS3.4 C.2.2.2.6."""
    items = []
    for number, code in (("1", "A"), ("2", "B")):
        item, of_item = Dataset(), Dataset()
        item.ScheduledProcedureStepID, item.RequestedProcedureID = f"S{number}", f"R{number}"
        of_item.CodeValue, of_item.CodingSchemeDesignator = code, number
        item.ScheduledProtocolCodeSequence = [of_item]
        items.append(item)
    index(store, [write(tmp_path / "1.dcm", "1.2.3.1", RequestAttributesSequence=items)])
    step, code = "00400275.00400009", "00400275.ScheduledProtocolCodeSequence"
    for query, is_found in (
        (f"{step}=S1&RequestAttributesSequence.RequestedProcedureID=R1", True),
        (f"{step}=S1&00400275.00401001=R2", False),
        (f"{step}=S1&00400275.00401001=R?", True),
        (f"{step}=S1&00400275.00401001=R3", False),
        (f"{step}=S2&{code}.CodeValue=B&{code}.CodingSchemeDesignator=2", True),
        (f"{step}=S1&{code}.CodeValue=B", False),
        (f"{code}.CodeValue=B&{code}.CodingSchemeDesignator=1", False),
        (f"{step}=*&00400275.00321060=*&00081115.0020000E=*", True),
    ):
        found, _ = Search().answer(store, "default", parse("series", query), "")
        assert bool(found) == is_found, query


def test_results_hold_the_attributes_by_which_was_searched(store: FrameStore, tmp_path: Path) -> None:
    """PS3.18 10.6.3.3; of a private one its creator too."""
    path = write(tmp_path / "1.dcm", "1.2.3.1", SliceThickness=5)
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x77, "Acme", create=True)
    block.add_new(1, "LO", "001239")
    block.add_new(2, "LO", "hello")
    dataset.save_as(path)
    index(store, [path])
    for level in ("studies", "series", "instances"):
        for query, tags in (
            ("SliceThickness=5", {"00180050"}),
            ("SliceThickness=", {"00180050"}),
            ("BodyPartExamined=*&Manufacturer=GE*", {"00080070"}),
            ("00770010=Acme&00771001=001239&includefield=00771002", {"00770010", "00771001", "00771002"}),
            ("00771001=", {"00770010", "00771001"}),
            ("Modality=CT", {"00080060"}),
            ("PatientID=", {"00100020"}),
            ("00081115.0020000E=*&00400275.00400009=*", set()),
        ):
            [plain], _ = Search().answer(store, "default", parse(level, ""), "")
            [result], _ = Search().answer(store, "default", parse(level, query), "")
            assert result.keys() == plain.keys() | tags, (level, query)
    for query in ("Modality=CT", "PatientID=", "NumberOfSeriesRelatedInstances="):
        assert found_both_ways(store, "studies", [query]) == [{"1"}]


def test_both_ways_have_the_same_rules(store: FrameStore) -> None:
    SearchIndex(store).switch_on("default")
    elements = [
        {"vr": "UI", "Value": ["1.2.840.10008.1.2", "1.2"]},
        {"vr": "UI"},
        {"vr": "DA", "Value": ["20201231"]},
        {"vr": "TM", "Value": ["0930", "101500.5"]},
        {"vr": "DT", "Value": ["20201231101010.5+0100"]},
        {"vr": "DT", "Value": ["20200601"]},
        {"vr": "DA", "Value": ["1993.04.22"]},
        {"vr": "TM", "Value": ["10", "10:30:00.50", "late"]},
        {"vr": "IS", "Value": [5, -7]},
        {"vr": "IS", "Value": ["05 ", None]},
        {"vr": "DS", "Value": [0.5, 1e22]},
        {"vr": "FD", "Value": [1000.0, 0.1]},
        {"vr": "FL", "Value": [0.10000000149011612, 5.0]},
        {"vr": "SV", "Value": [5, -9007199254740993]},
        {"vr": "LO", "Value": ["5", "a\\b", "50%_"]},
        {"vr": "CS", "Value": ["CT", "ONLINE"]},
        {"vr": "CS"},
        {"vr": "PN", "Value": [{"Alphabetic": "Strauß^A", "Ideographic": "山田^太郎"}, {"Phonetic": "や"}]},
        None,
    ]
    wanted = ["*", "**", "?", "?*", "1.2", "1.2,1.3", "1.3\\1.2", "1.?", ",", "\\", "1.2,"]
    wanted += ["20201231", "2020-2021", "-2020", "2020-", "-", "2020-1130", "20201231-0500", "09-10", "0930"]
    wanted += ["20200101-0500-20210101-0500", "2020+0100-20210101+1400", "20201231101010.5+0100"]
    wanted += [
        "19930422",
        "1993.04.22-",
        "101500.50",
        "09:30",
        "1000",
        "10-1030",
        "103000.5-",
        "-late",
        "late",
    ]
    wanted += ["20201231091010.50+0000", "20201231091010+0000-20201231091010.5+0000", "2020-202012"]
    wanted += ["5", "05", "5.0", "+5", "-7", "-007", "0.50", "5e-1", "1e22", "1e999", f"1{22 * '0'}", "5x"]
    wanted += ["1000", "1e3", "0.1", "0.10", "0.10000000149011612", "-9007199254740993", "-9007199254740992"]
    wanted += [
        "1e300",
        "a\\b",
        "50%_",
        "50*",
        "%",
        "_",
        "ONLINE",
        "strauß^a",
        "STRAUSS^A",
        "strauss^a=山田^太郎",
    ]
    wanted += ["CT,MR", "MR\\CT", "M?,C?\\", "XA,MR", "ct"]
    wanted += ["=*太郎", "==や", "や", "山田^太郎", "*=*"]
    differ = []
    for element, value in itertools.product(elements, wanted):
        names = {"T": texts(element)} if element and element["vr"] in ("PN", "DA", "TM", "DT") else {}
        parameters = [json.dumps({"T": element} if element else {}), json.dumps(names), "T"]
        parameters += [json.dumps(rule_of(value))]
        statement = "SELECT voxtier_search.matches(%s::jsonb, %s::jsonb, %s, %s::jsonb)"
        if store.query(statement, parameters) != [(matches(element, value),)]:
            differ.append((element, value, matches(element, value)))
    assert not differ

"""QIDO-RS (PS3.18 10.6): searches over the UIDs of the index and the headers of files.

The index holds no attributes of patients. A search reads the header of one file per study or series, or of
each instance, and keeps what it read in memory.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from voxtier.errors import ConfigError
from voxtier.frames.gateway.keywords import tag_of
from voxtier.frames.store.store import FrameStore

Header = Mapping[str, Any]
"""A data set in the DICOM JSON model (PS3.18 F.2)."""

_STUDY = "0020000D"
_SERIES = "0020000E"
_INSTANCE = "00080018"
_UID_COLUMNS = {
    _STUDY: "study_instance_uid",
    _SERIES: "series_instance_uid",
    _INSTANCE: "sop_instance_uid",
}
# Returned attributes (PS3.18 tables 10.6.3-3 to -5).
_TAGS = {
    level: tags.split()
    for level, tags in {
        "study": "00080005 00080020 00080030 00080050 00080056 00080061 00080090 00081030 00080201 00100010 "
        "00100020 00100030 00100040 0020000D 00200010",
        "series": "00080005 00080060 0008103E 0020000E 00200011 00080201 00400244 00400245 00400275",
        "instance": "00080005 00080016 00080018 00200013 00280008 00280010 00280011 00280100",
    }.items()
}
_MOST_RESULTS = 1000
_MOST_HEADERS = 20_000


class Query(NamedTuple):
    """A search: its level, what must match, what is returned.

    Attributes
    ----------
    level : {"study", "series", "instance"}
        What is searched for.
    uids : dict
        UIDs by the tag of their attribute.
    matches : dict
        Values of other attributes by tag.
    included : set of str
        Further tags to return; ``all`` for every attribute of the header.
    limit, offset : int
        Window of the results.
    is_fuzzy : bool
        Whether the client asked for fuzzy matching, which is answered literally.
    """

    level: str
    uids: dict[str, list[str]]
    matches: dict[str, str]
    included: set[str]
    limit: int
    offset: int
    is_fuzzy: bool


def parse(path: str, query: str) -> Query:
    """Read a search.

    Parameters
    ----------
    path : str
        Path below the root, such as ``studies/1.2/series``.
    query : str
        The query string as it was sent.

    Returns
    -------
    Query
        The search.

    Raises
    ------
    ConfigError
        An attribute, a number or a UID is none.
    """
    parts = path.split("/")
    level = {"studies": "study", "series": "series", "instances": "instance"}[parts[-1]]
    uids = {tag: [uid] for tag, uid in zip((_STUDY, _SERIES), parts[1::2], strict=False)}
    matches: dict[str, str] = {}
    included: set[str] = set()
    numbers = {"limit": _MOST_RESULTS, "offset": 0}
    is_fuzzy = False
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=200):
        if name in numbers:
            if not re.fullmatch(r"\d{1,9}", value):
                raise ConfigError(f"{name}={value[:40]!r} is no number")
            numbers[name] = int(value)
        elif name == "fuzzymatching":
            is_fuzzy = value.lower() == "true"
        elif name == "includefield":
            included |= {"all" if each == "all" else _tag(each) for each in value.split(",") if each}
        elif name in ("emptyvaluematching", "multiplevaluematching", "accept"):
            continue
        else:
            tag = _tag(name)
            if tag in _UID_COLUMNS:
                given = [uid for uid in re.split(r"[,\\]", value) if uid]
                if any(not re.fullmatch(r"[0-9.]{1,64}", uid) for uid in given):
                    raise ConfigError(f"{name}: a UID has at most 64 digits and points")
                if given:
                    uids[tag] = [uid for uid in given if tag not in uids or uid in uids[tag]]
            elif value:
                matches[tag] = value
    limit = min(numbers["limit"], _MOST_RESULTS)
    return Query(level, uids, matches, included, limit, numbers["offset"], is_fuzzy)


def _tag(name: str) -> str:
    tag = tag_of(name.rpartition(".")[2])  # the last attribute of a path through sequences
    if tag is None:
        raise ConfigError(f"{name[:80]!r} is neither a tag (8 hexadecimal digits) nor a keyword of DICOM")
    return tag


class Search:
    """Answers searches of one gateway; keeps the headers that it read.

    Parameters
    ----------
    read_header : callable
        Takes a path and returns the file's header in the DICOM JSON model; raises where it cannot be read.
    """

    def __init__(self, read_header: Callable[[str], Header]) -> None:
        self._read_header = read_header
        self._headers: OrderedDict[tuple[str, int], Header] = OrderedDict()

    def answer(self, store: FrameStore, source: str, query: Query, root: str) -> list[dict[str, Any]]:
        """Return the results of a search, in the order of their UIDs.

        Parameters
        ----------
        store : FrameStore
            The index.
        source : str
            Name of the source.
        query : Query
            See `parse`.
        root : str
            Where DICOMweb's resources begin, for Retrieve URL.

        Returns
        -------
        list of dict
            A data set in the DICOM JSON model for each result.
        """
        found: list[dict[str, Any]] = []
        passed = 0
        for row in self._candidates(store, source, query):
            header = self._header(row)
            if not all(matches(header.get(tag), value) for tag, value in query.matches.items()):
                continue
            passed += 1
            if query.matches and passed <= query.offset:
                continue
            found.append(_result(query, row, header, root))
            if len(found) >= query.limit:
                break
        return found

    def _candidates(self, store: FrameStore, source: str, query: Query) -> Iterator[_Row]:
        """Yield what the index holds, cut to the window where nothing else must match."""
        parameters: dict[str, Any] = {"source": source}
        conditions = []
        for tag, uids in query.uids.items():
            column = _UID_COLUMNS[tag]
            parameters[column] = uids
            conditions.append(f"f.{column} = ANY(%({column})s)")
        window = "" if query.matches else " LIMIT %(limit)s OFFSET %(offset)s"
        parameters |= {"limit": query.limit, "offset": query.offset}
        where = "".join(f" AND {condition}" for condition in conditions)
        for row in store.query(_STATEMENTS[query.level].format(where=where, window=window), parameters):
            yield _Row(*row)

    def _header(self, row: _Row) -> Header:
        key = (row.path, row.mtime_ns or 0)
        header = self._headers.get(key)
        if header is None:
            try:
                header = self._read_header(row.path)
            except (OSError, ValueError, LookupError):
                header = {}  # the file is gone or damaged: its UIDs are still known
            self._headers[key] = header
            while len(self._headers) > _MOST_HEADERS:
                self._headers.popitem(last=False)
        return header


class _Row(NamedTuple):
    """What the index says of a study, series or instance; `path` is one of its files."""

    study: str
    series: str | None
    instance: str | None
    path: str
    mtime_ns: int | None
    series_count: int
    instance_count: int
    transfer_syntax: str | None


_FROM = """
FROM voxtier.file AS f
WHERE f.source_id = (SELECT source_id FROM voxtier.source WHERE name = %(source)s)
    AND f.study_instance_uid IS NOT NULL AND f.series_instance_uid IS NOT NULL
    AND f.sop_instance_uid IS NOT NULL{where}
"""
_ONE_FILE = "(array_agg(f.path ORDER BY f.path))[1], (array_agg(f.mtime_ns ORDER BY f.path))[1]"
_STATEMENTS = {
    "study": f"""
SELECT f.study_instance_uid, NULL, NULL, {_ONE_FILE}, count(DISTINCT f.series_instance_uid), count(*), NULL
{_FROM} GROUP BY f.study_instance_uid ORDER BY f.study_instance_uid{{window}}""",
    "series": f"""
SELECT f.study_instance_uid, f.series_instance_uid, NULL, {_ONE_FILE}, 1, count(*), NULL
{_FROM} GROUP BY f.study_instance_uid, f.series_instance_uid
ORDER BY f.study_instance_uid, f.series_instance_uid{{window}}""",
    "instance": f"""
SELECT f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, f.path, f.mtime_ns, 1, 1,
    f.transfer_syntax_uid
{_FROM} ORDER BY f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, f.path{{window}}""",
}


def _result(query: Query, row: _Row, header: Header, root: str) -> dict[str, Any]:
    levels = {"study": ["study"], "series": ["study", "series"], "instance": ["study", "series", "instance"]}
    wanted = {tag for level in levels[query.level] for tag in _TAGS[level]} | query.included
    if "all" in query.included:
        wanted |= {tag for tag in header if tag != "7FE00010"}
    result = {tag: header[tag] for tag in wanted if tag in header}
    url = f"{root}/studies/{row.study}"
    result[_STUDY] = _of("UI", row.study)
    if query.level == "study":
        result["00201206"] = _of("IS", row.series_count)
        result["00201208"] = _of("IS", row.instance_count)
        result["00080061"] = header.get("00080061") or {"vr": "CS", **_value_of(header, "00080060")}
    if row.series is not None:
        url += f"/series/{row.series}"
        result[_SERIES] = _of("UI", row.series)
        if query.level == "series":
            result["00201209"] = _of("IS", row.instance_count)
    if row.instance is not None:
        url += f"/instances/{row.instance}"
        result[_INSTANCE] = _of("UI", row.instance)
        if row.transfer_syntax:
            result["00083002"] = _of("UI", row.transfer_syntax)
    result["00081190"] = _of("UR", url)
    return dict(sorted(result.items()))


def _of(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _value_of(header: Header, tag: str) -> dict[str, Any]:
    return {"Value": header[tag]["Value"]} if header.get(tag, {}).get("Value") else {}


def matches(element: Mapping[str, Any] | None, wanted: str) -> bool:
    """Return whether an element matches a value (PS3.4 C.2.2.2): one of its values is enough.

    Parameters
    ----------
    element : mapping or None
        The element in the DICOM JSON model; None where the header has none.
    wanted : str
        A value, with wildcards ``*`` and ``?``; a range ``from-to`` for dates and times.

    Returns
    -------
    bool
        Names of persons match in any case.
    """
    vr = (element or {}).get("vr", "")
    values = [_text(value) for value in (element or {}).get("Value", [])]
    if vr in ("DA", "TM", "DT") and "-" in wanted and not re.search(r"[+-]\d{4}$", wanted):
        first, _, last = wanted.partition("-")
        return any((not first or value >= first) and (not last or value <= last + "~") for value in values)
    if vr in ("DA", "TM", "DT", "IS", "DS", "US", "UL", "SS", "SL"):
        return wanted in values
    if wanted.strip("*") == "":
        return True
    pattern = re.compile(fnmatch.translate(wanted.replace("[", "[[]")), re.I if vr == "PN" else 0)
    return any(pattern.match(value) for value in values or [""])


def _text(value: object) -> str:
    if isinstance(value, Mapping):  # the name of a person
        return str(next(iter(value.values()), ""))
    return "" if value is None else str(value)


def to_json(results: list[dict[str, Any]]) -> bytes:
    """Return results as the body of a response."""
    return json.dumps(results, ensure_ascii=False, separators=(",", ":")).encode()

"""The SQL of searches, over the frame index and over the search index."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from voxtier.frames.gateway.search.matching import rule_of, take_spans
from voxtier.frames.gateway.search.query import (
    AVAILABILITY,
    COUNTED_TAGS,
    INSTANCES_OF_SERIES,
    INSTANCES_OF_STUDY,
    MODALITIES,
    SERIES_OF_STUDY,
    TRANSFER_SYNTAX,
    Query,
)
from voxtier.frames.sources.address import is_address, is_text
from voxtier.frames.store.search_index import FILE_STATE, INSTANCE, SERIES, SHARED_TAGS, STUDY
from voxtier.frames.store.statements import SOURCE_ID

_COLUMNS = {STUDY: "study_instance_uid", SERIES: "series_instance_uid", INSTANCE: "sop_instance_uid"}
_HASHED = (
    "hashtextextended({table}.{column}, 0) = ANY (ARRAY("
    "SELECT hashtextextended(uid, 0) FROM unnest(%({column})s::text[]) AS uid))"
)

_FROM = f"""
FROM voxtier.file AS f
WHERE f.source_id = {SOURCE_ID} AND f.study_instance_uid IS NOT NULL AND f.series_instance_uid IS NOT NULL
    AND f.sop_instance_uid IS NOT NULL{{where}}
"""
_FILES = f"""array_agg(f.path ORDER BY f.path), array_agg({FILE_STATE} ORDER BY f.path),
    array_agg(f.series_instance_uid ORDER BY f.path), array_agg(f.sop_instance_uid ORDER BY f.path)"""
# Of copies of an instance the first, in the order of paths. To sort keys alone takes half the time.
_INSTANCES = f"""
    SELECT DISTINCT ON (f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid) f.key
    {_FROM} ORDER BY f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, f.path"""
# The page first, then what is counted of it. Of a study the first file of each series, in the order of paths.
_BY_HEADERS = {
    "study": f"""
WITH page AS (
    SELECT DISTINCT f.study_instance_uid AS study {_FROM} ORDER BY study{{window}}
), counted AS (
    SELECT page.study, min(f.path COLLATE "C") AS path,
        count(DISTINCT f.sop_instance_uid) AS instances
    FROM page JOIN voxtier.file AS f ON f.study_instance_uid = page.study
        AND hashtextextended(f.study_instance_uid, 0) = hashtextextended(page.study, 0)
    WHERE f.source_id = {SOURCE_ID} AND f.series_instance_uid IS NOT NULL
        AND f.sop_instance_uid IS NOT NULL{{visible}}
    GROUP BY page.study, f.series_instance_uid
)
SELECT counted.study, NULL, NULL, count(*), sum(counted.instances)::bigint, NULL, {_FILES}
FROM counted JOIN voxtier.file AS f ON f.path = counted.path AND f.source_id = {SOURCE_ID}
GROUP BY counted.study ORDER BY counted.study""",
    "series": f"""
WITH page AS (
    SELECT DISTINCT f.study_instance_uid AS study, f.series_instance_uid AS series
    {_FROM} ORDER BY study, series{{window}}
), counted AS (
    SELECT page.study, page.series, min(f.path COLLATE "C") AS path,
        count(DISTINCT f.sop_instance_uid) AS instances
    FROM page JOIN voxtier.file AS f ON f.series_instance_uid = page.series
        AND f.study_instance_uid = page.study
        AND hashtextextended(f.series_instance_uid, 0) = hashtextextended(page.series, 0)
    WHERE f.source_id = {SOURCE_ID} AND f.sop_instance_uid IS NOT NULL{{visible}}
    GROUP BY page.study, page.series
)
SELECT counted.study, counted.series, NULL, 1::bigint, counted.instances, NULL, {_FILES}
FROM counted JOIN voxtier.file AS f ON f.path = counted.path AND f.source_id = {SOURCE_ID}
GROUP BY counted.study, counted.series, counted.instances ORDER BY counted.study, counted.series""",
    "instance": f"""
SELECT f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, 1::bigint, 1::bigint,
    f.transfer_syntax_uid, ARRAY[f.path], ARRAY[{FILE_STATE}],
    ARRAY[f.series_instance_uid], ARRAY[f.sop_instance_uid]
FROM ({_INSTANCES}{{window}}) AS page JOIN voxtier.file AS f USING (key)
ORDER BY f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid""",
}
_NEXT = f"""
SELECT f.path, {FILE_STATE}, f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid
{_FROM} AND f.path > %(path)s ORDER BY f.path LIMIT %(limit)s"""
BELOW = "f.path || '/' ^@ ANY (%(prefixes)s::text[])"
_ALL_BELOW = f"""
SELECT NOT EXISTS (SELECT {_FROM.format(where="")} AND NOT {BELOW})"""
_VISIBLE = " AND voxtier.may_see(f.allowed_groups)"
_WINDOW = " LIMIT %(limit)s OFFSET %(offset)s"


def prefixes_of(roots: Sequence[str]) -> list[str]:
    """Return what the paths of files below roots begin with, a slash behind each; they hold text alone."""
    return [f"{root.rstrip('/')}/" for root in roots if is_text(root)]


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Return whether a path, with its links resolved, or an address lies below a root; no root allows all."""
    if not roots:
        return True
    return all(
        is_named_below(name, roots) for name in {path, path if is_address(path) else os.path.realpath(path)}
    )


def is_named_below(name: str, roots: Sequence[str]) -> bool:
    """Return whether a path or an address lies below a root by its letters; no root allows all."""
    return not roots or any(f"{name}/".startswith(f"{root.rstrip('/')}/") for root in roots)


def from_headers(
    source: str, query: Query, roots: Sequence[str], *, for_groups: bool
) -> tuple[str, dict[str, Any]]:
    """Return a statement for the rows of a search and the files whose headers it needs, and its parameters.

    Parameters
    ----------
    source : str
        Name of the source.
    query : Query
        The search. Its window is part of the statement only where no header must match.
    roots : sequence of str
        Files, folders and prefixes of stores below which files are wanted; empty for all.
    for_groups : bool
        Whether only rows that the groups of the transaction may see are wanted.

    Returns
    -------
    str
        The statement.
    dict
        Its parameters.
    """
    parameters: dict[str, Any] = {"source": source, "limit": query.limit, "offset": query.offset}
    visible = _visible(roots, parameters, for_groups=for_groups)
    where = _uids("f", query.uids, parameters, hashed=True) + visible
    window = "" if query.matches else _WINDOW
    return _BY_HEADERS[query.level].format(where=where, window=window, visible=visible), parameters


def all_below(source: str, roots: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return a statement that tells whether all files of searches are below roots by their names."""
    return _ALL_BELOW, {"source": source, "prefixes": prefixes_of(roots)}


def next_files(
    source: str,
    uids: dict[str, list[str]],
    after: str,
    limit: int,
    roots: Sequence[str],
    *,
    for_groups: bool,
) -> tuple[str, dict[str, Any]]:
    """Return a statement for the files of UIDs behind a path, in the order of paths, and its parameters.

    Parameters
    ----------
    source : str
        Name of the source.
    uids : dict
        UIDs of the files, by the tag of their attribute.
    after : str
        The path.
    limit : int
        Most files.
    roots : sequence of str
        See `from_headers`.
    for_groups : bool
        See `from_headers`.

    Returns
    -------
    str
        The statement.
    dict
        Its parameters.
    """
    parameters: dict[str, Any] = {"source": source, "path": after, "limit": limit}
    where = _uids("f", uids, parameters, hashed=True)
    where += _visible(roots, parameters, for_groups=for_groups)
    return _NEXT.format(where=where), parameters


# The next copy of an instance whose first one could not be read.
_READ_COPY = f"""
        SELECT i.header_id, i.attributes, f.path
        FROM voxtier.file AS f JOIN voxtier_search.instance AS i USING (key)
        WHERE NOT first.is_read AND f.source_id = {SOURCE_ID}
            AND f.study_instance_uid = s.study_instance_uid
            AND f.series_instance_uid = s.series_instance_uid AND f.sop_instance_uid = s.sop_instance_uid
            AND hashtextextended(f.sop_instance_uid, 0) = hashtextextended(s.sop_instance_uid, 0)
            AND i.is_read
        ORDER BY f.path LIMIT 1"""
# One file of those that have the attributes of study and series.
_HOLDER = """(SELECT f.path FROM voxtier_search.instance AS i JOIN voxtier.file AS f USING (key)
        WHERE i.header_id = h.header_id LIMIT 1)"""
_BY_INDEX = {
    "study": f"""
SELECT study.study_instance_uid, NULL, NULL, NULL, {{holder}}, h.attributes, NULL{{counted}}
FROM voxtier_search.study AS study JOIN voxtier_search.header AS h USING (header_id)
WHERE study.source_id = {SOURCE_ID}{{where}}{{matching}}
ORDER BY study.study_instance_uid{{window}}""",
    "series": f"""
SELECT series.study_instance_uid, series.series_instance_uid, NULL, NULL, {{holder}}, h.attributes,
    NULL{{counted}}
FROM voxtier_search.series AS series JOIN voxtier_search.header AS h USING (header_id){{of_levels}}
WHERE series.source_id = {SOURCE_ID}{{where}}{{matching}}
ORDER BY series.study_instance_uid, series.series_instance_uid{{window}}""",
    "instance": f"""
SELECT s.study_instance_uid, s.series_instance_uid, s.sop_instance_uid, s.transfer_syntax_uid, i.path,
    h.attributes, i.attributes{{counted}}
FROM ({_INSTANCES}{{first_window}}) AS page JOIN voxtier.file AS s USING (key)
    JOIN voxtier_search.instance AS first USING (key)
    LEFT JOIN LATERAL ({_READ_COPY}) AS copy ON true
    CROSS JOIN LATERAL (SELECT coalesce(copy.header_id, first.header_id) AS header_id,
        coalesce(copy.attributes, first.attributes) AS attributes, coalesce(copy.path, s.path) AS path) AS i
    JOIN voxtier_search.header AS h ON h.header_id = i.header_id{{of_levels}}
WHERE true{{matching}}
ORDER BY s.study_instance_uid, s.series_instance_uid, s.sop_instance_uid{{window}}""",
}
# What is counted of the levels above that of a search: by the alias that this has, which has their UIDs.
_OF_LEVELS = {
    "study": """
    JOIN voxtier_search.study AS study ON study.source_id = {of}.source_id
        AND study.study_instance_uid = {of}.study_instance_uid""",
    "series": """
    JOIN voxtier_search.series AS series ON series.source_id = {of}.source_id
        AND series.study_instance_uid = {of}.study_instance_uid
        AND series.series_instance_uid = {of}.series_instance_uid""",
}
# What an attribute is looked for in: those of the header, of the instance, or what is computed for the level.
_HEADER = "h.attributes, h.names"
_OWN = "i.attributes, '{}'"
_COUNTED = {
    MODALITIES: "study.modalities",
    SERIES_OF_STUDY: "study.series",
    INSTANCES_OF_STUDY: "study.instances",
    INSTANCES_OF_SERIES: "series.instances",
}
_COMPUTED = {
    AVAILABILITY: ("CS", "'[\"ONLINE\"]'::jsonb"),
    **{tag: ("IS", f"jsonb_build_array({column})") for tag, column in _COUNTED.items()},
    MODALITIES: ("CS", f"to_jsonb({_COUNTED[MODALITIES]})"),
    TRANSFER_SYNTAX: ("UI", "jsonb_build_array(s.transfer_syntax_uid)"),
}


def from_search_index(source: str, query: Query, *, with_files: bool) -> tuple[str, dict[str, Any]]:
    """Return a statement for the results of a search, and its parameters.

    Parameters
    ----------
    source : str
        Name of the source.
    query : Query
        A search for what the search index holds.
    with_files : bool
        Whether the path of a file that has the attributes of each result is wanted.

    Returns
    -------
    str
        The statement; what is counted stands last, in the order of its tags.
    dict
        Its parameters.
    """
    parameters: dict[str, Any] = {"source": source, "limit": query.limit, "offset": query.offset}
    is_of_files = query.level == "instance"
    where = _uids("f" if is_of_files else query.level, query.uids, parameters, hashed=is_of_files)
    matching = ""
    keys = {tag: wanted for (tag,), wanted in query.matches.items()}
    for number, ((date, time), span) in enumerate(take_spans(keys).items()):
        parameters |= {f"date{number}": date, f"time{number}": time, f"span{number}": json.dumps(span)}
        matching += (
            f" AND voxtier_search.is_between({_place(date)}, %(date{number})s, %(time{number})s,"
            f" %(span{number})s::jsonb)"
        )
    for number, (tag, wanted) in enumerate(keys.items()):
        parameters |= {f"tag{number}": tag, f"rule{number}": json.dumps(rule_of(wanted))}
        matching += f" AND voxtier_search.matches({_place(tag)}, %(tag{number})s, %(rule{number})s::jsonb)"
    # Where nothing must match, the window is that of the files, so that only their attributes are fetched.
    is_first = is_of_files and not matching
    windows = {"first_window": _WINDOW if is_first else "", "window": "" if is_first else _WINDOW}
    parts = {"where": where, "matching": matching, "holder": _HOLDER if with_files else "NULL"}
    parts |= {
        "counted": "".join(f", {_COUNTED[tag]}" for tag in sorted(query.counted)),
        "of_levels": _of_levels(query),
    }
    return _BY_INDEX[query.level].format(**parts, **windows), parameters


def _of_levels(query: Query) -> str:
    """Return joins with the tables of counts, of those levels of which something is told."""
    of = "s" if query.level == "instance" else query.level
    levels = [each for each in _OF_LEVELS if each != query.level and COUNTED_TAGS[each] & query.counted]
    return "".join(_OF_LEVELS[each].format(of=of) for each in levels)


def _place(tag: str) -> str:
    return _computed(tag) if tag in _COMPUTED else _HEADER if tag in SHARED_TAGS else _OWN


def _computed(tag: str) -> str:
    vr, value = _COMPUTED[tag]
    return f"jsonb_build_object('{tag}', jsonb_build_object('vr', '{vr}', 'Value', {value})), '{{}}'"


def _visible(roots: Sequence[str], parameters: dict[str, Any], *, for_groups: bool) -> str:
    """Return conditions on files of which something may be told."""
    if roots:
        parameters["prefixes"] = prefixes_of(roots)
    return (f" AND {BELOW}" if roots else "") + (_VISIBLE if for_groups else "")


def _uids(table: str, uids: dict[str, list[str]], parameters: dict[str, Any], *, hashed: bool) -> str:
    """Return conditions on UIDs; of files by their indexes, which hold hashes."""
    conditions = []
    for tag, given in uids.items():
        column = _COLUMNS[tag]
        parameters[column] = given
        conditions.append(f"{table}.{column} = ANY (%({column})s::text[])")
        if hashed:
            conditions.append(_HASHED.format(table=table, column=column))
    return "".join(f" AND {condition}" for condition in conditions)

"""Which subject, session, run and series an image is: one rule for its path, whichever way it was named.

A BIDS name (``sub-01_ses-2_run-1_T1w``) is read as BIDS defines it. Of any other name, the word that states
the series and the entities (``ses-2``) are taken out, and what is left is the subject.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The spellings that scanners and challenges use for a series, without the signs between their words.
_SERIES = {
    "T1gd": ("t1gd", "t1ce", "t1c", "t1post"),
    "T1w": ("t1w", "t1mprage", "mprage", "t1", "t1n"),
    "FLAIR": ("flair", "t2flair", "t2f"),
    "T2w": ("t2w", "t2"),
    "bold": ("bold", "fmri", "func"),
    "dwi": ("dwi", "dti"),
    "ADC": ("adc",),
    "PET": ("pet",),
    "CT": ("ct",),
    "seg": ("seg", "mask", "label", "labels", "dseg"),
}
_SPELLINGS = {spelling: series for series, spellings in _SERIES.items() for spelling in spellings}

# BIDS 1.10, appendix "Entities".
_ENTITY = re.compile(
    "(sub|ses|sample|task|tracksys|acq|nuc|voi|ce|trc|stain|rec|dir|run|mod|echo|flip|inv|mt|part|proc|hemi"
    "|space|split|recording|chunk|seg|res|den|label|desc|atlas|scale|tpl|cohort)-[A-Za-z0-9+]+",
    re.IGNORECASE,
)
# Folders that BIDS puts between a subject or session and its files (BIDS 1.10, "Data type").
_DATATYPE = re.compile("anat|func|dwi|fmap|perf|pet|mrs|eeg|meg|ieeg|micr|nirs|beh|motion")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a path tells of an image.

    Parameters
    ----------
    subject : str or None
        None where it cannot be told; `problem` says why.
    series : str or None
        The series that the name states.
    parts : tuple of str
        What else tells this image from others of the subject and the series, in the order of the name.
    session, run : str or None
        Values of the BIDS entities ``ses`` and ``run``.
    problem : str
        Why there is no subject.
    """

    subject: str | None
    series: str | None
    parts: tuple[str, ...] = ()
    session: str | None = None
    run: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a name, between signs."""

    text: str
    start: int
    end: int


def identify(path: Path, collection: str | None = None) -> Identity:
    """Return what a path tells of an image.

    Parameters
    ----------
    path : Path
        The file; its name counts, and the BIDS folders around it.
    collection : str, optional
        Collection that the caller puts it into: its name in the file's name is not part of the subject.

    Returns
    -------
    Identity
        What is told.

    Notes
    -----
    Brain Imaging Data Structure 1.10, "File name structure".
    """
    name = stem_of(path)
    chunks = [_Word(m.group(), m.start(), m.end()) for m in re.finditer(r"[^_\s.]+", name)]
    entities = [chunk for chunk in chunks if _key(chunk.text) is not None]
    free = [chunk for chunk in chunks if chunk not in entities]
    words = [
        _Word(match.group(), chunk.start + match.start(), chunk.start + match.end())
        for chunk in free
        for match in re.finditer(r"[^-]+", chunk.text)
    ]
    found = _series_in(name, words)
    subjects = {chunk.text for chunk in entities if _key(chunk.text) == "sub"}
    chosen, series = _choose(words, found, collection)
    if chosen is None and series is None and collection is None and subjects and free:
        last = free[-1]  # a suffix of BIDS that has no spelling above, such as `swi`
        if last is chunks[-1] and last.text[0].isalpha():
            chosen, series = last, last.text
    folder_subject, folder_session, is_strict = _folders_of(path)
    if len(subjects) > 1:
        return Identity(None, series, problem=f"it names {' and '.join(sorted(subjects))}")
    subject = next(iter(subjects), None)
    others = [word for _, word in found if chosen is None or not _overlap(word, chosen)]
    rest = _cut(name, [chosen, *others, *entities])
    if subject is None and is_strict:
        subject = folder_subject
    elif subject is not None and is_strict and folder_subject != subject:
        return Identity(None, series, problem=f"it names {subject} and lies in {folder_subject}")
    if subject is not None:
        parts = [chunk for chunk in chunks if _key(chunk.text) != "sub"]
        told = tuple(text for chunk in parts if (text := _cut_one(chunk, chosen)))
    else:
        told = tuple(word.text for word in sorted([*others, *entities], key=lambda word: word.start))
        problem = _why_untold(rest, [chosen, *others], folder_subject)
        if problem:
            return Identity(None, series, told, problem=problem)
        subject = folder_subject if not rest else "_".join(word.text for word in rest)
    values = {_key(chunk.text): chunk.text.partition("-")[2] for chunk in entities}
    session = values.get("ses")
    if folder_session is not None and subject == folder_subject:
        if session is None:
            told, session = (f"ses-{folder_session}", *told), folder_session
        elif session != folder_session:
            return Identity(
                None, series, told, problem=f"it names ses-{session} and lies in ses-{folder_session}"
            )
    return Identity(subject, series, told, session, values.get("run"))


def stem_of(path: Path) -> str:
    """Return a file's name without the suffixes of images."""
    return re.sub(r"\.(nii|hdr|img|dcm)(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _key(chunk: str) -> str | None:
    """Return the key of a BIDS entity, None for any other part of a name."""
    match = _ENTITY.fullmatch(chunk)
    return match.group(1).lower() if match else None


def _overlap(one: _Word, other: _Word) -> bool:
    return one.start < other.end and other.start < one.end


def _series_in(name: str, words: Sequence[_Word]) -> list[tuple[str, _Word]]:
    """Return the series that words state, two neighbours together (``t1_ce``) before one of them."""
    found: list[tuple[str, _Word]] = []
    for place, word in enumerate(words):
        if found and word.start < found[-1][1].end:
            continue
        for end in (words[place + 1].end if place + 1 < len(words) else word.end, word.end):
            text = name[word.start : end]
            series = _SPELLINGS.get(re.sub(r"[_\-.\s]", "", text).lower())
            if series is not None:
                found.append((series, _Word(text, word.start, end)))
                break
    return found


def _choose(
    words: Sequence[_Word], found: Sequence[tuple[str, _Word]], collection: str | None
) -> tuple[_Word | None, str | None]:
    """Return the part of the name that states the series or the collection, and the series."""
    last = found[-1] if found else (None, None)
    if collection is None:
        return last[1], last[0]
    wanted = re.findall(r"[^_\-.\s]+", collection.lower())
    for place in range(len(words) - len(wanted), -1, -1) if wanted else ():
        group = words[place : place + len(wanted)]
        if [word.text.lower() for word in group] == wanted:
            series = next((s for s, word in found if word.start >= group[0].start), last[0])
            return _Word(collection, group[0].start, group[-1].end), series
    named = _SPELLINGS.get("".join(wanted))
    same = [word for series, word in found if series == named]
    return (same[-1] if same else None), last[0]


def _cut(name: str, parts: Sequence[_Word | None]) -> list[_Word]:
    """Return what is left of a name without some parts, and without the signs around them."""
    left, start = [], 0
    cuts = sorted((part.start, part.end) for part in parts if part is not None)
    for low, high in [*cuts, (len(name), len(name))]:
        text = name[start:low]
        bare = text.strip("_-. \t")
        if bare:
            begin = start + text.index(bare)
            left.append(_Word(bare, begin, begin + len(bare)))
        start = max(start, high)
    return left


def _cut_one(chunk: _Word, part: _Word | None) -> str:
    if part is None or not _overlap(chunk, part):
        return chunk.text
    low, high = max(part.start - chunk.start, 0), part.end - chunk.start
    return "-".join(text for text in (chunk.text[:low].strip("-"), chunk.text[high:].strip("-")) if text)


def _why_untold(rest: Sequence[_Word], series: Sequence[_Word | None], folder: str | None) -> str:
    """Return why the words of a name that is not BIDS do not tell the subject; empty where they do."""
    if not rest:
        return "" if folder is not None else "it holds only the series and entities"
    if folder is not None:
        return f"it names {rest[0].text} and lies in {folder}"
    for part in series:
        if part is not None and rest[0].start < part.start < rest[-1].start:
            sides = " and ".join(repr(word.text) for word in (rest[0], rest[-1]))
            return f"{sides} stand on both sides of {part.text!r}"
    return ""


def _folders_of(path: Path) -> tuple[str | None, str | None, bool]:
    """Return the subject and session of the BIDS folders around a file, and whether they are surely those.

    ``sub-01/anat/`` and ``sub-01/ses-2/`` are BIDS; ``sub-01/`` alone may be any folder of that name.
    """
    parents = [parent.name for parent in path.absolute().parents]
    depth = 1 if parents and _DATATYPE.fullmatch(parents[0]) else 0
    session = None
    if re.fullmatch(r"ses-[A-Za-z0-9]+", "".join(parents[depth : depth + 1])):
        session = parents[depth][4:]
        depth += 1
    subject = "".join(parents[depth : depth + 1])
    if not re.fullmatch(r"sub-[A-Za-z0-9]+", subject):
        return None, None, False
    return subject, session, depth > 0

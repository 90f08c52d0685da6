"""``voxtier frames metadata``: the attributes of files, without a database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from voxtier.cli.frames.files import PATHS, files_exit_code, given_paths, is_given
from voxtier.cli.options import AS_JSON
from voxtier.system.text import format_count, on_one_line

# Characters of a value that are shown to people.
_SHOWN = 72


@click.command()
@PATHS
@AS_JSON
def metadata(paths: tuple[str, ...], as_json: bool) -> int:
    """Print the attributes of each file, pixels left out.

    \b
    voxtier frames metadata slide.dcm
    voxtier frames metadata /data/dicom --json

    PATH is a file, a folder (every file below it) or - for paths on stdin. What is printed names the patient.
    With --json, metadata is an object of the DICOM JSON Model (PS3.18 F), binary values included; without it,
    long values are cut. Exit code 1 when a file is refused or there is none, 2 when a PATH is not there.
    """
    from voxtier.errors import FormatError, SourceError
    from voxtier.frames.dicom.metadata import read_metadata_json
    from voxtier.frames.indexing.paths import iter_files

    refused = absent = count = 0
    for path in iter_files(given_paths(paths), extension=None):
        name, count = str(path), count + 1
        try:
            text = read_metadata_json(path)
        except (FormatError, SourceError) as error:
            refused += 1
            absent += is_given(paths, path, error)
            if as_json:
                refusal = {"kind": error.kind, "offset": error.offset, "detail": error.detail}
                click.echo(json.dumps({"path": name, "metadata": None, "error": refusal}))
            else:
                click.echo(f"{on_one_line(name)}: {error}")
            continue
        if as_json:
            click.echo(b'{"path": %b, "metadata": %b, "error": null}' % (json.dumps(name).encode(), text))
        else:
            attributes = json.loads(text, parse_float=str, parse_int=str)  # the digits of the file
            click.echo("\n".join([on_one_line(name), *_lines(attributes, "  ")]))
    return files_exit_code(paths, count, refused, absent)


def _lines(attributes: dict[str, Any], indent: str) -> Iterator[str]:
    for tag, attribute in attributes.items():
        vr, values = attribute["vr"], attribute.get("Value", [])
        head = f"{indent}({tag[:4]},{tag[4:]}) {vr}"
        if vr != "SQ":
            yield f"{head} {_shown(attribute)}".rstrip()
            continue
        yield f"{head} {format_count(len(values), 'item')}"
        for number, item in enumerate(values, 1):
            yield f"{indent}  item {number:,}"
            yield from _lines(item, f"{indent}    ")


def _shown(attribute: dict[str, Any]) -> str:
    if "InlineBinary" in attribute:
        encoded = attribute["InlineBinary"]
        return format_count(len(encoded) // 4 * 3 - encoded.count("="), "byte")
    texts = []
    for value in attribute.get("Value", []):
        groups = value.values() if isinstance(value, dict) else [value]
        texts.append("=".join("" if each is None else str(each) for each in groups))
    text = on_one_line("\\".join(texts))
    if attribute["vr"] == "UI" and (name := _uid_name(text)):
        return f"{text} ({name})"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def _uid_name(uid: str) -> str | None:
    """Return what PS3.6 A calls a UID; of other UIDs than transfer syntaxes only pydicom knows that."""
    from voxtier.frames.dicom.explain import transfer_syntax_name

    if not uid.startswith("1.2.840.10008."):
        return None
    if (name := transfer_syntax_name(uid)) != "unknown":
        return name
    try:
        from pydicom.uid import UID
    except ImportError:
        return None
    return None if UID(uid).name == uid else UID(uid).name

"""``voxtier tensors adopt | explain | map``: which file is which volume, and how it was made."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, GivenPath, refuse_empty_paths, say
from voxtier.cli.tensors.options import FOLDER, config_option, exit_code, load_cache
from voxtier.system.text import format_count


@click.command("adopt")
@click.argument("folder", type=FOLDER, required=False)
@config_option("Take folder, volume names and sources from this file.")
@click.option(
    "--same-pipeline", is_flag=True, help="Say that the files were made with today's reader and versions."
)
@click.option("--duplicates", is_flag=True, help="Also report files of equal content.")
@AS_JSON
def adopt_command(
    folder: Path | None, config: Path | None, same_pipeline: bool, duplicates: bool, as_json: bool
) -> int:
    """Check a cache that anybody made, and record what it holds.

    \b
    voxtier tensors adopt --config config.yaml

    The manifest (in .voxtier beside the cache folder) makes --since-last, --quick, explain and evict work.
    Exit code 1 when there is no file, or one that is not fine.
    """
    from voxtier.tensors.identity.fingerprint import describe_processing
    from voxtier.tensors.keeping.adopt import adopt
    from voxtier.tensors.keeping.disk_usage import find_duplicates
    from voxtier.tensors.manifest import Manifest
    from voxtier.tensors.states import FINE

    volumes: dict[str, str] = {}
    raw_files: dict[str, Path] = {}
    today = None
    if config is not None:
        settings, own, volumes, raw_files = load_cache(config)
        folder = folder or own
        raw_files = {key: path for key, path in raw_files.items() if path.is_file()}
        today = describe_processing(settings.processing) if same_pipeline else None
    if folder is None:
        raise click.UsageError("name a cache folder, or a configuration with --config")
    counts: Counter[str] = Counter()
    keys_of: dict[Path, set[str]] = {}
    for state in adopt(folder, volumes=volumes, sources=raw_files, fingerprint=today):
        counts[state.state] += 1
        path = Path(state.path)
        keys_of.setdefault(path.parent, set()).add(path.stem)
        if as_json:
            say(state.as_json())
        elif state.state not in FINE:
            say(f"{state.state}: {state.path}: {state.detail}")
    text = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    say(text or f"{folder}: there is no file", err=as_json)
    if duplicates:
        for parent, keys in sorted(keys_of.items()):
            rows = Manifest(parent).read()
            for group in find_duplicates({key: rows[key] for key in keys & rows.keys()}):
                say(json.dumps({"equal": group}) if as_json else "equal: " + " ".join(group))
    return exit_code(counts) if counts else EXIT_FINDINGS


@click.command("explain")
@config_option("File with the parameters of today.", required=True)
@AS_JSON
def explain_command(config: Path, as_json: bool) -> int:
    """Say which files would be made differently today, and why.

    \b
    voxtier tensors explain --config config.yaml

    The directory hash covers neither the reader nor versions nor the source's bytes; the manifest does.
    Exit code 1 when there are such files, files of which the manifest does not say how they were made, or no
    file at all; 3 when the cache folder or the manifest cannot be read.
    """
    from voxtier.tensors.identity.fingerprint import describe_processing
    from voxtier.tensors.keeping.adopt import find_stale, has_tensors

    settings, folder, volumes, _ = load_cache(config)
    if not has_tensors(folder):
        say(f"voxtier: {folder}: there is no file", err=True)
        return EXIT_FINDINGS
    stale = 0
    unknown: list[str] = []
    for found in find_stale(folder, describe_processing(settings.processing), unknown.append):
        stale += 1
        row = {"key": found.key, "volume": found.volume, "reasons": found.reasons}
        say(json.dumps(row) if as_json else f"{found.key}: {'; '.join(found.reasons)}")
    for key in unknown if as_json else []:
        say(json.dumps({"key": key, "volume": volumes.get(key), "reasons": ["no record of how it was made"]}))
    if unknown:
        say(
            f"without a record of how they were made: {format_count(len(unknown), 'file')}; where you know"
            " that it was by today's settings, `voxtier tensors adopt --same-pipeline` records that",
            err=True,
        )
    if not stale and not unknown:
        say("no file would be made differently today", err=True)
    return EXIT_FINDINGS if stale or unknown else EXIT_OK


@click.command("map")
@click.option(
    "--csv-path",
    required=True,
    multiple=True,
    callback=refuse_empty_paths,
    help="CSV file with a column VolumeName; repeatable.",
)
@click.option(
    "--output-path", default="hash_to_volume_map.json", type=GivenPath(path_type=Path), help="File to write."
)
@click.option(
    "--legacy-hex", is_flag=True, help="Write 64-digit keys, as the predecessor did; they name no file."
)
@click.option("--redact", is_flag=True, help="Number the volumes instead of naming them.")
@AS_JSON
def map_command(
    csv_path: tuple[str, ...], output_path: Path, legacy_hex: bool, redact: bool, as_json: bool
) -> int:
    """Write {file name: VolumeName} as JSON.

    \b
    voxtier tensors map --csv-path train.csv --output-path map.json

    The map re-identifies the files, so it is readable by its owner only. It replaces an older map, and no
    other file. Exit code 1 when the lists name no volume.
    """
    from voxtier.tensors.identity.keys import read_volume_names
    from voxtier.tensors.identity.mapping import hash_to_volume, write_map

    names = read_volume_names(csv_path)
    write_map(output_path, hash_to_volume(names, legacy=legacy_hex, redact=redact))
    if as_json:
        say(json.dumps({"path": str(output_path), "volumes": len(names)}))
    say(f"{output_path}: {format_count(len(names), 'volume')}", err=True)
    return EXIT_OK if names else EXIT_FINDINGS

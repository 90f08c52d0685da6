"""The configuration file: YAML with ``${VARIABLES}`` and the predecessor's keys, checked when it is read."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtier.errors import ConfigError, MissingExtraError
from voxtier.tensors.identity.starter import STARTER, TRAINER_KEYS

ENGINES = ("fused", "stock", "check")
"""Who makes tensors: the core where it gives MONAI's bits, MONAI alone, or both, compared."""
DTYPES = ("float16", "bfloat16", "float32", "float64", "int16", "int32", "uint8")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_REQUIRED = object()
"""Stands for the default of a key that has none."""


@dataclass(frozen=True, slots=True)
class ImageProcessing:
    """The settings of the transforms; every field is part of the directory hash."""

    target_spacing: tuple[float, ...]
    """Millimetres along the three axes."""
    target_shape_dhw: tuple[int, ...]
    """Voxels along the axes (x, y, z) of the array, in spite of its name: the predecessor's order."""
    clip_hu_min: float
    clip_hu_max: float
    orientation_axcodes: str
    scale_b_min: float
    scale_b_max: float
    torch_dtype: str


@dataclass(frozen=True, slots=True)
class Downloads:
    """The Hugging Face dataset of the volumes that are not on disk."""

    repo_id: str
    max_workers: int
    revision: str
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Config:
    """The checked configuration; paths are absolute."""

    path: Path
    img_dir: Path
    cache_dir: Path
    data_dir: Path
    logs_dir: Path
    dir_structure: str
    """``nested`` or ``flat``."""
    subsets: tuple[Path, ...]
    """CSV files with a column ``VolumeName``."""
    processing: ImageProcessing
    downloads: Downloads
    engine: str = "fused"
    """One of `ENGINES`."""


def load_config(path: str | os.PathLike[str], *, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check a configuration file.

    Parameters
    ----------
    path : path-like
        YAML. A ``.env`` beside it or in a folder above it supplies variables that the environment lacks.
    environment : mapping, optional
        Used instead of ``os.environ``.

    Returns
    -------
    Config
        With absolute paths.

    Raises
    ------
    ConfigError
        The file is absent or not YAML, a variable is unset, a key is missing or has a wrong value. The
        message names the key.
    """
    path = Path(path).absolute()
    variables = {**_dotenv(path.parent), **(os.environ if environment is None else environment)}
    try:
        keys = _Keys(path, _expand(_read_yaml(path), variables, path))
        keys.refuse_unknown()
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply, or holds itself") from None

    base = keys.folder("paths.base_project_dir", default=path.parent)
    data_dir = keys.folder("paths.data_dir", base=base)
    structure = keys.text("paths.dir_structure", default="nested")
    if structure not in ("nested", "flat"):
        raise keys.error("paths.dir_structure", "must be 'nested' or 'flat'")
    dtype = keys.text("torch_dtype", default="float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise keys.error("torch_dtype", f"must be one of {', '.join(DTYPES)}")
    engine = keys.text("engine", default="fused")
    if engine not in ENGINES:
        raise keys.error("engine", f"must be one of {', '.join(ENGINES)}")
    axcodes = keys.text("image_processing.orientation_axcodes", default="LPS")
    if len(axcodes) != 3 or not all(set(axcodes) & set(pair) for pair in ("LR", "AP", "SI")):
        raise keys.error("image_processing.orientation_axcodes", "must name each axis once, such as 'LPS'")
    processing = ImageProcessing(
        target_spacing=keys.numbers("image_processing.target_spacing"),
        target_shape_dhw=keys.counts("image_processing.target_shape_dhw"),
        clip_hu_min=keys.number("image_processing.clip_hu_min", default=-1000),
        clip_hu_max=keys.number("image_processing.clip_hu_max", default=1000),
        orientation_axcodes=axcodes,
        scale_b_min=keys.number("image_processing.scale_b_min", default=0.0),
        scale_b_max=keys.number("image_processing.scale_b_max", default=1.0),
        torch_dtype=dtype,
    )
    if processing.clip_hu_min >= processing.clip_hu_max:
        raise keys.error("image_processing.clip_hu_min", "must be below clip_hu_max")
    if processing.scale_b_min >= processing.scale_b_max:
        raise keys.error("image_processing.scale_b_min", "must be below scale_b_max")
    return Config(
        path=path,
        img_dir=keys.folder("paths.img_dir", base=base),
        cache_dir=keys.folder("paths.cache_dir", base=base),
        data_dir=data_dir,
        logs_dir=keys.folder("paths.logs_dir", base=base, default="logs"),
        dir_structure=structure,
        subsets=keys.subsets(data_dir),
        processing=processing,
        engine=engine,
        downloads=Downloads(
            repo_id=keys.text("downloads.repo_id", default="ibrahimhamamci/CT-RATE"),
            max_workers=keys.count("downloads.max_workers", default=8),
            revision=keys.text("downloads.revision", default="main"),
            token=keys.text("downloads.hf_token", default="", may_be_empty=True)
            or variables.get("HF_TOKEN")
            or variables.get("HUGGING_FACE_HUB_TOKEN")
            or None,
        ),
    )


def _parse(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "tensors") from None

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:  # YAML 1.2, 3.2.1.3: keys are unique; PyYAML takes the last one
                        problem = f"the key {key.value} stands twice"
                        raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                    seen.add(key.value)
            return node

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name a configuration with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:  # its text quotes the line, which may hold the token
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}: not YAML{place}: {getattr(error, 'problem', 'unreadable')}") from None


def _dotenv(folder: Path) -> dict[str, str]:
    """Return the variables of the nearest ``.env``."""
    for parent in (folder, *folder.parents):
        candidate = parent / ".env"
        if candidate.is_file():
            try:
                from dotenv import dotenv_values
            except ImportError:
                raise MissingExtraError("python-dotenv", "tensors") from None
            try:
                found = dotenv_values(candidate)
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{candidate}: cannot be read: {error}") from None
            return {key: value for key, value in found.items() if value is not None}
    return {}


def _expand(node: Any, variables: Mapping[str, str], path: Path) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, variables, path) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, variables, path) for value in node]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ConfigError(f"{path}: ${{{match[1]}}} is not set: export it or write it into a .env file")
        return variables[match[1]]

    return _VARIABLE.sub(value_of, node)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


class _Keys:
    """Typed access to the values of a configuration by dotted name; errors name file and key."""

    def __init__(self, path: Path, tree: Any) -> None:
        self._path = path
        self._tree = tree

    def error(self, name: str, what: str) -> ConfigError:
        found = "something else" if name.endswith("token") else repr(self._find(name, None))
        return ConfigError(f"{self._path}: {name} {what}, found {found}")

    def _find(self, name: str, default: Any) -> Any:
        node = self._tree
        for part in name.split("."):
            if not isinstance(node, dict) or node.get(part) is None:
                if default is _REQUIRED:
                    raise ConfigError(f"{self._path}: {name} is missing")
                return default
            node = node[part]
        return node

    def refuse_unknown(self) -> None:
        """Refuse keys that nobody reads; sections of the trainer are not looked into."""
        known = _parse(STARTER)
        sections = {name: set(keys) for name, keys in known.items() if isinstance(keys, dict)}
        for name in self._section("the configuration", self._tree):
            if name in sections:
                for key in self._section(name, self._tree[name]):
                    if key not in sections[name] | TRAINER_KEYS.get(name, frozenset()):
                        raise self._unknown(f"{name}.{key}", str(key), sections)
            elif name not in known and (
                difflib.get_close_matches(str(name), list(known), cutoff=0.75)
                or any(name in keys for keys in sections.values())
            ):
                raise self._unknown(str(name), str(name), sections)

    def _section(self, name: str, node: Any) -> dict[Any, Any]:
        if node is not None and not isinstance(node, dict):  # its text may be the token
            found = type(node).__name__
            raise ConfigError(f"{self._path}: {name} must hold keys with values, found a {found}")
        return node or {}

    def _unknown(self, place: str, key: str, sections: dict[str, set[str]]) -> ConfigError:
        places = {name: f"{section}.{name}" for section, names in sections.items() for name in names}
        places |= {name: name for name in _parse(STARTER)}
        near = difflib.get_close_matches(key, list(places), n=1, cutoff=0.5)
        hint = f"did you mean {places[near[0]]}?" if near else "`voxtier tensors init` prints every key"
        return ConfigError(f"{self._path}: {place} is no key of a configuration; {hint}")

    def text(self, name: str, default: Any = _REQUIRED, *, may_be_empty: bool = False) -> str:
        value = self._find(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be text")
        if not value.strip() and not may_be_empty:
            raise self.error(name, "must not be empty")
        if "\0" in value:
            raise self.error(name, "must not hold a NUL character")
        return value

    def folder(self, name: str, *, base: Path | None = None, default: Any = _REQUIRED) -> Path:
        text = str(self.text(name, default if default is _REQUIRED else str(default)))
        return Path(os.path.abspath((base or self._path.parent) / Path(text).expanduser()))  # noqa: PTH100

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        value = self._find(name, default)
        if not _is_number(value):
            raise self.error(name, "must be a finite number")
        number: float = value
        return number

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self._find(name, _REQUIRED)
        if (
            not isinstance(values, list)
            or len(values) != 3
            or not all(_is_number(value) and value > 0 for value in values)
        ):
            raise self.error(name, "must be three positive numbers")
        return tuple(values)

    def counts(self, name: str) -> tuple[int, ...]:
        values = self.numbers(name)
        if not all(isinstance(value, int) for value in values):
            raise self.error(name, "must be three positive integers")
        return tuple(int(value) for value in values)

    def count(self, name: str, default: int) -> int:
        value = self._find(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, "must be a positive integer")
        return value

    def subsets(self, data_dir: Path) -> tuple[Path, ...]:
        subsets = self._find("paths.data_subsets", _REQUIRED)
        if not isinstance(subsets, dict) or not subsets:
            raise self.error("paths.data_subsets", "must map names (train, valid) to CSV files")
        for name, value in subsets.items():
            if not isinstance(value, str) or not value.strip() or "\0" in value:
                raise self.error(f"paths.data_subsets.{name}", "must be the path of a CSV file")
        return tuple(data_dir / value for value in subsets.values())

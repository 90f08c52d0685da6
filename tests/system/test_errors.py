"""The exception classes: each pickles, has its kin in the standard library, and says what and where."""

from __future__ import annotations

import ast
import errno
import inspect
import multiprocessing
import pickle
from typing import Any

import pytest

from tree.graph import PACKAGE
from voxtier import _core, errors
from voxtier.errors import FormatError, IngestError, SourceError, VoxtierError, error_of

CLASSES = sorted(
    (each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)),
    key=lambda each: each.__name__,
)
# How to make one, where a sentence is not what it takes.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "FormatError": ("bad_table", 2**40, "found 1, wanted 2"),
    "SourceError": ("io_error", 12, "No such file", errno.ENOENT),
    "KeyFaultError": ("a//b", "s3://bucket/a: the listing breaks off"),
    "IngestError": ([("a.nii", "too short"), ("b.nii", "no affine")],),
    "NoStackError": ("gaps", "missing slices (1 after slice 3)"),
    "MissingExtraError": ("torch", "tensors"),
    "LeftOutWarning": ("report.dcm", "no image"),
    "TransientError": ("HTTP 503", 2.5),
    "NotIntactError": (errno.EIO, "bad_crc after writing", "/cache/a.pt"),
}


def make(kind: type[Exception]) -> Exception:
    """Return an error of a class with everything that it can hold."""
    return kind(*ARGUMENTS.get(kind.__name__, ("what, where, what to do",)))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_pickles_with_all_that_it_holds(kind: type[Exception], protocol: int) -> None:
    error = make(kind)
    error.add_note("file: /a")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_every_error_leaves_a_process_pool() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for error in map(make, CLASSES):
            with pytest.raises(type(error)) as caught:
                pool.apply(_raise, (error,))
            assert str(caught.value) == str(error)


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if not issubclass(kind, Warning)])
def test_every_error_has_the_root_and_a_kin_of_the_standard_library(kind: type[Exception]) -> None:
    assert issubclass(kind, VoxtierError)
    kin = {each for each in kind.__mro__ if each.__module__ == "builtins"} - {
        Exception,
        BaseException,
        object,
    }
    assert kin or kind is VoxtierError
    assert not kind.__name__.startswith("_")


def test_no_exception_class_lives_elsewhere() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {ast.unparse(base) for base in node.bases}
                assert not any(base.endswith(("Error", "Exception")) for base in bases), (path, node.name)


def test_the_kinds_of_the_environment_are_those_of_the_core() -> None:
    assert set(_core.ENVIRONMENT_KINDS) == errors.ENVIRONMENT_KINDS
    assert not errors.ENVIRONMENT_KINDS - set(_core.ERROR_KINDS)
    assert not set(errors.VOLUME_KINDS) & set(_core.ERROR_KINDS)


@pytest.mark.parametrize("kind", _core.ERROR_KINDS)
def test_a_kind_decides_the_class(kind: str) -> None:
    error = error_of(kind, 7, "detail")
    assert type(error) is (SourceError if kind in errors.ENVIRONMENT_KINDS else FormatError)
    assert (error.kind, error.offset, error.detail) == (kind, 7, "detail")


def test_an_error_of_the_system_keeps_its_number_and_words() -> None:
    error = SourceError.from_os(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/data/a")
    assert str(error) == "io_error: /data/a: No such file or directory"
    assert error.errno == errno.ENOENT
    assert str(SourceError.from_os(OSError("stopped"))) == "io_error: stopped"
    assert str(SourceError.from_os(TimeoutError(), "/a")) == "io_error: /a: TimeoutError"


def test_an_ingest_names_five_of_its_failures() -> None:
    error = IngestError([(f"{n}.nii", "short") for n in range(7)])
    assert str(error).startswith("images_refused: 7 image(s) refused: 0.nii: short; 1.nii: short")
    assert str(error).endswith("4.nii: short and 2 more")

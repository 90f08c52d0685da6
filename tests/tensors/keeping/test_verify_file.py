"""The verifier against torch itself: what torch loads wrong, or not at all, is never called ok."""

from __future__ import annotations

import os
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensors.keeping.damage import MATRIX, payload_of
from voxtier import _core

INTACT = {"ok", "ok_trailing", "ok_no_crc"}


def save(obj: object, path: Path, **options: object) -> bytes:
    torch.save(obj, path, **options)
    return path.read_bytes()


def same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(same(left[k], right[k]) for k in left)
        )
    return type(left) is type(right) and left == right


@pytest.mark.parametrize("case", MATRIX)
def test_each_damage_has_its_state(case: str, healthy: Path, tmp_path: Path) -> None:
    damage, states, record = MATRIX[case]
    broken = tmp_path / healthy.name
    broken.write_bytes(damage(healthy.read_bytes()))
    report = _core.verify_tensor_file(broken)
    assert report.state in states, report.detail
    if record is not None:
        assert report.record == record
    assert report.detail or report.state == "ok"


@pytest.mark.parametrize("case", [c for c, (_, states, _r) in MATRIX.items() if "bad_crc" not in states])
def test_structure_alone_sees_everything_but_payload_damage(case: str, healthy: Path, tmp_path: Path) -> None:
    damage, states, _ = MATRIX[case]
    broken = tmp_path / healthy.name
    broken.write_bytes(damage(healthy.read_bytes()))
    assert _core.verify_tensor_file(broken, crc=False).state in states


@pytest.mark.parametrize("damaged", [None, "bit flip in tensor", "directory size"])
@pytest.mark.parametrize("after", ["itself", "twice itself", "another value", "itself and bytes"])
def test_archives_in_a_row_are_the_first_one_as_torch_reads_them(
    tmp_path: Path, after: str, damaged: str | None
) -> None:
    """The last end record names places of the first archive, where a directory of the same layout stands."""
    one, other = (save({"a": torch.full((300,), value)}, tmp_path / "a.pt") for value in (1.0, 2.0))
    whole = one if damaged is None else MATRIX[damaged][0](one)
    path = tmp_path / "row.pt"
    rest = {
        "itself": one,
        "twice itself": one + one,
        "another value": other,
        "itself and bytes": one + b"x" * 9,
    }
    path.write_bytes(whole + rest[after])
    report = _core.verify_tensor_file(path)
    if damaged is None:
        assert report.state == "ok_trailing"
        assert f"{len(rest[after])} bytes follow the archive" in report.detail
        assert same(torch.load(path, weights_only=True), {"a": torch.full((300,), 1.0)})
    else:
        assert report.state not in INTACT


def test_many_ends_in_a_row_take_no_more_than_one_look(tmp_path: Path) -> None:
    """Each names the one before it: whoever follows them all needs a stack of their number."""
    path = tmp_path / "ends.pt"
    ends = [
        b"PK\x05\x06" + bytes(8) + (22 * number - 22).to_bytes(8, "little") + bytes(2)
        for number in range(1, 2000)
    ]
    path.write_bytes(bytes(22) + b"".join(ends))
    assert _core.verify_tensor_file(path).state not in INTACT


def test_a_damaged_directory_crc_is_blamed_on_the_header(healthy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "a.pt"
    broken.write_bytes(MATRIX["directory crc"][0](healthy.read_bytes()))
    assert "payload is right" in _core.verify_tensor_file(broken).detail
    assert "payload has" in _core.verify_tensor_file(_written(tmp_path, healthy, "bit flip in tensor")).detail


def _written(folder: Path, healthy: Path, case: str) -> Path:
    path = folder / "b.pt"
    path.write_bytes(MATRIX[case][0](healthy.read_bytes()))
    return path


@pytest.mark.parametrize(
    "bit", [4, *(pytest.param(1 << n, marks=pytest.mark.soak) for n in range(8) if n != 2)]
)
def test_every_byte_flipped_once_never_passes_as_ok_with_wrong_data(bit: int, tmp_path: Path) -> None:
    item = {
        "image": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
        "label": 1,
        "empty": torch.zeros(0),
    }
    content = save(item, tmp_path / "healthy.pt")
    path = tmp_path / "flipped.pt"
    blind = []
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        if _core.verify_tensor_file(path).state in INTACT:
            for mmap in (False, True):
                try:
                    loaded = torch.load(path, weights_only=True, mmap=mmap)
                except Exception:
                    loaded = None
                if not same(item, loaded):
                    blind.append((at, mmap))
    assert blind == []


@pytest.mark.parametrize(("mark", "field", "byte"), [(b"PK\x01\x02", 38, 0x10), (b"PK\x06\x07", 16, 0)])
def test_what_only_torch_s_reader_minds_is_damage(
    mark: bytes, field: int, byte: int, healthy: Path, tmp_path: Path
) -> None:
    """A record marked as a folder is read as nothing: torch returns memory as it was."""
    content = bytearray(healthy.read_bytes())
    content[content.index(mark) + field] = byte
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(Exception):  # noqa: B017
        torch.load(tmp_path / "a.pt")
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "bad_structure"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_mutation_is_a_state_and_never_an_exception(data: st.DataObject) -> None:
    buffer = BytesIO()
    torch.save({"image": torch.ones(8), "n": [1, 2.5, "x"]}, buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "drop", "repeat"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at + 1 :]
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(0, 64))]
        else:
            content[at:at] = content[max(0, at - 40) : at]
        content = content or bytearray(b"P")
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"voxtier-mutant-{os.getpid()}.pt"
    path.write_bytes(content)
    try:
        report = _core.verify_tensor_file(path, content=True, digest=True)
        assert report.state in _core.TENSOR_STATES
        if report.state in INTACT:
            assert same(torch.load(path, weights_only=True), {"image": torch.ones(8), "n": [1, 2.5, "x"]})
    finally:
        path.unlink()


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_evil_pickle_is_named_and_never_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    save(
        {"image": torch.ones(3), "x": Evil(f"touch {marker}")}, tmp_path / "evil.pt", pickle_protocol=protocol
    )
    report = _core.verify_tensor_file(tmp_path / "evil.pt")
    assert report.state == "unsafe_globals"
    assert report.refused_globals == ["posix.system"]
    assert not marker.exists()


def test_allowed_globals_are_those_of_the_installed_torch_and_monai() -> None:
    import monai.data  # noqa: F401  (registers its classes)
    from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

    theirs = set(_get_allowed_globals()) | {n for n in _get_user_allowed_globals() if n.startswith("monai.")}
    assert set(_core.ALLOWED_GLOBALS) == theirs


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3, dtype=torch.float16),
        torch.nn.Parameter(torch.ones(3)),
        torch.zeros(4, 5).t()[1:, ::2],
        torch.tensor(3.0),
        torch.ones(2, 2, dtype=torch.bfloat16),
        {"a": [1, -2, 2**40, 2**80, 1.5, None, True, b"bytes", (1,), (1, 2, 3), {3, 4}, "ü", 1 + 2j]},
        torch.Size([1, 2]),
        [torch.ones(2)] * 3,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_weights_only_loads_is_ok(value: object, tmp_path: Path) -> None:
    save(value, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=True)
    report = _core.verify_tensor_file(tmp_path / "a.pt")
    assert report.state == "ok", report.detail


@pytest.mark.parametrize(
    "value", [np.arange(3), np.float32(1), Path("/a"), slice(1, 2)], ids=lambda v: type(v).__name__
)
def test_harmless_classes_are_not_weights_only(value: object, tmp_path: Path) -> None:
    save({"v": value}, tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "not_weights_only"


def test_protocol_4_is_intact_but_not_weights_only(tmp_path: Path) -> None:
    save({"image": torch.ones(3)}, tmp_path / "a.pt", pickle_protocol=4)
    report = _core.verify_tensor_file(tmp_path / "a.pt")
    assert report.state == "not_weights_only"
    assert "STACK_GLOBAL" in report.detail


def test_files_without_crc_are_not_damaged(tmp_path: Path) -> None:
    from torch.utils.serialization import config

    config.save.compute_crc32 = False
    try:
        save({"image": torch.ones(30)}, tmp_path / "a.pt")
    finally:
        config.save.compute_crc32 = True
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "ok_no_crc"


def test_the_legacy_format_is_named(tmp_path: Path) -> None:
    save(torch.ones(3), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "legacy_format"


def rezip(content: bytes, *, compression: int = zipfile.ZIP_STORED, **change: bytes | None) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            replacement = change.get(entry.filename.split("/", 1)[1], old.read(entry))
            if replacement is not None:
                new.writestr(entry.filename, replacement)
    return out.getvalue()


def test_compressed_storage_is_intact_and_checked(healthy: Path, tmp_path: Path) -> None:
    content = rezip(healthy.read_bytes(), compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "a.pt").write_bytes(content)
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "compressed_storage"
    at, _ = payload_of(content, "data/0")
    broken = content[: at + 900] + bytes([content[at + 900] ^ 1]) + content[at + 901 :]
    (tmp_path / "b.pt").write_bytes(broken)
    assert _core.verify_tensor_file(tmp_path / "b.pt").state in {"bad_crc", "bad_structure"}


def test_a_file_of_another_zip_writer_is_ok_when_torch_can_load_it(healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(rezip(healthy.read_bytes()))
    assert same(torch.load(tmp_path / "a.pt"), torch.load(healthy))
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "ok"


@pytest.mark.parametrize("record", ["data.pkl", "version", "data/0"])
def test_a_missing_record_is_bad_structure(record: str, healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(rezip(healthy.read_bytes(), **{record: None}))
    report = _core.verify_tensor_file(tmp_path / "a.pt")
    assert report.state == "bad_structure"
    assert record in report.detail


def test_a_record_of_the_wrong_size_which_mmap_reads_silently(healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(rezip(healthy.read_bytes(), **{"data/0": bytes(131000)}))
    torch.load(tmp_path / "a.pt", mmap=True)
    report = _core.verify_tensor_file(tmp_path / "a.pt")
    assert (report.state, report.record) == ("bad_structure", "data/0")


def test_duplicate_names_are_bad_structure(healthy: Path, tmp_path: Path) -> None:
    out = BytesIO(healthy.read_bytes())
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.infolist()[0].filename, b"x")
    (tmp_path / "a.pt").write_bytes(out.getvalue())
    assert "two records" in _core.verify_tensor_file(tmp_path / "a.pt").detail


def test_zip64_fields_of_small_records_are_read(healthy: Path, tmp_path: Path) -> None:
    out = BytesIO()
    with zipfile.ZipFile(healthy) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            with new.open(zipfile.ZipInfo(entry.filename), "w", force_zip64=True) as record:
                record.write(old.read(entry))
    (tmp_path / "a.pt").write_bytes(out.getvalue())
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "ok"


@pytest.mark.soak
def test_a_record_beyond_4_gib_uses_zip64(tmp_path: Path) -> None:
    """A record beyond 4 GiB, and one at an offset beyond it, carry wide fields and a 24-byte descriptor."""
    path = tmp_path / "big.pt"
    size = (4 << 30) + 64
    from torch.utils.serialization import config

    config.save.compute_crc32 = False
    try:
        storage = torch.UntypedStorage(size)  # never touched: zero pages of the kernel
        large = torch.tensor([], dtype=torch.uint8).set_(storage, 0, (size,))
        torch.save({"a": large, "b": torch.ones(7)}, path)
        del storage, large
    finally:
        config.save.compute_crc32 = True
    report = _core.verify_tensor_file(path, crc=False)
    path.unlink()
    assert (report.state, report.detail[:7]) == ("ok_no_crc", "written")
    assert {name: length for name, length, _ in report.records}["data/0"] == size


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    assert _core.verify_tensor_file(tmp_path / "absent.pt").state == "io_error"
    assert _core.verify_tensor_file(tmp_path).state in {"io_error", "unknown"}


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (torch.zeros(4, 32), "suspicious_content"),
        (torch.full((4, 32), -1.0), "suspicious_content"),
        (torch.full((4, 32), float("nan"), dtype=torch.float16), "suspicious_content"),
        (torch.linspace(0, 1, 128).log(), "suspicious_content"),
        (torch.linspace(0, 1, 128, dtype=torch.float64), "ok"),
        (torch.linspace(0, 1, 128).half(), "ok"),
        (torch.zeros(4, 32, dtype=torch.uint8), "ok"),
    ],
)
def test_constant_nan_and_infinite_volumes_are_reported(
    value: torch.Tensor, state: str, tmp_path: Path
) -> None:
    save({"image": value}, tmp_path / "a.pt")
    assert _core.verify_tensor_file(tmp_path / "a.pt", content=True).state == state
    assert _core.verify_tensor_file(tmp_path / "a.pt").state == "ok"


def test_digest_ignores_order_and_layout_but_no_number(tmp_path: Path) -> None:
    a, b = torch.arange(5.0), torch.arange(6)
    save({"a": a, "b": b, "m": {"x": 1, "y": 2}}, tmp_path / "1.pt")
    save({"m": {"y": 2, "x": 1}, "b": b.clone(), "a": a.clone()}, tmp_path / "2.pt")
    save({"a": a, "b": b + 1, "m": {"x": 1, "y": 2}}, tmp_path / "3.pt")
    save({"a": a, "b": b, "m": {"x": 1, "y": 3}}, tmp_path / "4.pt")
    digests = [_core.verify_tensor_file(tmp_path / f"{n}.pt", digest=True).digest for n in (1, 2, 3, 4)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_named_pipe_is_reported_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    (tmp_path / "b.pt").symlink_to("/dev/zero")
    for name in ("a.pt", "b.pt"):
        report = _core.verify_tensor_file(tmp_path / name)
        assert (report.state, report.detail) == ("unknown", "not a regular file")


def test_a_parallel_verifier_reports_every_file_once_and_stops_when_told(
    healthy: Path, tmp_path: Path
) -> None:
    paths = []
    for number in range(50):
        paths.append(tmp_path / f"{number}.pt")
        paths[-1].write_bytes(healthy.read_bytes()[: None if number % 5 else -7])
    seen = {index: report.state for index, report in _core.ParallelVerifier(paths, threads=3)}
    assert sorted(seen) == list(range(50))
    assert [seen[n] == "ok" for n in range(50)] == [n % 5 != 0 for n in range(50)]
    verifier = _core.ParallelVerifier(paths * 200, threads=1)
    next(verifier)
    verifier.stop()
    assert sum(1 for _ in verifier) < 9_000

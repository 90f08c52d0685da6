"""Every reference case as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from frames.dicom.cases import CASES, Case


@pytest.fixture(scope="module")
def case_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every reference case as a file, by path."""
    folder = tmp_path_factory.mktemp("cases")
    files = {str(folder / f"{case.name}.dcm"): case for case in CASES}
    for path, case in files.items():
        Path(path).write_bytes(case.content)
    return files

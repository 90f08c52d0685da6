"""The account of the embedded server where voxtier runs as root, which PostgreSQL refuses."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from postgres.servers import USER, answer, lock_is_free
from voxtier.errors import BackendError
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded import programs as programs_module
from voxtier.postgres.embedded.programs import Account, find_account, find_programs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")


def test_a_user_namespace_needs_no_account(home: Path) -> None:
    probe = "unshare --user --map-user=1 --map-group=1 true"
    if subprocess.run(["sh", "-c", probe], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are forbidden here")
    account = find_account(find_programs(), home / "postgres")
    assert account.prefix[0] == "unshare"
    assert account.uid == 0


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    real = programs_module._can_run

    def can_run(account: Account, *rest: object) -> bool:
        return "unshare" not in account.prefix and real(account, *rest)

    monkeypatch.setattr(programs_module, "_can_run", can_run)


@pytest.mark.usefixtures("no_namespaces")
def test_without_namespaces_the_server_runs_as_an_existing_account() -> None:
    home = Path(f"/tmp/voxtier-test-{os.getpid()}")
    home.mkdir(mode=0o755)
    (home / "postgres").mkdir(mode=0o755)
    server = EmbeddedServer(home)
    try:
        server.attach()
        assert answer(server) == 42
        owner = (home / "postgres" / "data").stat().st_uid
        assert owner != 0
        assert pwd.getpwuid(owner).pw_name in {"postgres", "nobody"}
        server.detach()
        assert lock_is_free(home)
        server.attach()  # the owner of the folder serves it again
        server.detach()
    except BackendError as error:
        pytest.skip(f"the programs are in a folder that no ordinary account can enter: {error}")
    finally:
        server.stop(force=True)
        shutil.rmtree(home)


@pytest.mark.usefixtures("no_namespaces")
def test_without_namespaces_a_private_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    with pytest.raises(BackendError, match=r"root.*VOXTIER_HOME.*VOXTIER_DSN"):
        EmbeddedServer(tmp_path / "private").attach()


@pytest.mark.parametrize("uid", [65534, 54321], ids=["nobody", "without-a-name"])
def test_an_ordinary_user_runs_the_server_as_itself(uid: int) -> None:
    """Without privileges files are one's own; `docker run --user 54321` has not even a name."""
    home = Path(f"/tmp/voxtier-test-user-{uid}-{os.getpid()}")
    home.mkdir()
    os.chown(home, uid, uid)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    as_user: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []}
    try:
        for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
            with contextlib.suppress(OSError):
                process = subprocess.run(
                    [python, "-c", USER, str(home)], stdin=subprocess.DEVNULL, capture_output=True,
                    text=True, cwd="/", env=environment, check=False, **as_user,
                )  # fmt: skip
                break
        else:
            pytest.skip("no Python of this version that an ordinary account may run")
        assert process.stdout == "42\n", process.stderr
        assert {path.stat().st_uid for path in home.rglob("*")} == {uid}
    finally:
        shutil.rmtree(home)

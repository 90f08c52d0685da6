"""A project of `generate` for the tests: its folders, its hub, and the ways to run the command on it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tensors.cases import CONFIG, become_command, fork, nifti_bytes, put_raw, run_cli, write_project
from tensors.making.hub_server import HubServer
from voxtier import _core
from voxtier.tensors import item_key, load_config
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.identity.keys import hub_path, raw_path
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.run import Generator, Options, RunResult


class Project:
    """A project folder, its configuration and its hub, which holds every volume."""

    def __init__(
        self, base: Path, names: list[str], server: HubServer | None = None, config: str = CONFIG
    ) -> None:
        self.base = base
        self.names = names
        self.path = write_project(base, names, config=config)
        self.config = load_config(self.path, environment={})
        self.folder = item_folder(self.config)
        remember_folder(self.config, self.folder)
        self.server = server
        self.env = {"HF_ENDPOINT": server.endpoint if server else "http://127.0.0.1:9"}
        if server is not None:
            server.files |= {hub_path(name): nifti_bytes(number) for number, name in enumerate(names)}

    def put_raw_files(self, **options: Any) -> list[Path]:
        """Lay every volume where the configuration looks for it."""
        return [put_raw(self.base, name, number, **options) for number, name in enumerate(self.names)]

    def generator(self, **options: Any) -> Generator:
        hub = None
        if self.server is not None:
            hub = Hub("some/CT-RATE", endpoint=self.server.endpoint, pause=0.01)
        generator = Generator(self.config, Options(**{"workers": 2, "min_free": 0, **options}), hub=hub)
        if hub is None:
            generator.hub = None
        else:
            hub._stop = generator.stop
        return generator

    def run(self, **options: Any) -> RunResult:
        generator = self.generator(**options)
        return generator.run(generator.plan())

    def final(self, name: str) -> Path:
        return self.folder / f"{item_key(name)}.pt"

    def raw(self, name: str) -> Path:
        return raw_path(self.config.img_dir, name, "nested")

    def log(self, name: str = "generate_cache") -> str:
        return (self.base / "logs" / f"{name}.log").read_text()

    def cli(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end in a process of its own, with a fork server of its own."""
        command = ("generate", "--config", self.path, "--min-free", "0", *arguments)
        return run_cli(*command, env={**self.env, **env})

    def start(self, *arguments: str) -> Running:
        """Start the command in a process group of its own, with a fork server of its own."""
        return Running.spawn([*self._command(), *arguments], self.env)

    def fork(self, *arguments: str, prepare: Callable[[], None] = lambda: None) -> Running:
        """Start the command in a child of this process, which has imported everything: in milliseconds.

        Its workers come from this process's fork server. ``prepare`` is called in the child first.
        """
        return Running.fork([*self._command(), *arguments], self.env, prepare)

    def _command(self) -> list[str]:
        return ["generate", "--config", str(self.path), "--yes", "--min-free", "0"]

    def assert_sound(self) -> None:
        for path in self.folder.glob("*.pt"):
            assert _core.verify_tensor_file(path).state == "ok"
        leftovers = [p.name for p in self.folder.iterdir() if p.name.startswith(".")]
        assert leftovers == []


class Running:
    """A command under way; it leads a process group."""

    def __init__(self, pid: int, errors: IO[str], poll: Callable[[], int | None]) -> None:
        self.pid = pid
        self.poll = poll
        """Return the exit code, or None while it runs."""
        self._errors = errors

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the coordinator alone."""
        os.kill(self.pid, number)

    @classmethod
    def spawn(cls, arguments: list[str], env: dict[str, str]) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "voxtier", "tensors", *arguments],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        return cls(process.pid, process.stderr, process.poll)

    @classmethod
    def fork(cls, arguments: list[str], env: dict[str, str], prepare: Callable[[], None]) -> Running:
        multiprocessing.set_forkserver_preload(["voxtier.tensors.making.worker"])
        forkserver.ensure_running()
        read_end, write_end = os.pipe()
        process = fork(_lead_group, arguments, env, write_end, prepare)
        os.close(write_end)
        assert process.pid is not None
        return cls(process.pid, os.fdopen(read_end), lambda: process.exitcode)

    def wait(self) -> tuple[int, str]:
        """Return the exit code and the rest of stderr."""
        with self._errors:
            errors = self._errors.read()
        while (code := self.poll()) is None:  # stderr is closed: it ends now
            time.sleep(0.001)
        return code, errors

    def wait_until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            assert self.poll() is None, f"it ended too early: {self.wait()}"
            time.sleep(0.01)

    def wait_for_line(self, text: str) -> str:
        """Read stderr up to a line that holds a text; return what was read."""
        read = ""
        while text not in read:
            line = self._errors.readline()
            assert line, f"it ended without {text!r}: {read}"
            read += line
        return read

    def interrupt_twice(self) -> None:
        """Interrupt the whole group, as a terminal does; the second time when the first was answered."""
        os.killpg(self.pid, signal.SIGINT)
        self.wait_for_line("once more")
        os.killpg(self.pid, signal.SIGINT)
        code, errors = self.wait()
        assert code == 130, errors


def _lead_group(arguments: list[str], env: dict[str, str], errors: int, prepare: Callable[[], None]) -> None:
    os.setsid()
    # The fork server is the parent's child: this process cannot wait for it, and need not.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    prepare()
    become_command(arguments, env, os.open(os.devnull, os.O_WRONLY), errors)

"""Chromium and the viewers that it opens: programs of npm, fetched once into the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "voxtier-tests"
PICTURES = CACHE / "screenshots"
OHIF = "@ohif/app@3.12.10"
PLAYWRIGHT = "playwright-core@1.65.1"
CORNERSTONE = "5.14.0"
CORNERSTONE_PACKAGES = (
    *(f"@cornerstonejs/{name}@{CORNERSTONE}" for name in ("core", "dicom-image-loader", "metadata", "utils")),
    "dicom-parser@1.8.21",
    "esbuild@0.28.2",
)
# Codecs that the page's decoder fetches by these addresses.
CODECS = {
    "codec-charls/decodewasm": "codec-charls/dist/charlswasm_decode.wasm",
    "codec-openjpeg/decodewasm": "codec-openjpeg/dist/openjpegwasm_decode.wasm",
}


class MissingProgramError(Exception):
    """A program of others is not here; the text says how to get it."""


def chromium() -> str:
    """Return the path of Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None or shutil.which("npm") is None:
        raise MissingProgramError("needs npm and chromium: apt-get install npm chromium")
    return found


@contextmanager
def kept(name: str) -> Iterator[tuple[Path, Path | None]]:
    """Yield a folder of the cache, and where to make what it lacks: it appears whole or not at all."""
    place = CACHE / name
    if place.is_dir():
        yield place, None
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=CACHE) as folder:
        made = Path(folder, name)
        made.mkdir()
        yield place, made
        made.rename(place)


def npm(folder: Path, *arguments: str) -> None:
    """Run npm in a folder."""
    command = ["npm", *arguments, "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode:
        raise MissingProgramError(f"{' '.join(command)} failed: {done.stderr[-200:]}")


def modules() -> Path:
    """Return the folder with playwright-core, which drives Chromium."""
    with kept(PLAYWRIGHT) as (place, missing):
        if missing is not None:
            npm(missing, "install", "--prefix", ".", PLAYWRIGHT)
    return place / "node_modules"


def ohif() -> Path:
    """Return the folder with OHIF's built files."""
    with kept("ohif-" + OHIF.rpartition("@")[2]) as (place, missing):
        if missing is not None:
            npm(missing, "pack", OHIF)
            [archive] = missing.glob("*.tgz")
            with tarfile.open(archive) as packed:
                packed.extractall(missing, filter="data")
            archive.unlink()
    return place / "package" / "dist"


def cornerstone() -> Path:
    """Return the folder of a page with Cornerstone3D, bundled from page.js."""
    source = HERE / "page.js"
    with kept(f"cornerstone-{CORNERSTONE}-{hash_of(source)}") as (place, missing):
        if missing is not None:
            npm(missing, "install", "--prefix", ".", *CORNERSTONE_PACKAGES)
            found, out = missing / "node_modules", missing / "page"
            worker = found / "@cornerstonejs/dicom-image-loader/dist/esm/decodeImageFrameWorker.js"
            shutil.copy(source, missing)
            (missing / "nothing.js").write_text("export const create = undefined;\n")
            options = ["--bundle", "--minify", "--format=esm", f"--outdir={out}", "--log-level=error"]
            # What only Node has, and a writer of XML that asks for it, is never run in a browser.
            options += [f"--external:{name}" for name in ("fs", "path", "crypto", "module")]
            options += ["--alias:xmlbuilder2=./nothing.js"]
            for entry in (missing / "page.js", worker):
                subprocess.run([found / ".bin" / "esbuild", entry, *options], cwd=missing, check=True)
            for address, file in CODECS.items():
                (out / "@cornerstonejs" / address).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found / "@cornerstonejs" / file, out / "@cornerstonejs" / address)
            head = (
                '<!doctype html><link rel="icon" href="data:,"><script type="module" src="page.js"></script>'
            )
            (out / "index.html").write_text(head + '<div id="stack" style="width:512px;height:512px"></div>')
            shutil.rmtree(found)
    return place / "page"


def hash_of(path: Path) -> str:
    """Return a short name for the content of a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder; yield its origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def browse(*steps: tuple[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run steps in Chromium, each a script beside this file; return what each saw. Pictures are kept."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    command = ["node", HERE / "browse.js", modules(), chromium(), PICTURES, json.dumps(steps)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return seen

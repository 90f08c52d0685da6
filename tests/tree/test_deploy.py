"""The files of deploy/: their commands exist, and the programs that read them take them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tree.blocks import ROOT, fault_of_command

DEPLOY = ROOT / "deploy"
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def containers(document: Any) -> list[dict[str, Any]]:
    """Return every container below a document of Kubernetes."""
    if isinstance(document, list):
        return [found for each in document for found in containers(each)]
    if not isinstance(document, dict):
        return []
    own = document.get("containers", [])
    return own + [found for each in document.values() for found in containers(each)]


def documents() -> dict[str, Any]:
    return {path.name: yaml.safe_load(path.read_text()) for path in (DEPLOY / "kubernetes").glob("*.yaml")}


def test_commands_of_kubernetes_exist_and_images_have_this_version() -> None:
    assert VERSION is not None
    found = [each for document in documents().values() for each in containers(document)]
    assert {each["args"][0] for each in found} == {"serve", "index"}
    for each in found:
        assert fault_of_command(each["args"]) is None, each["args"]
        assert each["image"] == f"voxtier:{VERSION[1]}"
        assert each["securityContext"]["readOnlyRootFilesystem"]
        mounted = {mount["name"] for mount in each["volumeMounts"]}
        assert "archive" in mounted
        assert all(mount.get("readOnly") for mount in each["volumeMounts"] if mount["name"] == "archive")
    assert sorted(documents()["kustomization.yaml"]["resources"]) == sorted(
        documents().keys() - {"kustomization.yaml"}
    )


def test_commands_of_systemd_and_docker_exist() -> None:
    [line] = re.findall(
        r"^ExecStart=\S+/voxtier (.+)$", (DEPLOY / "voxtier.service").read_text(), re.MULTILINE
    )
    assert fault_of_command(shlex.split(line)) is None
    text = (DEPLOY / "Dockerfile").read_text()
    [line] = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    assert fault_of_command(json.loads(line)) is None
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "not as root"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "voxtier.service").read_text().replace("/opt/voxtier/bin/voxtier", sys.executable)
    (tmp_path / "voxtier.service").write_text(unit)
    command = [
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=no",
        str(tmp_path / "voxtier.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "voxtier.service" in line] == []


@pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx and openssl")
def test_nginx_takes_the_file(tmp_path: Path) -> None:
    name = "/CN=viewer.example"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    made = [*command, "-subj", name, "-keyout", "privkey.pem", "-out", "fullchain.pem"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "voxtier-token.conf").write_text(
        'proxy_set_header Authorization "Bearer 0123456789abcdef";\n'
    )
    text = (DEPLOY / "nginx.conf").read_text().replace("/run/nginx.pid", str(tmp_path / "pid"))
    text = text.replace("/etc/nginx/tls/", f"{tmp_path}/").replace(
        "/etc/nginx/voxtier", f"{tmp_path}/voxtier"
    )
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(["nginx", "-t", "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True)
    assert "syntax is ok" in done.stderr, done.stderr


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kubectl_puts_the_files_together() -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kinds = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert kinds == {"Deployment", "Service", "CronJob", "PersistentVolumeClaim"}

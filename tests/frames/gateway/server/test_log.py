"""The access log: what is asked in which form, and nothing of whom."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from frames.gateway.conftest import Connect
from frames.gateway.serving import STAR, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, write
from voxtier.frames.store.store import FrameStore


def test_a_line_says_the_form_of_a_request(tmp_path: Path, store: FrameStore, connect: Connect) -> None:
    index(store, [write(tmp_path, "Doe^John", "1.99.88")])
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    client = connect(access_log=log)
    os.close(log)
    path = instance_path(STUDY, SERIES, "1.99.88")
    client.frames(path, "1")
    client.frames(path, "2")
    client.get("/dicomweb/studies?PatientName=Doe*", {"User-Agent": "Doe"})
    client.get("/Doe/John?x=Doe")
    client.get("/secret/dicomweb/studies")
    client.get("/dicomweb/studies", method="DELETE")
    deadline = time.monotonic() + 60
    while len(lines := (tmp_path / "log").read_text().splitlines()) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    text = "\n".join(lines)
    for word in ("Doe", "1.99", STUDY, SERIES, "secret", str(tmp_path)):
        assert word not in text
    seen = [json.loads(line) for line in lines]
    frame = "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}"
    assert [each["route"] for each in seen] == [frame, frame, "/studies", "viewer", "/studies", "/studies"]
    assert [each["status"] for each in seen] == [200, 200, 204, 404, 404, 405]
    assert [each.get("tier") for each in seen[1:3]] == ["memory", None]
    assert [each.get("source") for each in seen[:4]] == ["default", "default", "default", None]
    assert all(each["microseconds"] >= 0 for each in seen)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(seen[0]["time"])).total_seconds()) < 60
    assert seen[0]["bytes"] == len(client.frames(path, "1", STAR).body)

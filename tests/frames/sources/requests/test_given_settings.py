"""What an `S3Config` was given holds, also where a room takes the same by itself: its clients say so."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from voxtier.errors import ConfigError
from voxtier.frames.databricks.spark_task import KeyedS3Config
from voxtier.frames.sources.clients import make_client
from voxtier.system.s3_config import S3Config
from voxtier.volumes.config import Config
from voxtier.volumes.tiledb.locks import s3_lock
from voxtier.volumes.tiledb.session import Session


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.parametrize(
    ("config", "region", "frames", "volumes"),
    [
        (S3Config(), None, 30.0, 3.0),
        (S3Config(region="us-east-1"), "us-east-1", 30.0, 3.0),
        (S3Config(timeout=3.0), None, 3.0, 3.0),
        (S3Config(timeout=30.0), None, 30.0, 30.0),
        (S3Config(region="ap-south-1", timeout=4.0), "ap-south-1", 4.0, 4.0),
    ],
)
def test_each_client_has_what_was_given_or_its_own(
    config: S3Config, region: str | None, frames: float, volumes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client("s3://bucket", pickle.loads(pickle.dumps(copy.deepcopy(config))))
    assert client.config.get("region", "eu-central-1") == (region or "eu-central-1")
    assert client.client_options["timeout"] == f"{frames:g}s"
    session = Session(Config(s3=config))
    keys = session.context().config()
    assert keys["vfs.s3.region"] == (region or "us-east-1")
    assert keys["vfs.s3.request_timeout_ms"] == str(int(volumes * 1000))
    lock = s3_lock._bucket("s3://bucket/store", session)
    assert lock.config["region"] == (region or "us-east-1")
    assert lock.client_options["timeout"] == f"{volumes:g}s"
    keyed = pickle.loads(pickle.dumps(KeyedS3Config.of_this_process(config)))
    monkeypatch.setenv("AWS_REGION", "us-west-2")  # of the worker
    assert make_client("s3://bucket", keyed).config["region"] == (region or "eu-central-1")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"region": ""}, "region must not be empty"), ({"timeout": 0}, "timeout must be > 0")],
)
def test_nothing_is_no_setting(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        S3Config(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", ["", "https://", "ftp://host", "http://a b", "http://h:999999", "host:port", "http://[", "h\n"]
)
def test_an_endpoint_that_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        S3Config(endpoint=wrong)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_timeout_that_no_clock_has_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        S3Config(timeout=wrong)


def test_a_profile_is_read_as_it_stands_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    config = S3Config(profile="mine")
    secret = "a%b%%c%(d)s"
    file.write_text(
        "[other]\ncredential_process = x %s\n"
        f"[mine]\naws_access_key_id = k\naws_secret_access_key = {secret}\n"
    )
    assert config.credentials() == {"aws_access_key_id": "k", "aws_secret_access_key": secret}
    for content in (b"no section", b"[mine]\n[mine]\n", b"[mine]\na = \xff\n"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="credentials"):
            config.credentials()


def test_keys_of_a_profile_are_taken_where_the_environment_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As boto and the command line of AWS take them."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    environment = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    assert S3Config().credentials() == environment
    file.write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = ds\n"
        "[lake]\naws_access_key_id = l\naws_secret_access_key = ls\naws_session_token = lt\n"
        "[role]\nsource = x\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lake")
    assert S3Config().credentials() == environment
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    lake = {"aws_access_key_id": "l", "aws_secret_access_key": "ls", "aws_session_token": "lt"}
    assert S3Config().credentials() == lake
    assert make_client("s3://bucket", S3Config()).config["access_key_id"] == "l"
    assert S3Config(anonymous=True).credentials() == S3Config(include_credentials=False).credentials() == {}
    for other in ("role", "nobody"):  # what signs in another way, as by a role, is nobody's error here
        monkeypatch.setenv("AWS_PROFILE", other)
        assert S3Config().credentials() == {}
    monkeypatch.delenv("AWS_PROFILE")
    assert S3Config().credentials()["aws_access_key_id"] == "d"
    file.write_text("[default]\naws_access_key_id = later\naws_secret_access_key = s\n")
    assert S3Config().credentials()["aws_access_key_id"] == "later"
    file.unlink()
    assert S3Config().credentials() == {}

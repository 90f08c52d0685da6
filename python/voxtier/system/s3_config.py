"""How ``s3://`` addresses are reached: one configuration for the rooms that read from object stores."""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.system.text import first_line

_REGION = re.compile(r"[a-z0-9-]{1,40}")
_REGION_TIMEOUT, _LONGEST_TIMEOUT = 10.0, 86_400  # seconds
_ENDPOINT = re.compile(r"(https?://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?(/[!-~]*)?")
_NAMES = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


@dataclass(frozen=True, slots=True)
class S3Config:
    """How ``s3://`` addresses are reached.

    Parameters
    ----------
    region : str or None
        Region that requests are signed for. None: for frames that of the environment (``AWS_REGION``) or of
        the bucket, for volumes ``us-east-1``.
    endpoint : str or None
        Address of another server than AWS, with its scheme: ``http://127.0.0.1:8333``.
    use_virtual_addressing : bool
        Bucket in the host name; switch off for most servers that are not AWS.
    max_parallel_ops : int
        Requests in flight for one read or write (>= 1).
    multipart_part_size_mb : int
        Size of one part of an upload (>= 5).
    include_credentials : bool
        Sign with the credentials of the environment, of ``profile`` or of the machine's role.
    anonymous : bool
        Do not sign at all (public buckets).
    profile : str or None
        Section of the shared credentials file. None: keys of the environment (``AWS_ACCESS_KEY_ID``); without
        these, those of the section ``AWS_PROFILE``, or ``default``, where the file has it.
    timeout : float or None
        Seconds before one request is given up (> 0). None: 30 for frames, 3 for volumes.
    """

    region: str | None = None
    endpoint: str | None = None
    use_virtual_addressing: bool = True
    max_parallel_ops: int = 8
    multipart_part_size_mb: int = 50
    include_credentials: bool = True
    anonymous: bool = False
    profile: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.region == "":
            raise ConfigError("region must not be empty")
        for name, least in (("max_parallel_ops", 1), ("multipart_part_size_mb", 5)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.endpoint is not None and not _ENDPOINT.fullmatch(self.endpoint):
            raise ConfigError(f"endpoint must be [http[s]://]HOST[:PORT][/PATH], got {self.endpoint!r}")
        if self.timeout is not None and not 0 < self.timeout <= _LONGEST_TIMEOUT:
            raise ConfigError(
                f"timeout must be > 0 and at most {_LONGEST_TIMEOUT:,} seconds, got {self.timeout}"
            )

    @property
    def endpoint_url(self) -> str | None:
        """Address of `endpoint` with its scheme: https where none is given. None for AWS."""
        if self.endpoint is None or "://" in self.endpoint:
            return self.endpoint
        return f"https://{self.endpoint}"

    def credentials(self) -> dict[str, str]:
        """Return the keys that sign requests now, by their names in a credentials file; empty: none given.

        Without any, the machine's role signs, unless `anonymous`.

        Raises
        ------
        ConfigError
            The credentials file has no such `profile`.
        """
        if self.anonymous or not self.include_credentials:
            return {}
        values: Mapping[str, str] = {}
        if self.profile is None:
            values = {name: os.environ.get(name.upper(), "") for name in _NAMES}
        if not values.get("aws_access_key_id"):
            path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
            profiles = _profiles(path)
            if self.profile is not None and self.profile not in profiles:
                raise ConfigError(f"no profile {self.profile!r} in {path}")
            name = self.profile or os.environ.get("AWS_PROFILE") or "default"
            values = profiles.get(name, values)
        return {name: values[name] for name in _NAMES if values.get(name)}

    def store_options(self) -> dict[str, Any]:
        """Return what was given as keyword arguments of obstore's ``S3Store``.

        What nobody configured is left to the environment (``AWS_REGION``, ``AWS_ENDPOINT_URL``, ...).
        """
        options = dict[str, Any]()
        if self.region is not None:
            options["region"] = self.region
        if self.endpoint is not None:
            options["endpoint"] = self.endpoint_url
            options["virtual_hosted_style_request"] = self.use_virtual_addressing
        if self.anonymous or not self.include_credentials:
            options["skip_signature"] = True
        for name, value in self.credentials().items():
            options[name.removeprefix("aws_")] = value
        return options


def _profiles(path: Path) -> Mapping[str, Mapping[str, str]]:
    """Return the sections of a credentials file; none where it cannot be read."""
    try:
        state = path.stat()
    except OSError:
        return {}
    return _read_profiles(path, state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(4)
def _read_profiles(path: Path, *_state: int) -> Mapping[str, Mapping[str, str]]:
    import configparser  # here, as few have such a file

    parser = configparser.RawConfigParser()  # a secret may hold what others would expand
    try:
        parser.read(path)
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no credentials file: {first_line(error)}") from None
    return {name: dict(parser[name]) for name in parser.sections()}


_process_config = S3Config()
_context_config: contextvars.ContextVar[S3Config | None] = contextvars.ContextVar("voxtier_s3", default=None)


def get_s3_config() -> S3Config:
    """Return the configuration in force: that of the context, else the process's."""
    return _context_config.get() or _process_config


def context_s3_config() -> S3Config | None:
    """Return the configuration of the context alone, as in a block of ``configured``; None where it has none.

    Threads have no context of their own: let `voxtier.system.workers.ContextThreads` do the work.
    """
    return _context_config.get()


def configure_s3(config: S3Config) -> None:
    """Change the configuration of the process, or of the context where one has its own.

    ``voxtier.volumes.configure(s3=...)`` does the same.

    Raises
    ------
    TypeError
        `config` is no `S3Config`.
    """
    global _process_config
    if not isinstance(config, S3Config):
        raise TypeError(f"configure_s3() takes a S3Config, got {type(config).__name__}")
    if _context_config.get() is None:
        _process_config = config
    else:
        _context_config.set(config)


def enter_context(config: S3Config) -> contextvars.Token[S3Config | None]:
    """Give the running context a configuration of its own, until `leave_context`."""
    return _context_config.set(config)


def leave_context(token: contextvars.Token[S3Config | None]) -> None:
    """End what `enter_context` began."""
    _context_config.reset(token)


def bucket_region(bucket: str, config: S3Config) -> str:
    """Return the region of a bucket, by one request without credentials.

    Parameters
    ----------
    bucket : str
        Its name.
    config : S3Config
        For its endpoint; by default Amazon's.

    Returns
    -------
    str
        Empty where the store does not say.
    """
    # Here, as they are a tenth of what every command imports.
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Still(HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Follow nothing: the header of the redirect is what is asked for."""

    endpoint = (config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL", "")).rstrip("/")
    address = f"{endpoint}/{bucket}" if endpoint else f"https://{bucket}.s3.amazonaws.com"
    try:
        with build_opener(Still).open(Request(address, method="HEAD"), timeout=_REGION_TIMEOUT) as answer:
            headers = answer.headers
    except HTTPError as refusal:  # a redirect, or nobody may read it: the header is there too
        headers = refusal.headers
    except (OSError, ValueError, HTTPException):
        return ""
    region = str(headers.get("x-amz-bucket-region", ""))
    return region if _REGION.fullmatch(region) else ""

"""An S3-compatible object store as the driver of functions sees it: it signs addresses and removes objects.

Only the driver has credentials and the library, obstore: functions get addresses that are signed for one object, one
verb and a while (`channels.objects`). Rejected: boto3 and minio, whose imports take 70 and 140 ms and bring a dozen
packages, where obstore takes 10 ms and brings none; and signing by hand, which is a page of code about a secret.

Objects of a chain lie under `lamella/`, in a folder whose name tells their owner as those of temporary paths do, so
that `lamella clean` can remove what a killed run left, and nothing else.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lamella.channels.objects import CA_BUNDLE, DENIED, UNTRUSTED
from lamella.errors import ConfigError, StorageError
from lamella.limits.owner import Owner, mark, owner_of_temporary

ROOT = "lamella"
TIMEOUT_S = 10
RETRIES = 1
NAMED = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Bucket(NamedTuple):
    """Where objects are kept. Credentials are never part of it: they are in the standard AWS variables."""

    name: str
    endpoint: str
    """`http://HOST:PORT` or `https://...`; empty for AWS itself."""

    def __str__(self) -> str:
        """For errors."""
        return f"bucket {self.name!r} at {self.endpoint or 'AWS'}"


def bucket(name: str | None, endpoint: str | None, env: Mapping[str, str] = os.environ) -> Bucket | None:
    """The bucket that is meant, by options or else by the environment; None where neither names one.

    Raises:
        ConfigError: the name is none of a bucket, or the endpoint no address.
    """
    name = name or env.get("LAMELLA_S3_BUCKET", "")
    endpoint = endpoint or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
    if not name:
        return None
    if not NAMED.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a bucket", try_="--s3-bucket my-bucket")
    if endpoint and not re.fullmatch(r"https?://[^/\s]+/?", endpoint):
        raise ConfigError(f"{endpoint!r} is no endpoint", try_="--s3-endpoint http://127.0.0.1:9000")
    return Bucket(name, endpoint.rstrip("/"))


class ObjectStore:
    """A bucket that can be written; see `runtime.tensors.Store` for what is asked of it."""

    def __init__(self, where: Bucket) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: obstore is not installed, there are no credentials, or AWS_CA_BUNDLE names no certificates.
        """
        self.where = where
        try:
            self._library: Any = import_module("obstore")
            kind = import_module("obstore.store").S3Store
        except ImportError as error:
            raise ConfigError(
                "an object store needs obstore, which is missing", try_="pip install 'lamella[s3]'"
            ) from error
        if where.endpoint and not os.environ.get("AWS_ACCESS_KEY_ID"):
            raise ConfigError(
                f"no credentials for {where}", try_="export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."
            )
        options: dict[str, Any] = {"endpoint": where.endpoint} if where.endpoint else {}
        if not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
            options["region"] = "us-east-1"
        self._store = kind(
            where.name,
            **options,
            virtual_hosted_style_request=not where.endpoint,
            client_options={
                "allow_http": where.endpoint.startswith("http://"),
                "timeout": timedelta(seconds=TIMEOUT_S),
                "connect_timeout": timedelta(seconds=TIMEOUT_S),
                "pool_max_idle_per_host": "0",
                **_authorities(),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=2 * TIMEOUT_S)},
        )

    def put_url(self, key: str, lasting_s: float) -> str:
        """Where to put an object, without credentials, for so long."""
        return self._signed("PUT", key, lasting_s)

    def get_url(self, key: str, lasting_s: float) -> str:
        """Where to get one."""
        return self._signed("GET", key, lasting_s)

    def _signed(self, verb: str, key: str, lasting_s: float) -> str:
        with self._told():
            url: str = self._library.sign(self._store, verb, key, timedelta(seconds=lasting_s))
        return url

    def prefix(self) -> str:
        """A new folder of this process, that was written to once, to see that it can be.

        Raises:
            ConfigError: there is no such bucket, or it may not be written.
            StorageError: nobody answers there.
        """
        prefix = f"{ROOT}/{mark('chain')}{os.urandom(4).hex()}"
        with self._told():
            self._library.put(self._store, f"{prefix}/0", b"")
            self._library.delete(self._store, [f"{prefix}/0"])
        return prefix

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        with self._told():
            try:
                return int(self._library.head(self._store, key)["size"])
            except FileNotFoundError:
                return None

    def read(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an object, fewer where it ends before."""
        with self._told():
            return bytes(self._library.get_range(self._store, key, start=start, end=end))

    def write(self, key: str, data: bytes | Path) -> None:
        """Put an object: bytes, or a file of any size, in parts."""
        with self._told():
            self._library.put(self._store, key, data)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there too."""
        with self._told():
            try:
                self._library.delete(self._store, list(keys))
            except FileNotFoundError:  # a store without bulk deletes says so of single ones
                for key in keys:
                    self._one(key)

    def _one(self, key: str) -> None:
        try:
            self._library.delete(self._store, key)
        except FileNotFoundError:
            if self.keys(key.rpartition("/")[0]):
                raise

    def keys(self, prefix: str = ROOT) -> list[str]:
        """The objects under a prefix."""
        with self._told():
            return [meta["path"] for page in self._library.list(self._store, prefix) for meta in page]

    def leftovers(self) -> dict[str, Owner]:
        """Every object of a chain, whoever owns it."""
        found = {}
        for key in self.keys():
            owner = owner_of_temporary(key.split("/")[1]) if key.count("/") > 1 else None
            if owner is not None:
                found[key] = owner
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The library's errors as ours."""
        errors = import_module("obstore.exceptions")
        try:
            yield
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise ConfigError(
                f"access to {self.where} was denied",
                where=self.where.endpoint,
                try_=DENIED,
            ) from error
        except FileNotFoundError as error:
            make = f"aws s3 mb s3://{self.where.name} --endpoint-url {self.where.endpoint}"
            raise ConfigError(f"there is no {self.where}", where=self.where.endpoint, try_=make) from error
        except (errors.BaseError, ValueError, OSError) as error:
            if untrusted := re.search(r"InvalidCertificate\(([\w\s(]+)", str(error)):
                raise ConfigError(
                    f"the certificate of {self.where} is not trusted: {untrusted[1].replace('(', ' ').split()[-1]}",
                    where=self.where.endpoint,
                    try_=UNTRUSTED,
                ) from error
            raise StorageError(
                f"{self.where} does not do as asked: {_gist(str(error))}",
                where=self.where.endpoint,
                try_=f"curl -i {self.where.endpoint}",
            ) from error


def _authorities(env: Mapping[str, str] = os.environ) -> dict[str, bytes]:
    """The certificates that AWS_CA_BUNDLE names, as the library takes them.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    named = env.get(CA_BUNDLE)
    if not named:
        return {}
    try:
        ssl.create_default_context().load_verify_locations(named)
        return {"root_certificate": Path(named).read_bytes()}
    except OSError as error:  # of which SSLError is one
        why = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"cannot read the certificates in {named}: {why}", where=CA_BUNDLE, try_=UNTRUSTED) from error


def _gist(text: str) -> str:
    """The library's sentence, without its debugging part."""
    return " ".join(text.partition("Debug source")[0].split())[:300]


__all__ = ["Bucket", "ObjectStore", "bucket"]

"""Tensors as objects in an S3-compatible store, put and got by signed addresses.

Who runs a function gives it addresses that are signed for one object, one verb and a short time, so that a function
needs neither credentials nor a library. What is got must have the size and the CRC-32 of what was put. An attempt that
fails in a way that may pass (a broken connection, a status of 500 and above, bytes that are not those that were put) is
repeated once, on a new connection; both verbs may be repeated.

`http.client` is imported with this module, and TLS with it, 19 ms of a function's start: it is the price of this
channel, and functions of the others do not load it. A store with a certificate of one's own authority is trusted where
AWS_CA_BUNDLE names that authority's.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import zlib
from urllib.parse import urlsplit

from lamella.errors import ConfigError, LamellaError, StorageError, WireError

TIMEOUT_S = 10.0
"""Without a byte from the store."""
ATTEMPTS = 2
SAID = 300
"""Characters of the store's own words in an error."""
CA_BUNDLE = "AWS_CA_BUNDLE"
"""Names a file of certificates (PEM) that are trusted beside the system's, here as by Amazon's own programs."""
UNTRUSTED = f"export {CA_BUNDLE}=FILE, the certificate (PEM) of the authority that signed the store's"
DENIED = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and this machine's clock"


class _Passing(Exception):
    """What may not happen again; holds the error if it does."""

    def __init__(self, error: LamellaError) -> None:
        self.error = error


class Objects:
    """Puts and gets objects; keeps a connection to each store."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing is connected yet. The store may be silent for `timeout_s`."""
        self._timeout_s = timeout_s
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def put(self, url: str, data: memoryview) -> int:
        """Store the bytes; their checksum.

        Raises:
            ConfigError: the store refuses, or its certificate is not trusted.
            StorageError: it fails or does not answer.
        """
        self._repeated("PUT", url, data, -1, 0)
        return zlib.crc32(data)

    def get(self, url: str, size: int, checksum: int) -> bytes:
        """The bytes of an object.

        Raises:
            ConfigError: the store refuses.
            StorageError: it fails or does not answer, or the object is gone.
            WireError: what it gives is not what was put.
        """
        return self._repeated("GET", url, None, size, checksum)

    def close(self) -> None:
        """Close the connections."""
        while self._connections:
            self._connections.popitem()[1].close()

    def _repeated(self, verb: str, url: str, data: memoryview | None, size: int, checksum: int) -> bytes:
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc)
        left = ATTEMPTS
        while True:
            used = key in self._connections
            try:
                got = self._once(key, verb, f"{parts.path}?{parts.query}", data)
                if verb == "GET":
                    _verify(got, size, checksum, parts.path)
                return got
            except _Passing as passing:
                if key in self._connections:
                    self._connections.pop(key).close()
                # an idle connection that the store has closed meanwhile is no failure of the store
                left -= not (used and isinstance(passing.__cause__, ConnectionError))
                if not left:
                    raise passing.error from passing.__cause__

    def _once(self, key: tuple[str, str], verb: str, path: str, data: memoryview | None) -> bytes:
        """One attempt."""
        where = f"{key[0]}://{key[1]}{path.partition('?')[0]}"
        try:
            connection = self._connections.get(key) or self._connect(key)
            connection.request(verb, path, data, {"Content-Length": str(len(data))} if data is not None else {})
            # a store that sends head and body apart would wait for our delayed ACK: 40 ms for every small GET
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            answer = connection.getresponse()
            body = answer.read()
        except TimeoutError as error:
            raise _Passing(
                StorageError(f"the object store was silent for {self._timeout_s:g} s at a {verb}", where=where)
            ) from error
        except http.client.IncompleteRead as error:
            raise _Passing(
                WireError(f"an object was cut short after {len(error.partial)} bytes", where=where)
            ) from error
        except ssl.SSLCertVerificationError as error:
            said = error.verify_message
            raise ConfigError(
                f"the certificate of the object store is not trusted: {said}", where=where, try_=UNTRUSTED
            ) from error
        except (http.client.HTTPException, OSError) as error:
            said = str(error) or type(error).__name__
            raise _Passing(StorageError(f"the object store failed at a {verb}: {said}", where=where)) from error
        if answer.status == 200:
            return body
        said = f"the object store answered {answer.status} {answer.reason} to a {verb}: {_told(body)}"
        if answer.status >= 500:
            raise _Passing(StorageError(said, where=where))
        if "NoSuchKey" in said:
            raise StorageError(said, where=where)
        raise ConfigError(said, where=where, try_=DENIED if answer.status in (401, 403) else "")

    def _connect(self, key: tuple[str, str]) -> http.client.HTTPConnection:
        if key[0] == "https":
            trusted = ssl.create_default_context()
            if named := os.environ.get(CA_BUNDLE):
                trusted.load_verify_locations(named)
            self._connections[key] = http.client.HTTPSConnection(key[1], timeout=self._timeout_s, context=trusted)
        else:
            self._connections[key] = http.client.HTTPConnection(key[1], timeout=self._timeout_s)
        return self._connections[key]


def _verify(got: bytes, size: int, checksum: int, where: str) -> None:
    """That it is what was put."""
    if len(got) != size:
        raise _Passing(WireError(f"an object has {len(got)} bytes, {size} were put", where=where))
    if zlib.crc32(got) != checksum:
        raise _Passing(WireError(f"an object of {size} bytes is not what was put: its checksum differs", where=where))


def _told(body: bytes) -> str:
    """The code in an error's XML, or its beginning."""
    text = body.decode(errors="replace")
    _, found, rest = text.partition("<Code>")
    return rest.partition("</Code>")[0] if found else " ".join(text.split())[:SAID]

"""What a row's video may be, and what it may open."""

import io
import ipaddress
import os
import socket
import time
import zlib
from dataclasses import dataclass
from typing import Any

import fsspec
from huggingface_hub.utils import httpx

from .credentials import mask_credentials
from .video_seeking import VideoReadError


WEB = ("http", "https")
MOST_REDIRECTS = 10
CONNECTION_SECONDS = 30.0


@dataclass(frozen=True)
class VideoAccess:
    """What the videos of a dataset may open, and how much of it.

    A video is a path, an address with one of `protocols`, or bytes. FFmpeg gets bytes only: whatever a file or a name says, it opens
    nothing by itself.

    Args:
        folders: the only folders whose files may be opened, also after links are followed; then addresses are refused. None for
            every file that the user may read.
        protocols: of addresses: `http` and `https`, and file systems of fsspec, also chained (`zip://clip.mp4::s3://bucket/part.zip`).
            A redirect from a public address to a local one is refused.
        max_bytes: size of the largest download.
        max_seconds: longest time for a download, and longest time for decoding one video.

    Raises:
        ValueError: a limit that is not above 0.
    """

    folders: tuple[str, ...] | None = None
    protocols: tuple[str, ...] = (*WEB, "hf", "s3", "gs", "zip", "tar", "memory")
    max_bytes: int = 4 * 2**30
    max_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_seconds"):
            if not 0 < getattr(self, name) < 1e15:
                raise ValueError(
                    f"Got {name}={getattr(self, name)}, expected more than 0: leave it out for the default."
                )

    def open(self, source: Any) -> Any:
        """Turn a source into an absolute path, or into a file object that can seek; a torchcodec decoder stays as it is.

        Raises:
            VideoReadError: no source, an address that may not be opened, a failed or too large download.
        """
        if isinstance(source, dict):
            data = source.get("bytes")
            source = data if data is not None else source.get("path")
        if source is None:
            raise VideoReadError(
                "got neither a path nor bytes, expected one of them: check the dataset's video column."
            )
        if isinstance(source, bytes):
            return io.BytesIO(source)
        if isinstance(source, (str, os.PathLike)):
            return self._open_name(os.fspath(source))
        if hasattr(source, "read") and not getattr(source, "seekable", lambda: hasattr(source, "seek"))():
            return io.BytesIO(source.read())  # a pipe cannot be read twice, but the file is opened more than once
        return source

    def _open_name(self, name: str) -> Any:
        if "://" not in name:
            return os.path.abspath(name)  # the decoder runs in another process, maybe in another folder
        for link in name.split("::"):
            protocol = link.partition("://")[0] if "://" in link else "file"
            if protocol in WEB and link != name:
                raise VideoReadError(
                    "got a file inside of a web address, expected an address of its own: limits hold only there; download it first."
                )
            if self.folders is not None or protocol not in self.protocols:
                allowed = (
                    "a path in the data folder"
                    if self.folders is not None
                    else f"a path or one of {', '.join(self.protocols)}"
                )
                raise VideoReadError(
                    f"got the protocol {protocol!r}, expected {allowed}: download it, or allow the protocol."
                )
        if name.startswith(tuple(f"{protocol}://" for protocol in WEB)):
            return io.BytesIO(self._download(name))
        try:
            return fsspec.open(name, "rb").open()
        except Exception as error:  # each file system has its own errors
            fault = mask_credentials(f"{type(error).__name__}: {error}")
            raise VideoReadError(f"got {fault}, expected a file at this address: check it.") from None

    def _download(self, url: str) -> bytes:
        deadline = time.monotonic() + self.max_seconds
        was_public = not _is_local(url)
        try:
            with httpx.Client(timeout=min(self.max_seconds, CONNECTION_SECONDS)) as client:
                request = client.build_request("GET", url)
                for _ in range(MOST_REDIRECTS):
                    response = client.send(request, stream=True)
                    if response.next_request is None:
                        return self._read_body(response.raise_for_status(), deadline)
                    response.close()
                    request = response.next_request
                    if was_public and _is_local(str(request.url)):
                        raise VideoReadError("got a redirect to a local address, expected a public one: check the URL.")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fault = mask_credentials(str(error))
            raise VideoReadError(f"got {fault}, expected a video at this address: check the URL.") from None
        raise VideoReadError(
            f"got more than {MOST_REDIRECTS} redirects, expected a video at this address: check the URL."
        )

    def _read_body(self, response: Any, deadline: float) -> bytes:
        data = bytearray()
        for part in response.iter_bytes():
            data += part
            if len(data) > self.max_bytes:
                raise VideoReadError(f"got more than {self.max_bytes} bytes, expected fewer: raise max_bytes.")
            if time.monotonic() > deadline:
                raise VideoReadError(
                    f"got no end of the download within {self.max_seconds:g} s, expected one: raise max_seconds."
                )
        return bytes(data)


def _is_local(url: str) -> bool:
    """Return whether a host has an address that is not public: of this machine, its network, or its cloud's metadata."""
    try:
        found = socket.getaddrinfo(httpx.URL(url).host, None)
    except OSError:  # unknown here; a proxy may know it
        return False
    return any(not ipaddress.ip_address(str(address[4][0]).split("%")[0]).is_global for address in found)


def video_name(source: Any) -> str:
    """Return the name of `source` for error messages: its path without credentials, or size and checksum of its bytes, or its type. It
    can always be printed."""
    if isinstance(source, dict):
        return video_name(source.get("path") or source.get("bytes"))
    if isinstance(source, bytes):
        return f"<{len(source):,} bytes, CRC-32 {zlib.crc32(source):08x}>"
    if isinstance(source, (str, os.PathLike)):
        return mask_credentials(os.fsdecode(source).encode("utf-8", "backslashreplace").decode())
    return f"<{type(source).__name__}>"

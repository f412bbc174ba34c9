"""Files from the network, and archives unpacked.

`pooch` fetches: it streams a file under a temporary name, compares its SHA-256, and moves it only where that is right.
Added here is what it lacks: bytes told as they come, an end to what is larger than published, files that colleagues
may read, and errors in few words. It does not go on with a broken download; for that there is `curl -C -`.

What pooch 1.9 weighs: 0.17 s to import with `requests`, when something is fetched and not before (`urllib.request`:
0.02 s), and 2.6 MB, of which 2.2 are five packages that the core has for it alone (`requests`, `urllib3`, `certifi`,
`idna`, `charset-normalizer`). Fatiando a Terra has maintained it since 2018; SciPy and scikit-image get data with it.

The standard library's `tarfile` unpacks, with its filter for data: nothing outside the folder, no devices, no owners.
"""

from __future__ import annotations

import logging
import os
import re
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from quickstudy.errors import DownloadError
from quickstudy.files import flush_folder, workplace
from quickstudy.progress import Progress, silent
from quickstudy.version import VERSION

_CHUNK_BYTES = 256 << 10


class _Counted:
    """A file that tells how much was written to it, and takes no more than it should hold."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress) -> None:
        self._file, self._size, self._progress = file, size, progress
        self._done = 0

    def write(self, data: bytes) -> None:
        self._done += len(data)
        if self._done > self._size:
            raise ValueError(f"it has more than {self._size:,} bytes")
        self._file.write(data)
        self._progress.update(done=self._done, note="")

    def flush(self) -> None:
        """Leaves flushing to the end; pooch asks for it after each chunk."""


def download(
    url: str, path: Path, *, sha256: str, size: int, timeout_seconds: float = 30, progress: Progress = silent
) -> Path:
    """Fetch `url` into the file `path`, which is created or replaced only by the file that it should be.

    Args:
        url: http or https.
        path: the file; its folder is created if need be.
        sha256: hash that the file must have, 64 hexadecimal digits.
        size: bytes that it must have; no more are fetched.
        timeout_seconds: how long the server may be silent.
        progress: is told the bytes that have come.

    Raises:
        DownloadError: it cannot be fetched, or is not the file that it should be; caused by an OSError where it cannot
            be written.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)

    def as_stored(response: requests.Response, **_: object) -> None:
        """Keeps a .gz as it is: some servers declare what it holds, and requests would unpack it."""
        response.raw.headers.pop("Content-Encoding", None)

    downloader = pooch.HTTPDownloader(
        chunk_size=_CHUNK_BYTES,
        timeout=timeout_seconds,
        headers={"User-Agent": f"quickstudy/{VERSION}", "Accept-Encoding": "identity"},
        hooks={"response": as_stored},
    )

    def fetch(url: str, output_file: str, owner: object) -> None:
        with open(output_file, "wb") as file:  # noqa: PTH123 (a plain string)
            downloader(url, _Counted(file, size, progress), owner)
            file.flush()
            os.fsync(file.fileno())  # before it has its name: whole files are not hashed again

    progress.start(path.name, size)
    try:
        with workplace(path.parent, "fetching-") as folder:
            pooch.retrieve(url, f"sha256:{sha256}", path.name, folder, downloader=fetch)
            # pooch's temporary files are their owner's alone, but a data folder may be shared.
            (folder / path.name).chmod(0o666 & path.parent.stat().st_mode)
            (folder / path.name).replace(path)
        flush_folder(path.parent)
    except requests.RequestException as error:  # an OSError, too, and sometimes a ValueError
        raise DownloadError(f"Cannot download '{url}': {_reason(error)}") from None
    except ValueError as error:
        raise DownloadError(f"'{url}' is not the file that it should be: {error}") from None
    except OSError as error:
        raise DownloadError(
            f"Cannot write '{error.filename or path}': {error.strerror or error}; make room or name another folder"
        ) from error
    finally:
        progress.finish()
    return path


def unpack(archive: Path, folder: Path, *, top: str, most_bytes: int = 4 << 30) -> Path:
    """Make what lies in the folder `top` of a .tar.gz archive the new folder `folder`, all or nothing.

    Raises:
        DownloadError: the archive is damaged, unsafe or too large, or the folder cannot be written.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(f"This Python cannot unpack '{archive}' safely; take 3.11.4 or later, or unpack it by hand")
    try:
        with workplace(folder.parent, "fetching-") as content:
            with tarfile.open(archive, "r|gz") as packed:  # as a stream: one pass, and a bomb is noticed as it unpacks
                left = most_bytes
                for member in packed:
                    if not (member.isreg() or member.isdir()):
                        raise DownloadError(f"'{archive}' holds '{member.name}', neither file nor folder; refused")
                    left -= max(member.size, 0) + tarfile.BLOCKSIZE  # empty files count, too
                    if left < 0:
                        raise DownloadError(
                            f"'{archive}' unpacks to more than {most_bytes:,} bytes, which is the limit"
                        )
                    packed.extract(member, content, filter=_as_data)
            if not (content / top).is_dir():
                raise DownloadError(f"'{archive}' holds no folder '{top}'; name another source")
            if hasattr(os, "sync"):  # once for all files; thousands of single flushes take many seconds
                os.sync()
            (content / top).replace(folder)
        flush_folder(folder.parent)
    except (tarfile.TarError, zlib.error, EOFError, ValueError, TypeError) as error:
        # ValueError: names with null characters and the like; TypeError: a gzip header that ends early.
        raise DownloadError(f"'{archive}' is damaged or not safe to unpack ({error}); get it again") from None
    except OSError as error:
        raise DownloadError(
            f"Cannot unpack '{archive}' into '{folder}': {error.strerror or error}; delete the folder if it is there"
        ) from error
    return folder


def _as_data(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuse or tame a member as Python's `data` filter does, with the permissions that new files have here."""
    return tarfile.data_filter(member, folder).replace(mode=None, deep=False)  # type: ignore[arg-type]


def _reason(error: Exception) -> str:
    """Say what went wrong in the network, without the names of the library's objects."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    text = str(inner.args[0] if isinstance(inner, Exception) and inner.args else inner)
    return re.sub(r"^(<.* object at .*>|HTTPS?Connection(Pool)?\(.*?\)): ", "", text)

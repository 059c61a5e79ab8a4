"""Fetches a checkpoint of the zoo: taken up again where it was cut, checked against the hash in its name."""

import os
import ssl
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from ccnet_hf.errors import InputError
from ccnet_hf.files import exclusive, explained, flush
from ccnet_hf.network import Failure, retry
from ccnet_hf.untrusted_checkpoints import check_hash, has_hash


TIMEOUT_S = 60.0  # without an answer or a new byte
_CHUNK_BYTES = 1 << 20
_NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download_checkpoint(url: str, folder: str | os.PathLike) -> Path:
    """Return the file of `url` in `folder`, downloading what of it is not there yet.

    What has arrived is kept as `NAME.part` until the file is whole, so that a later call goes on from there. A
    connection that breaks and an answer that may pass (408, 429, 5xx) are tried again. Of several processes that ask
    for one file, one downloads it and the others wait.

    Args:
        url: address of the file; its last part is the file's name. If that ends with eight hexadecimal digits, they
            must be the start of the file's SHA-256.
        folder: where the file is kept; made if it is not there.

    Raises:
        InputError: what arrived is not the file that its name promises; it is removed.
        OSError: the server does not give the file, cannot be reached, or the file cannot be written.
    """
    file = Path(folder) / Path(urlsplit(url).path).name
    if file.is_file():
        return file
    with explained(file), exclusive(file, wait=True):
        if not file.is_file():  # it may have come in the meantime
            _download(url, file)
    return file


def _download(url: str, file: Path) -> None:
    partial = file.with_name(f"{file.name}.part")
    retry(lambda: _fetch_rest(url, partial), url, _find_failure, progress=lambda: _size(partial))
    try:
        check_hash(partial, file.name)
    except InputError as error:
        partial.unlink()
        raise InputError(f"{error}; it came from {url} and was removed") from error
    flush(partial)
    os.replace(partial, file)


def _find_failure(error: Exception) -> Failure | None:
    if not isinstance(error, _NETWORK_ERRORS):
        return None
    if isinstance(error, HTTPError):
        is_transient = error.code in (408, 416, 429) or error.code >= 500
        return Failure(f"the server answers {error.code} {error.reason}", is_transient)
    return Failure(f"the connection broke ({error})", is_transient=True)


def _fetch_rest(url: str, partial: Path) -> None:
    """Ask for the bytes that `partial` lacks and append them, or write it anew if the server gives all of them."""
    start = _size(partial)
    headers = {"User-Agent": "ccnet-hf"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies behind what is there.
        if partial.is_file() and _is_complete(partial, error):
            return
        partial.unlink(missing_ok=True)
        raise
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.unlink(missing_ok=True)
            raise ConnectionError(f"the server gives another range than the one from byte {start}")
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        with (
            partial.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, leave=False) as progress,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"the connection was cut after {_size(partial)} of {total} bytes")


def _is_complete(partial: Path, error: HTTPError) -> bool:
    """Whether a file of which the server has no more is the whole one: by the hash in its name, else by its size."""
    if has_hash(partial.stem):
        try:
            check_hash(partial, partial.stem)
        except InputError:
            return False
        return True
    return error.headers.get("Content-Range", "") == f"bytes */{_size(partial)}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0

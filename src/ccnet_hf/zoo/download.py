"""Fetches a checkpoint of the zoo: taken up again where it was cut, checked against the hash in its name."""

import os
import ssl
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from ccnet_hf.errors import InputError
from ccnet_hf.untrusted_checkpoints import check_hash


ATTEMPTS = 5  # in a row without a single new byte
FIRST_WAIT_S = 1.0  # doubled after every further failure
TIMEOUT_S = 60.0  # without an answer or a new byte
_CHUNK_BYTES = 1 << 20
_NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download_checkpoint(url: str, folder: str | os.PathLike) -> Path:
    """Return the file of `url` in `folder`, downloading what of it is not there yet.

    What has arrived is kept as `NAME.part` until the file is whole, so that a later call goes on from there. A
    connection that breaks and an answer that may pass (408, 429, 5xx) are tried again.

    Args:
        url: address of the file; its last part is the file's name. If that ends with eight hexadecimal digits, they
            must be the start of the file's SHA-256.
        folder: where the file is kept; made if it is not there.

    Raises:
        InputError: what arrived is not the file that its name promises; it is removed.
        OSError: the server does not give the file, cannot be reached, or the file cannot be written.
    """
    folder = Path(folder)
    file = folder / Path(urlsplit(url).path).name
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    failures = 0
    while True:
        before = _size(partial)
        try:
            _fetch_rest(url, partial)
            break
        except _NETWORK_ERRORS as error:
            if isinstance(error, HTTPError) and error.code not in (408, 416, 429) and error.code < 500:
                raise OSError(f"{url} cannot be had: the server answers {error.code} {error.reason}") from error
            failures = 1 if _size(partial) > before else failures + 1
            if failures == ATTEMPTS:
                raise OSError(
                    f"{url} could not be downloaded, {ATTEMPTS} attempts in a row failed: {error}"
                ) from error
            time.sleep(FIRST_WAIT_S * 2 ** (failures - 1))
    try:
        check_hash(partial, file.name)
    except ValueError as error:
        partial.unlink()
        raise InputError(f"{error}; it came from {url} and was removed") from error
    os.replace(partial, file)
    return file


def _fetch_rest(url: str, partial: Path) -> None:
    """Ask for the bytes that `partial` lacks and append them, or write it anew if the server gives all of them."""
    start = _size(partial)
    headers = {"User-Agent": "ccnet-hf"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416:  # nothing lies behind `start`: another file, or one that was not yet checked
            partial.unlink(missing_ok=True)
        raise
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.unlink(missing_ok=True)
            raise ConnectionError(f"the server gives another range than the one from byte {start}")
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            partial.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, leave=False) as progress,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"the connection was cut after {_size(partial)} of {total} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0

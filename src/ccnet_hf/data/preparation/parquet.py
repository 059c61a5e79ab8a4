"""Parquet files that appear complete or not at all, and in which damage is found without decoding them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ccnet_hf.errors import reading
from ccnet_hf.files import atomic_file


CHECKSUM_KEY = b"ccnet_hf.crc32"  # in a file's metadata: of all bytes in front of its footer
_MAGIC_BYTES = 4  # at either end of a file
_TAIL_BYTES = 4 + _MAGIC_BYTES  # after the footer: its length, the magic
_BLOCK_BYTES = 1 << 20


@contextmanager
def parquet_writer(file: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a parquet file, which appears when the block ends without an error, with the checksum of its data.

    Args:
        file: what to write or replace.
        schema: of its rows.

    Raises:
        OSError: as `ccnet_hf.files.atomic_file`.
    """
    with atomic_file(file) as unfinished, open(unfinished, "wb") as opened:
        counted = _Counted(opened)
        with pq.ParquetWriter(counted, schema, compression="zstd") as writer:
            yield writer
            writer.add_key_value_metadata({CHECKSUM_KEY: f"{counted.checksum:08x}"})


class _Counted(io.RawIOBase):
    """A file to write, and the checksum of what was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.checksum = file, 0

    def writable(self) -> bool:
        return True

    def write(self, block: bytes) -> int:
        self.checksum = zlib.crc32(block, self.checksum)
        return self.file.write(block)

    def tell(self) -> int:
        return self.file.tell()


def check_parquet(file: Path) -> pq.FileMetaData:
    """Read the footer of a parquet file, and make sure that all it tells of is there.

    Every row group has to lie inside the file, and the bytes have to be those that `parquet_writer` has written: a
    file that lost some of them in the middle still has its length and its footer.

    Raises:
        InputError: the file is missing, empty, cut or otherwise damaged.
    """
    with reading(file), open(file, "rb") as opened:
        metadata = pq.read_metadata(opened)
        length = opened.seek(-_TAIL_BYTES, io.SEEK_END)
        length -= int.from_bytes(opened.read(4), "little")
        stated = (metadata.metadata or {}).get(CHECKSUM_KEY)
        if stated is not None and stated.decode() != f"{_checksum(opened, length):08x}":
            raise ValueError("it is damaged, its bytes are not those that were written")
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        for group in groups:
            for column in map(group.column, range(group.num_columns)):
                start = column.dictionary_page_offset or column.data_page_offset
                if start < _MAGIC_BYTES or start + column.total_compressed_size > length:
                    raise ValueError("it is damaged, its footer tells of rows outside of it")
        if sum(group.num_rows for group in groups) != metadata.num_rows:
            raise ValueError("it is damaged, its parts have other numbers of rows than the whole")
    return metadata


def _checksum(file: BinaryIO, length: int) -> int:
    """Of the first `length` bytes."""
    checksum, left = 0, length
    file.seek(0)
    while block := file.read(min(left, _BLOCK_BYTES)):
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    return checksum

"""Files that people upload: what is no picture, or none that can be taken, and pictures of unusual kinds."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


# What the page says of each.
REFUSED = {
    "notes.txt": "notes.txt: cannot be read (it is not an image in ",
    "notes.png": "notes.png: cannot be read (it is not an image in ",
    "huge.png": "huge.png has more than 16 megapixels",
    "cut.jpg": "cut.jpg: cannot be read (",
    "empty.jpg": "empty.jpg: cannot be read (",
}
TAKEN = ("pages.tif", "moving.gif", "print.jpg", "deep.png")
SIZE = (48, 32)  # width, height


def write_odd_pictures(folder: Path) -> None:
    """Write all of `REFUSED` and `TAKEN`; the upper left quarter of what is taken is bright."""
    for name in ("notes.txt", "notes.png"):
        (folder / name).write_text("This is no picture.\n" * 10)
    (folder / "empty.jpg").touch()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b""))

    pixels = np.zeros((*SIZE[::-1], 3), dtype=np.uint8)
    pixels[:16, :24] = (250, 200, 150)
    image = Image.fromarray(pixels)
    image.resize((480, 320)).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    other = Image.new("RGB", SIZE)
    image.save(folder / "pages.tif", save_all=True, append_images=[other])
    image.save(folder / "moving.gif", save_all=True, append_images=[other], duration=100)
    image.convert("CMYK").save(folder / "print.jpg", quality=95)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

"""Label maps as the Cityscapes test server takes them."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ccnet_hf.data.benchmarks.cityscapes import LABEL_IDS
from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file


def save_label_ids(name: str, label_map: torch.Tensor, folder: Path) -> Path:
    """Write a label map of training ids as a single-channel PNG of label ids.

    Args:
        name: of the image, `<city>_<sequence>_<frame>` at its beginning, by which the server finds its truth.
        label_map: (H, W) training ids 0..18 at the image's own size.
        folder: where `<city>_<sequence>_<frame>_labelIds.png` is written.

    Raises:
        InputError: the name begins otherwise.
        OSError: the file cannot be written.
    """
    frame = re.match(r"[a-z-]+_\d{6}_\d{6}", Path(name).name)
    if frame is None:
        raise InputError(f"{name} does not begin with <city>_<sequence>_<frame>, as the Cityscapes server needs it")
    path = folder / f"{frame[0]}_labelIds.png"
    label_ids = Image.fromarray(np.array(LABEL_IDS, dtype=np.uint8)[label_map.cpu().numpy()])
    with atomic_file(path) as unfinished:
        label_ids.save(unfinished)
    return path

"""A server that segments pictures: a picture's bytes in, its label map as PNG out (pixel = id of the class).

`MODEL=checkpoint uvicorn --app-dir examples/server app:app` serves a checkpoint, or a folder of `ccnet-hf export`;
`curl --data-binary @street.jpg http://127.0.0.1:8000/segment --output labels.png` asks it, `/classes` names the ids.
"""

import io
import os
from threading import Lock

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from ccnet_hf import InputError
from ccnet_hf.data.images import open_image, to_rgb
from ccnet_hf.deployment.programs import is_exported
from ccnet_hf.inference.predictor_arguments import PredictorArguments


MODEL = os.environ["MODEL"]
MAX_BYTES = 20 << 20  # of a picture's file
MAX_PIXELS = 25_000_000

# A checkpoint in its rewritten form, which gives the same numbers in less time; an exported folder as it is.
predictor = PredictorArguments(
    model_name_or_path=MODEL, runtime=None if is_exported(MODEL) else "eager"
).load_predictor()
one_at_a_time = Lock()  # the network takes all cores; two at once would only take more memory
app = FastAPI(title="ccnet_hf")


@app.get("/classes")
def classes() -> dict[int, str]:
    """The names of the classes by their ids."""
    return predictor.config.id2label


@app.post("/segment", response_class=Response)
async def segment(request: Request) -> Response:
    """The label map of the picture in the request's body."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the picture has more than {MAX_BYTES >> 20} MiB")
    try:
        return Response(await run_in_threadpool(label_png, bytes(body)), media_type="image/png")
    except InputError as error:
        raise HTTPException(400, f"the picture: {error}") from error


def label_png(encoded: bytes) -> bytes:
    """The label map of an image file, as a PNG file."""
    try:
        image = to_rgb(open_image(encoded, MAX_PIXELS))
    except InputError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise InputError(f"it has more than {MAX_PIXELS / 1e6:g} megapixels") from error
        raise
    with one_at_a_time:
        label_map = predictor.label_map(image)
    png = io.BytesIO()
    Image.fromarray(label_map.numpy().astype(np.uint8)).save(png, "PNG")
    return png.getvalue()

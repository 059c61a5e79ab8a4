# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export a checkpoint, and serve it
#
# A checkpoint becomes a program for ONNX Runtime, is compared with the checkpoint, and answers over HTTP. Needs
# `pip install '.[export,timm]'` in a clone of the repository, whose checkpoint and picture it uses.

# %%
import base64
import io
import json
import shutil
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from ccnet_hf.deployment.programs import ExportedRuntime
from ccnet_hf.exporting.export import ExportArguments, export
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.loading import load_checkpoint, load_config


CHECKPOINT, EXPORTED = "../checkpoints/ccnet-mobilenetv2-camvid", "runs/exported"
image = Image.open("../examples/street.jpg").convert("RGB")

# %% [markdown]
# ## Export
#
# The same as `ccnet-hf export CHECKPOINT --format onnx --output DIR`. Rewrites that change nothing come first (batch
# norms folded into convolutions), and what was written is run and compared before the folder gets its name.

# %%
shutil.rmtree(EXPORTED, ignore_errors=True)
export(ExportArguments(model_name_or_path=CHECKPOINT, format="onnx", output=EXPORTED))

# %% [markdown]
# `Predictor` takes the program in place of a model; so do `ccnet-hf segment` and `ccnet-hf eval`, given the folder.

# %%
model, processor = load_checkpoint(CHECKPOINT, "float32", "cpu")
predictor = Predictor(ExportedRuntime(EXPORTED, load_config(EXPORTED)), processor)
(label_map,) = predictor.label_maps([image])
(expected,) = Predictor(model, processor).label_maps([image])
different = (label_map != expected).float().mean().item()
print(f"{100 * different:.4f} % of the pixels have another class than with the checkpoint")
assert different < 1e-3

# %% [markdown]
# ## Serve
#
# A server of the standard library, on this machine only, that takes an image file and answers with the classes and a
# label map as PNG. For production put the same few lines of `answer` into the server of your choice, with a limit on
# the size of a request.


# %%
def answer(data: bytes) -> dict:
    """Classes by their share of the pixels, and the label map (class ids) as a PNG in base64."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    (labels,) = predictor.label_maps([picture])
    shares = labels.flatten().bincount(minlength=model.config.num_labels) / labels.numel()
    file = io.BytesIO()
    Image.fromarray(labels.byte().cpu().numpy()).save(file, "PNG")
    return {
        "classes": {
            model.config.id2label[label]: round(share, 4) for label, share in enumerate(shares.tolist()) if share
        },
        "label_map": base64.b64encode(file.getvalue()).decode(),
    }


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        try:
            status, content = 200, answer(self.rfile.read(min(length, 20_000_000)))
        except OSError:  # what Pillow raises where it finds no image
            status, content = 400, {"error": "the request holds no image that can be read"}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"

# %%
with open("../examples/street.jpg", "rb") as file:
    request = urllib.request.Request(address, data=file.read(), method="POST")
with urllib.request.urlopen(request) as response:
    result = json.load(response)
served = Image.open(io.BytesIO(base64.b64decode(result["label_map"])))
assert served.size == image.size
result["classes"]

# %%
try:
    urllib.request.urlopen(urllib.request.Request(address, data=b"no image", method="POST"))
except urllib.error.HTTPError as error:
    print(error.code, json.load(error)["error"])
server.shutdown()
server.server_close()

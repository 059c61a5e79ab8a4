"""The options of the web page; nothing of the extra `demo` is imported until it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError
from ccnet_hf.inference.predictor_arguments import PredictorArguments
from ccnet_hf.limits import MAX_PIXELS, check_range


# Of the repository, where the package is installed from it; an installed wheel has neither.
_REPOSITORY = Path(__file__).parents[3]
EMBEDDED_CHECKPOINT = _REPOSITORY / "checkpoints" / "ccnet-efficientnet-camvid"
SAMPLES = _REPOSITORY / "examples"


@dataclass(kw_only=True)
class DemoArguments(PredictorArguments):
    model_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "metavar": "MODEL",
            "help": "folders of CCNets, also exported ones, or namespace/name on the Hub, to choose from on the page; "
            "default: the checkpoint of the repository",
        },
    )
    host: str | None = field(
        default=None,
        metadata={"help": "address to listen on, 0.0.0.0: all; default: GRADIO_SERVER_NAME, or else 127.0.0.1"},
    )
    port: int | None = field(
        default=None,
        metadata={"help": "port to listen on; default: GRADIO_SERVER_PORT, or else the first free one from 7860 on"},
    )
    max_image_pixels: int = field(
        default=16_000_000,
        metadata={
            "help": "largest picture that is read, in pixels; the default takes a phone's 12 megapixels and bounds "
            "how long one picture keeps other visitors waiting"
        },
    )
    max_upload_megabytes: int = field(default=50, metadata={"help": "largest file that may be uploaded"})
    max_video_frames: int = field(default=600, metadata={"help": "longest video that is segmented, in frames"})
    max_waiting: int = field(default=32, metadata={"help": "requests that may wait; further ones are turned away"})

    def __post_init__(self):
        check_range("--port", self.port, 1, 65_535)
        check_range("--max_image_pixels", self.max_image_pixels, 1, MAX_PIXELS)
        check_range("--max_upload_megabytes", self.max_upload_megabytes, 1, 4096)
        check_range("--max_video_frames", self.max_video_frames, 1, 1_000_000)
        check_range("--max_waiting", self.max_waiting, 1, 10_000)
        if self.model_name_or_path is None:
            if not EMBEDDED_CHECKPOINT.is_dir():
                raise InputError("--model_name_or_path is needed: the checkpoint of the repository is not here")
            self.model_name_or_path = [str(EMBEDDED_CHECKPOINT)]


def main(argv: Sequence[str] | None = None, prog: str = "demo.py") -> int:
    """Run the command; returns the exit status."""
    return run_command(
        DemoArguments,
        "ccnet_hf.demo.server:serve",
        argv,
        prog,
        description="Open a web page that segments pictures and videos and shows what a pixel attends to.",
    )

"""The page: three tabs, and what happens when something is chosen in them.

Nothing is kept here: what belongs to a user is in a state of the session, which gradio hands to the functions below.
"""

import logging
import os
import tempfile
from html import escape
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
from gradio.components import Component
from gradio.utils import get_upload_folder

from ccnet_hf.demo.checkpoints import Checkpoints, describe_runtime
from ccnet_hf.demo.demo_arguments import SAMPLES, DemoArguments
from ccnet_hf.demo.pictures import (
    SegmentedPicture,
    attend_to_picture,
    read_picture,
    segment_clip,
    segment_picture,
)
from ccnet_hf.demo.style import figures, legend, refusal, swatches
from ccnet_hf.errors import InputError, describe
from ccnet_hf.inference.images import find_images
from ccnet_hf.visualization import format_share


_logger = logging.getLogger(__name__)
_TITLE = "CCNet"
_SUBTITLE = (
    "Semantic segmentation with criss-cross attention: every pixel looks along its row and its column, and by looking "
    "twice it reaches the whole picture."
)
_FILES_LIVE = (600, 3600)  # seconds between two looks at the files of the page, and after which they are removed
_STATE_LIVES = 3600  # seconds after the last use of what is kept of a picture
_NO_PICTURE = "Choose a picture in the first tab."
_NOT_OURS = "this is nothing that the page sends"
_HOW_TO_LOOK = "Click on a pixel of the picture to see what it gathers information from."
_FAR = 1_000_000_000  # beyond any picture, in pixels, and any list of classes
# For this page only, not for programs; and what it sends is checked here: gradio's checks write each mistake into the
# log at length, and know less of broken pictures.
_PRIVATE = {"api_visibility": "private", "preprocess": False}


class Page:
    """What the page does, by the checkpoints that there are and the limits of the command."""

    def __init__(self, arguments: DemoArguments):
        self.arguments = arguments
        self.checkpoints = Checkpoints(arguments)

    def segment(self, file: dict | None, checkpoint: str, alpha: float) -> dict[str, object]:
        """What a picture shows after it was chosen, by the names of the components that show it."""
        path, alpha = _uploaded_path(file), _opacity(alpha)
        if path is None:
            return _shown(None, "Choose a picture: a file, the camera, or the sample.")
        try:
            image = read_picture(path, self.arguments.max_image_pixels)
            predictor = self.checkpoints.predictor(checkpoint)
            picture, labels = segment_picture(predictor, image)
        except InputError as error:
            return _shown(None, refusal(str(error)))
        labels_file = _own_folder() / f"{Path(path).stem}_labels.png"
        labels.save(labels_file)
        height, width = picture.size
        note = f"<strong>{picture.seconds:.2f} s</strong> for {width}x{height} pixels, {describe_runtime(predictor)}."
        return _shown(picture, note, alpha, labels_file)

    def redraw(self, picture: SegmentedPicture | None, labels: list[int], alpha: float):
        labels, alpha = _chosen_labels(labels), _opacity(alpha)
        return None if picture is None else picture.overlay(labels, alpha)

    def attend(self, picture: SegmentedPicture | None, checkpoint: str, click: gr.EventData):
        """The two rows of views and the note, after a click."""
        if picture is None:
            return "", "", _NO_PICTURE
        try:
            predictor = self.checkpoints.predictor(checkpoint, "attention")
            x, y = _clicked_pixel(click)
            raw, ratios, gammas = attend_to_picture(predictor, picture.image, (x, y))
        except InputError as error:
            return "", "", refusal(str(error))
        name = next((entry.name for entry in picture.classes if entry.label == picture.label_map[y, x]), "no class")
        rounds = " and ".join(f"{gamma:.3g}" for gamma in dict.fromkeys(gammas))
        note = (
            f"Pixel <strong>{x}, {y}</strong>: <strong>{escape(name)}</strong>. What attention gathers is multiplied "
            f"by gamma = <strong>{rounds}</strong> before it is added to the features: near 0 it hardly counts."
        )
        return figures(raw, in_pairs=True), figures(ratios), note

    def segment_video(self, file: dict | None, checkpoint: str, progress: gr.Progress = gr.Progress()):  # noqa: B008
        """The tinted video, and the note with its legend."""
        path = _uploaded_path(file)
        if path is None:
            return None, "Choose a video."
        output = _own_folder() / f"{Path(path).stem}_overlay.mp4"
        try:
            segmenter = self.checkpoints.predictor(checkpoint, "video")
            number, seconds, classes = segment_clip(
                segmenter,
                path,
                output,
                self.arguments.max_video_frames,
                lambda done, total: progress((done, total), unit="frames"),
            )
        except InputError as error:
            return None, refusal(str(error))
        speed = f"<strong>{number}</strong> frames, <strong>{number / seconds:.1f}</strong> a second, "
        return str(output), f"{speed}{describe_runtime(segmenter)}.{legend(classes)}"


def _shown(
    picture: SegmentedPicture | None, note: str, alpha: float = 0.5, labels_file: Path | None = None
) -> dict[str, object]:
    """What the components of the first two tabs show of a picture, or of none, by their names."""
    classes = () if picture is None else picture.classes
    labels = [entry.label for entry in classes]
    choices = [(f"{entry.name} {format_share(entry.share)}", entry.label) for entry in classes]
    return {
        "picture": picture,
        "overlay": None if picture is None else picture.overlay(labels, alpha),
        "note": note,
        "classes": gr.CheckboxGroup(choices=choices, value=labels, visible=bool(choices)),
        "swatches": swatches(classes),
        "download": gr.DownloadButton(
            value=None if labels_file is None else str(labels_file), interactive=labels_file is not None
        ),
        "attended": None if picture is None else picture.image,
        "weights": "",
        "ratios": "",
        "attention_note": _NO_PICTURE if picture is None else _HOW_TO_LOOK,
    }


def _own_folder() -> Path:
    """A new folder for files that the page serves, under a name that no one guesses."""
    return Path(tempfile.mkdtemp(dir=get_upload_folder()))


def _uploaded_path(sent: dict | None) -> str | None:
    """The path of an upload. gradio has made sure of its form, but not of where it leads: what a picture names without
    `meta` is no file to it."""
    if sent is None or sent["path"] is None:
        return None
    path = os.path.abspath(sent["path"])
    if not Path(path).is_relative_to(os.path.abspath(get_upload_folder())):
        raise _Misused(_NOT_OURS)
    return path


def _opacity(sent) -> float:
    if isinstance(sent, int | float) and 0 <= sent <= 1:
        return sent
    raise _Misused("the opacity is a number from 0 to 1")


def _chosen_labels(sent) -> list[int]:
    if isinstance(sent, list) and all(isinstance(label, int) and 0 <= label < _FAR for label in sent):
        return sent
    raise _Misused("the classes are chosen by a list of their numbers")


def _clicked_pixel(click: gr.EventData) -> tuple[int, int]:
    """(x, y) of a click on a picture, of which gradio passes on what it was sent.

    Raises:
        InputError: that tells of no pixel.
    """
    sent = click._data
    index = sent.get("index") if isinstance(sent, dict) else None
    if not (
        isinstance(index, list)
        and len(index) == 2
        and all(isinstance(number, int | float) and abs(number) < _FAR for number in index)
    ):
        raise InputError("a click is on a pixel, whose column and row are two numbers")
    return int(index[0]), int(index[1])


class _Misused(gr.Error):
    """What a program is told that sends what the page does not; its mistake is no traceback in the log."""

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


class _Blocks(gr.Blocks):
    """Blocks that say in one line of the log what of an event they cannot take: too few values, no upload."""

    async def preprocess_data(self, *arguments, **options):
        try:
            return await super().preprocess_data(*arguments, **options)
        except Exception as error:
            _logger.warning("an event was turned away: %s", describe(error))
            raise _Misused(_NOT_OURS) from error


def build(arguments: DemoArguments) -> gr.Blocks:
    """The page, ready to be launched; the first checkpoint is loaded."""
    page = Page(arguments)
    names = page.checkpoints.names
    page.checkpoints.predictor(names[0])
    with _Blocks(
        title=f"{_TITLE}: criss-cross attention", analytics_enabled=False, delete_cache=_FILES_LIVE
    ) as blocks:
        with gr.Row(equal_height=False, elem_id="header"):
            gr.Markdown(f"# {_TITLE}\n{_SUBTITLE}", elem_id="title")
            checkpoint = gr.Dropdown(
                names, value=names[0], label="Checkpoint", interactive=len(names) > 1, scale=0, min_width=300
            )
        with gr.Tab("Segment", id="segment"):
            chosen, alpha, shown = _segment_tab()
        with gr.Tab("Attention", id="attention"):
            shown |= _attention_tab()
        with gr.Tab("Video", id="video"):
            _video_tab(page, checkpoint)
        shown["picture"] = gr.State(None, time_to_live=_STATE_LIVES)
        _connect(page, blocks, checkpoint, chosen, alpha, shown)
    return blocks


def _segment_tab() -> tuple[gr.Image, gr.Slider, dict[str, Component]]:
    """The picture that is chosen, the strength of the colours, and what shows the result."""
    samples = [str(path) for path in find_images([str(SAMPLES)])] if SAMPLES.is_dir() else []
    with gr.Row(equal_height=False):
        with gr.Column():
            chosen = gr.Image(
                value=samples[0] if samples else None,
                type="filepath",
                sources=["upload", "webcam", "clipboard"],
                label="Picture",
                height=380,
                elem_id="chosen",
            )
            if samples:
                gr.Examples([[sample] for sample in samples], chosen, label="Samples", api_visibility="private")
        with gr.Column():
            overlay = gr.Image(
                label="Classes", interactive=False, height=380, elem_id="overlay", buttons=["download", "fullscreen"]
            )
            note = gr.HTML(elem_classes="note", elem_id="note")
            alpha = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity of the colours", elem_id="opacity")
    swatches_ = gr.HTML(padding=False)
    classes = gr.CheckboxGroup(
        [], label="Classes, and their fraction of the pixels", show_select_all=True, elem_id="classes", visible=False
    )
    download = gr.DownloadButton("Label map as PNG (pixel = class)", size="md", interactive=False, elem_id="download")
    shown = {"overlay": overlay, "note": note, "classes": classes, "swatches": swatches_, "download": download}
    return chosen, alpha, shown


def _attention_tab() -> dict[str, Component]:
    """What shows the attention of a pixel."""
    with gr.Row(equal_height=False):
        with gr.Column():
            note = gr.HTML(elem_classes="note", elem_id="attention-note")
            attended = gr.Image(label="Picture", show_label=False, interactive=False, buttons=[], elem_id="attended")
        with gr.Column():
            weights = gr.HTML(elem_id="weights")
    with gr.Accordion("Compared with attention that prefers nothing", open=False):
        gr.Markdown("Orange: more than under even weights, up to 16 times; blue: less.")
        ratios = gr.HTML(elem_id="ratios")
    return {"attended": attended, "attention_note": note, "weights": weights, "ratios": ratios}


def _video_tab(page: Page, checkpoint: gr.Dropdown) -> None:
    if find_spec("av") is None:
        gr.Markdown("Videos need the extra `video`: `pip install 'ccnet-hf[video]'`.")
        return
    with gr.Row(equal_height=False):
        with gr.Column():
            video = gr.Video(label="Video", sources=["upload"], height=380, elem_id="video", include_audio=True)
            button = gr.Button("Segment the video", variant="primary", elem_id="segment-video")
        with gr.Column():
            tinted = gr.Video(label="Classes", interactive=False, height=380, elem_id="tinted", buttons=["download"])
            note = gr.HTML(
                f"Videos of up to {page.arguments.max_video_frames} frames, one after another.",
                elem_classes="note",
                elem_id="video-note",
            )
    button.click(page.segment_video, [video, checkpoint], [tinted, note], concurrency_limit=1, **_PRIVATE)


def _connect(
    page: Page,
    blocks: gr.Blocks,
    checkpoint: gr.Dropdown,
    chosen: gr.Image,
    alpha: gr.Slider,
    shown: dict[str, Component],
) -> None:
    """What happens in the first two tabs. The network computes for one user at a time; others wait in the queue."""
    network = {"concurrency_id": "network", "concurrency_limit": 1, **_PRIVATE}

    def segment(file: dict | None, name: str, alpha: float) -> dict[Component, object]:
        return {shown[part]: value for part, value in page.segment(file, name, alpha).items()}

    gr.on(
        [blocks.load, chosen.change, checkpoint.change],
        segment,
        [chosen, checkpoint, alpha],
        list(shown.values()),
        trigger_mode="always_last",
        **network,
    )
    gr.on(
        [alpha.input, shown["classes"].input],
        page.redraw,
        [shown["picture"], shown["classes"], alpha],
        shown["overlay"],
        trigger_mode="always_last",
        show_progress="hidden",
        **_PRIVATE,
    )
    shown["attended"].select(
        page.attend,
        [shown["picture"], checkpoint],
        [shown["weights"], shown["ratios"], shown["attention_note"]],
        trigger_mode="always_last",
        **network,
    )

"""The attention figure: from a pixel of an image to the feature map, and the command."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_backbone_config, tiny_model, tiny_parsing_model

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.errors import InputError
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.attend import draw_figure, main
from ccnet_hf.visualization import attention_map


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_attention_of_a_pixel(image):
    model = tiny_model(recurrence=3).double()
    processor = CCNetImageProcessor(size={"height": 80, "width": 120})
    attention = Predictor(model, processor).attention(image, (89, 10))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"].double()
    with torch.no_grad():
        expected = [weights[0] for weights in model(pixel_values, output_attentions=True).attentions]
    assert attention.gammas == pytest.approx([0.7] * 3) and len(attention.rounds) == 3
    torch.testing.assert_close(attention.rounds, expected, rtol=0, atol=1e-12)
    assert attention.position == (1, 14)  # of 10x15
    torch.testing.assert_close(attention.map(), attention_map(expected, (1, 14)), rtol=0, atol=0)
    torch.testing.assert_close(attention.map(2), attention_map(expected[1:2], (1, 14)), rtol=0, atol=0)
    assert attention.at_image_size(attention.map()).shape == (60, 90)


def test_attention_in_the_backbone_is_not_the_head_s(image):
    trunk = tiny_backbone_config(attention_stage="stage3", attention_query_key_size=4, attention_recurrence=3)
    model = tiny_model(recurrence=2, backbone_config=trunk)
    torch.nn.init.constant_(model.model.backbone.stages[2].attention.gamma, 0.3)
    attention = Predictor(model, CCNetImageProcessor(size={"height": 80, "width": 120})).attention(image, (9, 9))
    assert attention.gammas == pytest.approx([0.7] * 2) and len(attention.rounds) == 2


@pytest.mark.parametrize(("point", "position"), [((0, 0), (0, 0)), ((89, 59), (9, 14)), ((45, 30), (5, 7))])
def test_corners_and_centre(image, point, position):
    processor = CCNetImageProcessor(size={"height": 80, "width": 120})
    assert Predictor(tiny_model(), processor).attention(image, point).position == position


def test_in_a_letterbox(image):
    """The image fills the middle 32 of 48 rows: its upper left corner is at row 8 of the input."""
    processor = CCNetImageProcessor(size={"height": 48, "width": 48}, do_letterbox=True, align_corners=True)
    predictor = Predictor(tiny_parsing_model(), processor)
    attention = predictor.attention(image, (0, 0))
    assert attention.rounds[0].shape == (3, 3, 6) and attention.position == (0, 0)
    assert predictor.attention(image, (89, 59)).position == (2, 2)
    weights = torch.zeros(3, 3)
    weights[1, 1] = 1.0
    there = attention.at_image_size(weights)
    row, column = divmod(int(there.argmax()), 90)
    assert there.shape == (60, 90) and abs(row - 29.5) < 3 and abs(column - 44.5) < 3


def test_the_command(image, tmp_path, capsys):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    CCNetImageProcessor(size={"height": 80, "width": 120}).save_pretrained(tmp_path / "model")
    image.save(tmp_path / "image.png")
    arguments = [str(tmp_path / "image.png"), "--model_name_or_path", str(tmp_path / "model")]
    output = tmp_path / "figure.png"
    assert main([*arguments, "--output", str(output), "--point", "10,59"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.endswith("position (9, 1) of 10x15 (rows, columns), gamma 0.7")
    figure = Image.open(output)
    assert figure.width > 4 * 300 and figure.height > 2 * 300
    output.unlink()
    for point, message in {
        "90,0": "the point 90,0 is not on the image of 90x60 (width x height)",
        "5": "--point must be X,Y, such as 320,180, got '5'",
        "nan,3": "the point nan,3 is not on the image",
    }.items():
        assert main([*arguments, "--output", str(output), "--point", point]) == 1
        assert message in capsys.readouterr().err
    for backbone in (tiny_backbone_config(), tiny_backbone_config(attention_stage="stage3")):
        tiny_model(recurrence=0, backbone_config=backbone).save_pretrained(tmp_path / "model")
        assert main([*arguments, "--output", str(output), "--point", "1,1"]) == 1
        assert "the model's head has no criss-cross attention to look at" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (1, 20_000)])
def test_a_narrow_picture_has_a_figure_of_modest_size(size):
    """It was enlarged until its shorter side had 300 pixels, the longer one with it: gigabytes."""
    point = (size[0] - 1, size[1] - 1)
    attention = Predictor(tiny_model(), CCNetImageProcessor(size={"height": 40, "width": 40})).attention(
        image := Image.new("RGB", size, (200, 30, 40)), point
    )
    figure = draw_figure(image, point, attention)
    assert figure.width * figure.height < 50_000_000
    assert figure.width > 400  # room for the captions


@pytest.mark.parametrize("point", [5, None, ("a", "b"), (1, 2, 3), "12"])
def test_points_of_another_kind_are_named(point):
    predictor = Predictor(tiny_model(), CCNetImageProcessor(size={"height": 40, "width": 40}))
    with pytest.raises(InputError, match=r"point must be \(x, y\)"):
        predictor.attention(Image.new("RGB", (40, 40)), point)


@pytest.mark.parametrize("number", [0, -1, 3, 1.0, "1"])
def test_rounds_are_counted_from_1(number):
    predictor = Predictor(tiny_model(), CCNetImageProcessor(size={"height": 40, "width": 40}))
    attention = predictor.attention(Image.new("RGB", (40, 40)), (1, 2))
    assert len(attention.rounds) == 2
    with pytest.raises(InputError, match=r"`rounds` must be (at least 1|at most 2|an integer), got"):
        attention.map(number)

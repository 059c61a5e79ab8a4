"""How far a model looks, where that is known."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model, wake_attention

from ccnet_hf.experiments.receptive_field import gradient_by_distance, main


class _Window(torch.nn.Module):
    """Logits at stride 1 whose class 0 sums a window of 5x5 pixels and whose class 1 is 0."""

    def forward(self, pixel_values):
        total = torch.nn.functional.conv2d(pixel_values, torch.ones(1, 3, 5, 5), padding=2)
        return SimpleNamespace(logits=torch.cat([total, torch.zeros_like(total)], 1))


def test_a_window_of_known_size():
    shares = gradient_by_distance(_Window(), torch.ones(1, 3, 21, 23), 10, 11)
    # Of 25 pixels, the centre and its 8 neighbours are nearer than 2 pixels, 16 are at 2 to 2.9.
    expected = torch.tensor([1, 8, 16]) / 25
    torch.testing.assert_close(shares[:3], expected)
    assert shares.sum() == pytest.approx(1) and not shares[3:].any()


def test_attention_looks_further():
    """With R = 2 every pixel reaches every other; the convolutions of this backbone do not."""
    pixel_values = torch.randn(1, 3, 33, 257)
    reach = {}
    for gamma in (0.0, 0.7):
        model = tiny_model()
        wake_attention(model.model.head.attention)
        torch.nn.init.constant_(model.model.head.attention.gamma, gamma)
        shares = gradient_by_distance(model, pixel_values, 2, 2)
        reach[gamma] = int(shares.nonzero().max())
    assert reach[0.0] < 200 < reach[0.7]


def test_bad_arguments_are_one_line(tmp_path, capsys):
    for arguments in (["--num_examples", "0"], []):
        status = main(["--model_name_or_path", str(tmp_path / "none"), "--dataset_name", "none", *arguments])
        assert status == 1 and capsys.readouterr().err.count("\n") == 1

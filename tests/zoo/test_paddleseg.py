"""PaddleSeg's checkpoint: the converted network against PaddleSeg's own numbers, in memory and from the file."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import assert_close, assert_same_statistics, load_golden
from paddle_weights import checksum, key_shapes, paddle_state_dict, save_pdparams
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ccnet_hf import CCNetForSemanticSegmentation
from ccnet_hf.inference import Predictor, predict_logits
from ccnet_hf.recipes import PADDLESEG_VARIANT, RECIPES, get_recipe
from ccnet_hf.zoo import convert_checkpoint
from ccnet_hf.zoo.__main__ import main
from ccnet_hf.zoo.convert import main as convert_command
from ccnet_hf.zoo.paddleseg import fold_biases, paddleseg_key


INPUTS = ["paddle_r101_c19_1x3x65x97", "paddle_r101_c19_2x3x64x80"]
# Of the largest magnitude. In float32 another order of summation, with room; in float64 what lies before the resize,
# whose weights Paddle computes in float32, and what lies behind it.
FLOAT32, FLOAT64, RESIZED, LOSS, GRADIENT = 2e-4, 1e-9, 5e-6, 1e-6, 5e-6
FROM_FILE = 1e-6  # float64 from a file in float32, where the folding is rounded
# In exact arithmetic this gradient is zero: a key's bias adds one number to every score of a pixel.
ZERO_GRADIENT = "head.cca.k_conv.bias"
HEADS = ("head.out", "aux_head")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return paddle_state_dict(19)


@pytest.fixture(scope="module")
def in_memory(weights) -> CCNetForSemanticSegmentation:
    """The network in float64 with the weights folded in float64."""
    tensors = {name: torch.from_numpy(values).double() for name, values in weights.items()}
    fold_biases(tensors)
    with torch.device("meta"):
        model = CCNetForSemanticSegmentation(get_recipe(PADDLESEG_VARIANT).config())
    model = model.double().to_empty(device="cpu").eval()
    state = {key: tensors.get(paddleseg_key(key), torch.tensor(0)) for key in model.state_dict()}
    assert len(set(map(paddleseg_key, state)) & tensors.keys()) == len(tensors) == 561
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory) -> Path:
    """What the converter makes of them."""
    work = tmp_path_factory.mktemp("paddleseg")
    save_pdparams(weights, work / "model.pdparams")
    convert_checkpoint(PADDLESEG_VARIANT, work / "model.pdparams", work / PADDLESEG_VARIANT)
    (work / "model.pdparams").unlink()
    return work / PADDLESEG_VARIANT


@pytest.fixture(scope="module")
def load_model(folder) -> Callable[..., CCNetForSemanticSegmentation]:
    return lambda **options: AutoModelForSemanticSegmentation.from_pretrained(folder, **options)


def test_the_weights_are_those_of_the_golden_files(weights):
    assert len(weights) == 563 and checksum(weights) == "3002bd7e"


def record(model: CCNetForSemanticSegmentation, pixel_values: torch.Tensor) -> dict[str, np.ndarray]:
    """What the stages, the layers of the head and both classifiers give."""
    backbone, head = model.model.backbone, model.model.head
    modules = {f"stage{index + 1}": stage for index, stage in enumerate(backbone.stages)}
    modules |= {"stem": backbone.stem.convolutions, "stem_pool": backbone.stem.pooling}
    modules |= {"head_conva": head.input_projection, "cca_r2": head.attention, "head_convb": head.output_projection}
    modules |= {"head_out_conv_bn_relu": head.fusion}
    recorded = {}

    def recorder(name: str):
        def hook(module, arguments, output):
            recorded[name] = (output if isinstance(output, torch.Tensor) else output[0]).detach().numpy().copy()

        return hook

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    labels = torch.full((len(pixel_values), *pixel_values.shape[-2:]), 255)  # for the auxiliary head
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels)
    for handle in handles:
        handle.remove()
    return recorded | {"decode_logits": outputs.logits.numpy(), "aux_logits": outputs.auxiliary_logits.numpy()}


def check_forward(model: CCNetForSemanticSegmentation, golden: dict, suffix: str, tolerance: float) -> None:
    recorded = record(model, torch.from_numpy(golden["input"]).to(model.dtype))
    for name in ("stem", "stem_pool", "stage1", "stage2", "stage3", "stage4"):
        channels = 8 if name.startswith("stem") else 16
        assert list(recorded[name].shape) == golden[f"{name}_shape"].tolist()
        thinned = recorded[name][:, ::channels, ::2, ::2]
        assert_close(thinned, golden[f"{name}_c{channels}_s2{suffix}"], tolerance, name)
        assert_same_statistics(recorded[name], golden[f"{name}_stats{suffix}"], tolerance, name)
    for name in ("head_conva", "cca_r2", "head_convb", "head_out_conv_bn_relu"):
        assert_close(recorded[name][:, ::8], golden[f"{name}_c8{suffix}"], tolerance, name)
    for name in ("decode_logits", "aux_logits"):
        assert_close(recorded[name], golden[f"{name}{suffix}"], tolerance, name)


@pytest.mark.parametrize("name", [INPUTS[0], pytest.param(INPUTS[1], marks=pytest.mark.nightly)])
def test_every_layer(name, in_memory, load_model):
    golden = load_golden(name)
    check_forward(in_memory, golden, "_f64", FLOAT64)
    check_forward(load_model(dtype=torch.float64), golden, "_f64", FROM_FILE)
    check_forward(load_model(), golden, "", FLOAT32)


@pytest.mark.nightly
@pytest.mark.parametrize("recurrence", [0, 1, 3])
def test_other_recurrence(recurrence, in_memory, load_model):
    golden = load_golden(INPUTS[0])
    key = f"decode_logits_recurrence{recurrence}"
    model = load_model(dtype=torch.float64, recurrence=recurrence)
    model.load_state_dict(in_memory.state_dict(), strict=recurrence > 0)
    with torch.no_grad():
        logits = model(torch.from_numpy(golden["input"]).double()).logits
    assert_close(logits, golden[f"{key}_f64"], FLOAT64, key)
    assert_close(logits, golden[key], FLOAT32, key)


@pytest.mark.nightly
@pytest.mark.parametrize("name", INPUTS)
def test_resized_logits_and_labels(name, in_memory):
    golden = load_golden(name)
    pixel_values = torch.from_numpy(golden["input"]).double()
    for align_corners in (False, True):
        logits = predict_logits(in_memory, pixel_values, align_corners=align_corners)
        key = f"final_logits_ac{int(align_corners)}_s3"
        assert_close(logits[..., ::3, ::3], golden[f"{key}_f64"], RESIZED, key)
        assert_close(logits[..., ::3, ::3], golden[key], FLOAT32, key)
        assert np.mean(logits.argmax(1).numpy() == golden[f"argmax_ac{int(align_corners)}"]) >= 0.999
    labels = torch.full((len(pixel_values), *pixel_values.shape[-2:]), 255)
    with torch.no_grad():
        auxiliary = in_memory(pixel_values, labels=labels).auxiliary_logits
    resized = torch.nn.functional.interpolate(auxiliary, pixel_values.shape[-2:], mode="bilinear")
    assert_close(resized[..., ::3, ::3], golden["final_aux_ac0_s3_f64"], RESIZED, "auxiliary logits")


@pytest.mark.parametrize("name", [INPUTS[0], pytest.param(INPUTS[1], marks=pytest.mark.nightly)])
def test_losses(name, in_memory):
    golden = load_golden(name)
    pixel_values, labels = torch.from_numpy(golden["input"]).double(), torch.from_numpy(golden["label"]).long()
    config = in_memory.config
    saved = config.ohem_threshold, config.ohem_min_kept, config.auxiliary_loss_weight

    def loss(threshold: float | None, min_kept: int, auxiliary_weight: float) -> float:
        config.ohem_threshold, config.ohem_min_kept = threshold, int(min_kept)
        config.auxiliary_loss_weight = auxiliary_weight
        with torch.no_grad():
            return in_memory.loss_of(outputs.logits, labels, {"auxiliary_logits": outputs.auxiliary_logits}).item()

    try:
        with torch.no_grad():
            outputs = in_memory(pixel_values, labels=labels)
        assert outputs.loss.item() == pytest.approx(float(golden["loss_total_config_f64"]), rel=LOSS)
        assert outputs.loss.item() == pytest.approx(float(golden["loss_total_config"]), rel=1e-5)
        cross_entropy, auxiliary = (float(golden[f"{head}_loss_ce_f64"]) for head in ("decode", "aux"))
        assert loss(None, 0, 0.0) == pytest.approx(cross_entropy, rel=LOSS)
        assert loss(None, 0, 1.0) == pytest.approx(cross_entropy + auxiliary, rel=LOSS)
        settings = golden["decode_loss_ohem_thresh_minkept"].tolist()
        assert len(settings) == 9
        for setting, expected in zip(settings, golden["decode_loss_ohem_f64"].tolist(), strict=True):
            assert loss(*setting, 0.0) == pytest.approx(expected, rel=LOSS), setting
    finally:
        config.ohem_threshold, config.ohem_min_kept, config.auxiliary_loss_weight = saved


def gradients(model: CCNetForSemanticSegmentation) -> dict[str, np.ndarray]:
    """By PaddleSeg's names, with those of the two biases, which follow from the shift of the batch norm behind."""
    found = {paddleseg_key(name): parameter.grad.numpy() for name, parameter in model.named_parameters()}
    for head, layer in (("head.out", model.model.head.fusion), ("aux_head", model.auxiliary_head.projection)):
        norm = layer.normalization
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        found[f"{head}.conv_bn_relu._conv.bias"] = (norm.bias.grad * scale).numpy()
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("name", INPUTS)
def test_gradients(name, in_memory):
    golden = load_golden(name)
    config = in_memory.config
    saved, config.ohem_min_kept = config.ohem_min_kept, 1000
    try:
        in_memory.zero_grad()
        labels = torch.from_numpy(golden["label"]).long()
        loss = in_memory(torch.from_numpy(golden["input"]).double(), labels=labels).loss
        loss.backward()
    finally:
        config.ohem_min_kept = saved
    assert loss.item() == pytest.approx(float(golden["loss_total_minkept1000_f64"]), rel=LOSS)
    found = gradients(in_memory)
    stored = {re.fullmatch(r"grad(?:_s(8))?_f64/(.+)", key): key for key in golden if "_f64/" in key}
    assert len(stored) >= 15
    for match, key in stored.items():
        actual = found[match[2]][::8, ::8] if match[1] else found[match[2]]
        assert_close(actual, golden[key], GRADIENT, key)
    names, norms = golden["grad_norm_names"].tolist(), golden["grad_norm_values_f64"].tolist()
    assert set(names) == found.keys() and len(names) == 343
    for name, norm in zip(names, norms, strict=True):
        if name != ZERO_GRADIENT:
            assert np.linalg.norm(found[name]) == pytest.approx(norm, rel=GRADIENT), name


class FromInput:
    """Stands for the image processor: hands on what the golden files have as the network's input."""

    do_resize = do_pad = False
    pad_size = active_letterbox_inverse = None

    def __init__(self, pixel_values: torch.Tensor):
        self.pixel_values = pixel_values

    def __call__(self, image, **options):
        return {"pixel_values": self.pixel_values}


@pytest.mark.nightly
@pytest.mark.parametrize(("key", "scales", "tolerance"), [("flip", (1.0,), 5e-6), ("msflip", (0.75, 1.0, 1.25), 1e-4)])
def test_augmentation_averages_logits(key, scales, tolerance, in_memory, load_model):
    golden = load_golden(INPUTS[0])
    image = np.zeros((65, 97, 3), dtype=np.uint8)
    processor = FromInput(torch.from_numpy(golden["input"]))
    for model, bound in ((in_memory, max(tolerance, 2e-5)), (load_model(), FLOAT32)):
        predictor = Predictor(model, processor, scales=scales, flip=True)
        assert predictor.average == "logits"
        scores = predictor.scores(image)
        assert_close(scores[None, :, ::3, ::3], golden[f"tta_{key}_logits_s3"], bound, key)
        assert np.mean(predictor.label_map(image).numpy() == golden[f"tta_{key}_pred"][0]) >= 0.999


@pytest.mark.nightly
def test_slide(in_memory):
    golden = load_golden(INPUTS[0])
    crop_size, stride = golden["slide_crop_stride_hw"].tolist()
    pixel_values = torch.from_numpy(golden["input"]).double()
    logits = predict_logits(in_memory, pixel_values, "slide", crop_size, stride)
    assert_close(logits[..., ::3, ::3], golden["slide_logits_s3"], RESIZED, "sliding windows")


# --- the converter, on a narrow network ------------------------------------------------------------------------------


@pytest.fixture
def small_state_dict(small_paddleseg_variant) -> dict[str, np.ndarray]:
    """A state dict for it, named as in PaddleSeg, with the two biases."""
    torch.manual_seed(0)
    state_dict = CCNetForSemanticSegmentation(get_recipe(small_paddleseg_variant).config()).state_dict()
    kept = {paddleseg_key(key): tensor for key, tensor in state_dict.items() if not key.endswith("_tracked")}
    for head in HEADS:
        kept[f"{head}.conv_bn_relu._conv.bias"] = kept[f"{head}.conv_bn_relu._batch_norm._mean"]
    return {key: torch.empty_like(tensor).uniform_(0.1, 1).numpy() for key, tensor in kept.items()}


def convert(state_dict: dict[str, np.ndarray], folder: Path, *arguments: str, variant: str = PADDLESEG_VARIANT) -> int:
    save_pdparams(state_dict, folder / "model.pdparams")
    checkpoint, output = str(folder / "model.pdparams"), str(folder / "converted")
    return convert_command(["--variant", variant, "--checkpoint", checkpoint, "--output", output, *arguments])


def test_every_entry_has_a_name():
    """Of the real network, both ways, but for the counters that PaddleSeg has none of and its two biases."""
    with torch.device("meta"):
        ours = CCNetForSemanticSegmentation(get_recipe(PADDLESEG_VARIANT).config()).state_dict()
    named = {paddleseg_key(key): tuple(tensor.shape) for key, tensor in ours.items()}
    theirs = dict(key_shapes(19))
    counters = {key for key in named if key.endswith("num_batches_tracked")}
    assert len(named) == len(ours) and named.items() - theirs.items() == {(key, ()) for key in counters}
    assert theirs.keys() - named.keys() == {f"{head}.conv_bn_relu._conv.bias" for head in HEADS}


def test_biases_are_folded_and_the_rest_stays(small_state_dict, tmp_path, capsys):
    assert convert(small_state_dict, tmp_path) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    assert model.dtype == torch.float32
    folded = {f"{head}.conv_bn_relu._batch_norm._mean": f"{head}.conv_bn_relu._conv.bias" for head in HEADS}
    for key, tensor in model.state_dict().items():
        name = paddleseg_key(key)
        if key.endswith("num_batches_tracked"):
            assert tensor == 0
        elif name in folded:
            exact = small_state_dict[name].astype(np.float64) - small_state_dict[folded[name]]
            assert np.array_equal(tensor, exact.astype(np.float32)), name
        else:
            assert np.array_equal(tensor, small_state_dict[name]), name
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert processor.do_pad and dict(processor.pad_size) == {"height": 1025, "width": 2049}
    assert main(["verify", str(tmp_path / "converted"), "--variant", PADDLESEG_VARIANT]) == 0


@pytest.mark.parametrize(
    ("change", "arguments", "variant", "reason"),
    [
        ({}, (), "ccnet-r101-cityscapes", f"is laid out as PaddleSeg's: its variant is {PADDLESEG_VARIANT}"),
        ({"head.cca.gamma": None}, (), PADDLESEG_VARIANT, "missing: head.cca.gamma"),
        ({"head.out.conv_bn_relu._conv.bias": None}, (), PADDLESEG_VARIANT, "missing: head.out.con"),
        ({"head.cca.inf_tensor": np.zeros(1)}, (), PADDLESEG_VARIANT, "left over: head.cca.inf_tensor"),
        ({"head.cca.gamma": np.array([np.nan])}, (), PADDLESEG_VARIANT, "holds NaN or infinity"),
        ({}, ("--num_labels", "7"), PADDLESEG_VARIANT, "has 19 classes where 7 were expected"),
    ],
)
def test_refusals(change, arguments, variant, reason, small_state_dict, tmp_path, capsys):
    content = {name: value for name, value in (small_state_dict | change).items() if value is not None}
    assert convert(content, tmp_path, *arguments, variant=variant) == 1
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1
    assert not (tmp_path / "converted").exists()


def test_a_file_of_another_layout(small_checkpoint, small_paddleseg_variant, tmp_path, capsys):
    torch.save(small_checkpoint, tmp_path / "x.pth")
    command = ["--variant", PADDLESEG_VARIANT, "--checkpoint", str(tmp_path / "x.pth")]
    assert convert_command([*command, "--output", str(tmp_path / "folder")]) == 1
    assert "is not laid out as PaddleSeg's checkpoint" in capsys.readouterr().err


def test_the_published_file_lies_in_a_folder_of_its_own(small_state_dict, tmp_path):
    """`model.pdparams` says nothing, and other networks of PaddleSeg are called so, too."""
    recipe = RECIPES[PADDLESEG_VARIANT]
    file = tmp_path / "files" / recipe.checkpoint_file
    file.parent.mkdir(parents=True)
    assert recipe.checkpoint_url.endswith(f"/{recipe.checkpoint_file}")
    save_pdparams(small_state_dict, file)
    command = ["--variant", PADDLESEG_VARIANT, "--checkpoints", str(tmp_path / "files")]
    assert convert_command([*command, "--output", str(tmp_path / "folder")]) == 0
    assert (tmp_path / "folder" / "config.json").is_file()

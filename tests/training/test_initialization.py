"""Starting points: pretrained tensors under other names, frozen modules, and dilated depthwise convolutions."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file
from torch import nn
from transformers import AutoBackbone

import ccnet_hf.training.initialization
from ccnet_hf import CCNetResNetConfig
from ccnet_hf.errors import InputError
from ccnet_hf.models.modeling_ccnet_resnet import CCNetResNetBackbone
from ccnet_hf.training.depthwise import speed_up_depthwise
from ccnet_hf.training.initialization import freeze, load_backbone_checkpoint


def network() -> nn.Module:
    """Twelve layers, so that text order of their numbers differs from natural order."""
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(12)))


def randomized(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: torch.rand_like(value.float()) for key, value in module.state_dict().items()}


def stored(tensors: dict[str, torch.Tensor], file) -> str:
    save_file({key: value for key, value in tensors.items() if "num_batches" not in key}, file)
    return str(file)


def assert_filled(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for key, value in module.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, tensors[key])


def test_loads_by_name(tmp_path):
    module = nn.ModuleDict({"_backbone": network()})
    tensors = randomized(module)
    bare = {key.removeprefix("_backbone."): value for key, value in tensors.items()} | {"fc.weight": torch.rand(2)}
    load_backbone_checkpoint(module, stored(bare, tmp_path / "file.safetensors"))
    assert_filled(module, tensors)


def test_loads_by_place_and_leaves_the_classifier_out(tmp_path):
    module = network()
    tensors = randomized(module)
    renamed = {f"features.{key}": value.half() if value.dim() > 1 else value for key, value in tensors.items()}
    renamed |= {"classifier.1.weight": torch.rand(3, 4), "classifier.1.bias": torch.rand(3)}
    load_backbone_checkpoint(module, stored(renamed, tmp_path / "file.safetensors"))
    for key, value in module.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, renamed[f"features.{key}"].float())


def test_names_the_first_layer_that_does_not_fit(tmp_path):
    module = network()
    tensors = {f"features.{key}": value for key, value in randomized(module).items()}
    tensors["features.9.0.weight"] = torch.rand(4, 4, 3, 3)
    with pytest.raises(ValueError, match=r"9\.0\.weight \(4, 4, 1, 1\) \(layer 19 of 24\)"):
        load_backbone_checkpoint(module, stored(tensors, tmp_path / "file.safetensors"))
    (tmp_path / "text").write_text("no tensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save({"epoch": 3}, tmp_path / "counter.pth")
    torch.save({"weight": Malicious(str(tmp_path / "ran"))}, tmp_path / "code.pth")
    for name in ("text", "text.safetensors", "code.pth"):
        with pytest.raises(
            ValueError,
            match=rf"{name} (was refused|cannot be read)",
        ):
            load_backbone_checkpoint(module, tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="holds no state dict"):
        load_backbone_checkpoint(module, tmp_path / "counter.pth")
    with pytest.raises(OSError, match=r"no file .*missing\.safetensors"):
        load_backbone_checkpoint(module, tmp_path / "missing.safetensors")


class Malicious:
    """A pickle of it writes a file when it is read."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def resnet(**changes) -> CCNetResNetBackbone:
    fields = {"depths": [3, 4, 6, 3], "out_features": ["stage3", "stage4"]}
    return CCNetResNetBackbone(CCNetResNetConfig(**(fields | changes))).eval()


@pytest.fixture(scope="module")
def timm_resnet50c():
    """timm's classifier and its features at output stride 8, with random weights and running statistics."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    classifier = timm.create_model("resnet50c")
    for name, buffer in classifier.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    features = timm.create_model("resnet50c", features_only=True, output_stride=8, out_indices=(3, 4))
    features.load_state_dict(classifier.state_dict(), strict=False)
    return classifier.state_dict(), features.eval()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm_resnet_gives_bit_equal_features(timm_resnet50c, tmp_path, suffix):
    tensors, features = timm_resnet50c
    file = tmp_path / f"file.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save({"state_dict": tensors}, file)
    backbone = resnet()
    load_backbone_checkpoint(backbone, file)
    pixel_values = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        for ours, theirs in zip(backbone(pixel_values).feature_maps, features(pixel_values), strict=True):
            assert torch.equal(ours, theirs)


def test_pooled_shortcuts_are_timms_by_name(tmp_path):
    """ResNet-V1d counts the pooling of a shortcut, or what stands in its place, as its first layer."""
    timm = pytest.importorskip("timm")
    tensors = timm.create_model("resnet26d").state_dict()
    save_file(tensors, tmp_path / "file.safetensors")
    backbone = resnet(depths=[2, 2, 2, 2], pooled_shortcut=True)
    load_backbone_checkpoint(backbone, tmp_path / "file.safetensors")
    for index, stage in enumerate(backbone.stages):
        shortcut = stage.blocks[0].shortcut
        theirs = f"layer{index + 1}.0.downsample"
        assert torch.equal(shortcut.convolution.weight, tensors[f"{theirs}.1.weight"])
        assert torch.equal(shortcut.normalization.bias, tensors[f"{theirs}.2.bias"])


def renamed(backbone: nn.Module, stem: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The backbone's tensors, randomised, under the names of another ResNet-V1c."""
    renamings = (
        *((rf"stem\.convolutions\.{i}\.convolution", stem[2 * i]) for i in range(3)),
        *((rf"stem\.convolutions\.{i}\.normalization", stem[2 * i + 1]) for i in range(3)),
        *((rf"stages\.{i}\.blocks\.", f"layer{i + 1}.") for i in range(4)),
        (r"conv(\d)\.convolution", r"conv\1"),
        (r"conv(\d)\.normalization", r"bn\1"),
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
    )
    tensors = {}
    for key, value in randomized(backbone).items():
        for ours, theirs in renamings:
            key = re.sub(ours, theirs, key)
        tensors[key] = value
    return tensors


TINY = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 8, 8, 8], "stem_size": 8}


@pytest.mark.parametrize(
    "stem",
    [
        ("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),  # mmsegmentation
        ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),  # the authors
    ],
)
def test_resnets_of_other_houses(stem, tmp_path):
    backbone = resnet(**TINY)
    tensors = renamed(backbone, stem)
    assert stem[5] + ".running_var" in tensors and "layer2.1.bn3.weight" in tensors
    load_backbone_checkpoint(
        backbone, stored(tensors | {"fc.weight": torch.rand(3, 8)}, tmp_path / "file.safetensors")
    )
    again = renamed(backbone, stem)  # random again, but with every name in its place
    loaded = dict(zip(again, backbone.state_dict().values(), strict=True))
    for key, value in loaded.items():
        if "num_batches" not in key:
            assert torch.equal(value, tensors[key]), key


def test_resnets_of_another_depth_or_width_are_refused(tmp_path):
    stem = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
    deeper = stored(renamed(resnet(**TINY | {"depths": [1, 2, 3, 1]}), stem), tmp_path / "deeper.safetensors")
    backbone = resnet(**TINY)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"less deep and has no layer3\.1"):
        load_backbone_checkpoint(backbone, deeper)
    own = stored(randomized(resnet(**TINY | {"depths": [1, 2, 3, 1]})), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"less deep and has no stages\.2\.blocks\.1"):
        load_backbone_checkpoint(backbone, own)
    wider = stored(renamed(resnet(**TINY | {"stem_size": 16}), stem), tmp_path / "wider.safetensors")
    with pytest.raises(ValueError, match=r"conv1\.0\.weight has the shape \(8, 3, 3, 3\), .* \(4, 3, 3, 3\)"):
        load_backbone_checkpoint(backbone, wider)
    assert_filled(backbone, before)


CLASSIFIERS = {
    "ConvNextForImageClassification": {"hidden_sizes": [4, 8], "depths": [1, 2], "num_stages": 2},
    "SwinForImageClassification": {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2},
    "DINOv3ViTModel": {
        **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 1},
        "num_register_tokens": 2,
    },
}


def transformers_network(kind: str, **changes) -> nn.Module:
    """A tiny classifier of transformers, with other numbers in every tensor than it would begin with."""
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**CLASSIFIERS[kind] | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model


def transformers_backbone(kind: str) -> nn.Module:
    config = getattr(transformers, kind).config_class(**CLASSIFIERS[kind], out_indices=[1, 2])
    return AutoBackbone.from_config(config).eval()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_networks_of_transformers(kind, tmp_path, capsys):
    """From the file that `save_pretrained` writes, whose names are older than the network's."""
    classifier, backbone = transformers_network(kind), transformers_backbone(kind)
    classifier.save_pretrained(tmp_path)
    capsys.readouterr()
    load_backbone_checkpoint(backbone, tmp_path / "model.safetensors")
    assert "LOAD REPORT" not in "".join(capsys.readouterr())
    pixel_values = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        ours = backbone(pixel_values, output_hidden_states=True).hidden_states[-1]
        theirs = classifier(pixel_values, output_hidden_states=True)
        theirs = (theirs.reshaped_hidden_states if kind.startswith("Swin") else theirs.hidden_states)[-1]
    torch.testing.assert_close(ours, theirs)
    for name, norm in backbone.named_modules():
        if "hidden_states_norms." in name:
            assert norm.weight.eq(1).all() and norm.bias.eq(0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [1, 3]}, r"which is less deep and has no .*stages\.1\.layers\.2"),
        ({"depths": [1, 1]}, r"it has no encoder\.stages\.1\.layers\.1"),
        ({"hidden_sizes": [4, 12]}, r"has the shape \(12.*, the backbone's \(8"),
    ],
)
def test_networks_of_transformers_of_another_shape_are_refused(tmp_path, change, message):
    transformers_network("ConvNextForImageClassification", **change).save_pretrained(tmp_path)
    backbone = transformers_backbone("ConvNextForImageClassification")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_backbone_checkpoint(backbone, tmp_path / "model.safetensors")
    assert_filled(backbone, before)


def test_hub_ids(tmp_path, monkeypatch):
    backbone = resnet(**TINY)
    stem = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
    file = stored(renamed(backbone, stem), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename):
        asked.append((repo_id, filename))
        return file

    monkeypatch.setattr(ccnet_hf.training.initialization, "hf_hub_download", download)
    load_backbone_checkpoint(backbone, "timm/resnet50c.gluon_in1k")
    assert asked == [("timm/resnet50c.gluon_in1k", "model.safetensors")]

    def older(repo_id, filename):
        if filename == "model.safetensors":
            raise EntryNotFoundError.__new__(EntryNotFoundError)  # its arguments differ by version
        return download(repo_id, filename)

    monkeypatch.setattr(ccnet_hf.training.initialization, "hf_hub_download", older)
    load_backbone_checkpoint(backbone, "facebook/older")
    assert asked[1:] == [("facebook/older", "pytorch_model.bin")]

    def gated(repo_id, filename):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(ccnet_hf.training.initialization, "hf_hub_download", gated)
    with pytest.raises(OSError, match=r"accept its licence: do so at https://huggingface\.co/facebook/gated, and log"):
        load_backbone_checkpoint(backbone, "facebook/gated")

    def out_of_reach(repo_id, filename):
        raise LocalEntryNotFoundError("five lines about caches")

    monkeypatch.setattr(ccnet_hf.training.initialization, "hf_hub_download", out_of_reach)
    with pytest.raises(OSError, match=r"timm/resnet50c\.gluon_in1k cannot be downloaded.* name the file"):
        load_backbone_checkpoint(backbone, "timm/resnet50c.gluon_in1k")

    def unknown(repo_id, filename):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its arguments differ by version

    monkeypatch.setattr(ccnet_hf.training.initialization, "hf_hub_download", unknown)
    with pytest.raises(OSError, match="neither a file nor a model on the Hub"):
        load_backbone_checkpoint(backbone, "timm/resnet50z")
    with pytest.raises(OSError, match="no file nothing"):
        load_backbone_checkpoint(backbone, "nothing")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: torch.full_like(tensor, torch.nan),
        lambda tensor: torch.full_like(tensor, torch.inf),
        torch.Tensor.long,
        torch.Tensor.bool,
        lambda tensor: tensor.to(torch.complex64),
    ],
    ids=["NaN", "inf", "integers", "bool", "complex"],
)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, suffix, odd):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    file = tmp_path / f"backbone.{suffix}"
    state = before | {"1.weight": odd(before["1.weight"])}
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    with pytest.raises(InputError, match=r"backbone.*1\.weight"):
        load_backbone_checkpoint(backbone, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_freeze(tmp_path):
    module = network()
    frozen = freeze(module, ["0", "3.1"])
    assert frozen == [module[0], module[3][1]]
    learning = {name.rpartition(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert {"0.0", "0.1", "3.1"}.isdisjoint(learning) and "3.0" in learning
    with pytest.raises(ValueError, match="no module 'stem'"):
        freeze(module, ["stem"])


@pytest.mark.parametrize("size", [(12, 16), (11, 9), (1, 7), (3, 2)])
@pytest.mark.parametrize("kernel, dilation", [(3, 2), (3, 4), (5, 3)])
def test_depthwise_on_subgrids_is_exact(size, kernel, dilation):
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6).double()
    fast = nn.Sequential(copy.deepcopy(convolution))
    speed_up_depthwise(fast)
    assert type(fast[0]) is not nn.Conv2d
    results = []
    for module in (convolution, fast):
        hidden_state = torch.randn(2, 6, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        hidden_state = hidden_state.to(memory_format=torch.channels_last).requires_grad_()
        output = module(hidden_state)
        output.square().sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        results.append([output, hidden_state.grad, *gradients])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilation, stride", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_depthwise_stays_in_float32_under_autocast(dilation, stride):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(6, 6, 3, stride, dilation, dilation, groups=6), nn.Conv2d(6, 4, 1))
    hidden_state = torch.randn(2, 6, 9, 12)
    wanted = network[0](hidden_state)
    names = list(network.state_dict())
    speed_up_depthwise(network)
    with torch.autocast("cpu", torch.bfloat16):
        # As it comes from a convolution before, which autocast computes in bfloat16.
        from_bfloat16 = network[0](hidden_state.bfloat16())
        output = network(hidden_state)
    torch.testing.assert_close(network[0](hidden_state), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(from_bfloat16, network[0](hidden_state.bfloat16().float()), rtol=0, atol=0)
    assert from_bfloat16.dtype == torch.float32 and output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert network[0].weight.grad.dtype == torch.float32 and network[0].weight.grad.any()
    assert list(network.state_dict()) == names


def test_other_convolutions_are_left_alone():
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(1, 1, 3, padding=1),
    )
    speed_up_depthwise(others)
    assert all(type(module) is nn.Conv2d for module in others)


@pytest.mark.parametrize(
    "settings", [{"padding": 1}, {"padding": 2, "stride": 2}, {"padding": 2, "padding_mode": "reflect"}]
)
def test_dilated_depthwise_that_is_no_plain_one_on_subgrids_keeps_its_form(settings):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, dilation=2, groups=4, **settings)
    hidden_state = torch.randn(1, 4, 9, 10)
    wanted = convolution(hidden_state)
    speed_up_depthwise(nn.Sequential(convolution))
    torch.testing.assert_close(convolution(hidden_state), wanted, rtol=0, atol=0)

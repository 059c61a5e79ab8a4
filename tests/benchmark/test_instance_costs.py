"""The cost of the attention inside Mask R-CNN: what is counted is exact, times are only there."""

import dataclasses
import json

from ccnet_hf import benchmark
from ccnet_hf.benchmark import instances
from ccnet_hf.benchmark.efficiency import counted_flops
from ccnet_hf.recipes import get_recipe


def test_every_form_costs_its_own_flops_more_than_the_network_without(tmp_path, capsys, monkeypatch):
    recipe = get_recipe("ccnet-r50-coco")
    narrow = {
        "fpn_channels": 8,
        "box_hidden_size": 16,
        "rpn_post_nms_top_n_test": 20,
        "box_detections_per_img": 5,
        "backbone_config": recipe.model["backbone_config"]
        | {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 32, 16], "stem_size": 8},
    }
    recipe = dataclasses.replace(recipe, model=recipe.model | narrow)
    monkeypatch.setattr(instances, "get_recipe", {"ccnet-r50-coco": recipe}.get)
    file = tmp_path / "costs.json"
    arguments = ["--size", "150x220", "--repeats", "2", "--json", str(file)]
    assert benchmark.main(["instances", *arguments]) == 0
    results = json.loads(file.read_text())
    assert results["environment"]["network"] == "ccnet-r50-coco, 150x220, float32"
    without, *forms = results["rows"]
    assert [row["form"] for row in forms] == ["criss-cross, R = 1", "criss-cross, R = 2", "non-local"]
    for row, recurrence in zip(forms, (1, 2, 0), strict=True):
        # The stage's map at a stride of 16, of the image padded to 160x224.
        assert row["flops"] - without["flops"] == counted_flops(10, 14, 32, 4, recurrence)
        assert len(row["processor_seconds"]) == 2 and row["bytes"] > 0
    assert without["saved_bytes"] == 0 and forms[0]["saved_bytes"] < forms[1]["saved_bytes"]
    assert forms[2]["saved_bytes"] >= 4 * (10 * 14) ** 2, "the non-local block keeps a weight for every pair"
    assert "non-local" in capsys.readouterr().out

# /// script
# requires-python = ">=3.11"
# dependencies = ["ccnet-hf[train,timm]"]
#
# [tool.uv.sources]
# ccnet-hf = { path = "..", editable = true }
# ///
"""Train a CCNet by a recipe: `accelerate launch scripts/train.py --variant V --dataset_name D --output_dir O`.

Where nothing but uv is installed, `uv run scripts/train.py ...` gets what it needs first.
"""

from ccnet_hf.training.training_arguments import main


if __name__ == "__main__":
    raise SystemExit(main())

"""Train a CCNet by a recipe: `accelerate launch scripts/train.py --variant V --dataset_name D --output_dir O`."""

from ccnet_hf.training.training_arguments import main


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure how far a checkpoint looks: `scripts/receptive_field.py --model_name_or_path M --dataset_name D`."""

from ccnet_hf.experiments.receptive_field import main


if __name__ == "__main__":
    raise SystemExit(main())

"""Make a dataset of a benchmark: `python scripts/prepare_dataset.py NAME --source RAW --output_dir OUT`."""

from ccnet_hf.data.preparation.prepare_arguments import main


if __name__ == "__main__":
    raise SystemExit(main())

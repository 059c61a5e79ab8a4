"""Ask if a head brings the context that a backbone lacks: `short_reach.py --dataset_name camvid --output_dir DIR`."""

from ccnet_hf.experiments.short_reach import main


if __name__ == "__main__":
    raise SystemExit(main())

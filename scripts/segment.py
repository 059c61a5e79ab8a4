"""Segment images: `IMAGE... --model_name_or_path M --output_dir DIR`; `--help` lists the rest."""

from ccnet_hf.inference.segment import main


if __name__ == "__main__":
    raise SystemExit(main())

"""Show that instance segmentation learns: `scripts/shapes.py --output_dir DIR`; minutes on a CPU."""

from ccnet_hf.experiments.shapes import main


if __name__ == "__main__":
    raise SystemExit(main())

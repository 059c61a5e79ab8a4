"""Show what recurrence is for on synthetic images: `scripts/far_marks.py --output_dir DIR`; minutes on a CPU."""

from ccnet_hf.experiments.far_marks import main


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure speed and memory side by side with the plain form: `op`; `op --help` lists the rest."""

from ccnet_hf.benchmark import main


if __name__ == "__main__":
    raise SystemExit(main())

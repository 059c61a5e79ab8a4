"""Measure speed and memory side by side with the plain forms: `op`, `model` or `memory`; `op --help` lists the rest."""

from ccnet_hf.benchmark import main


if __name__ == "__main__":
    raise SystemExit(main())

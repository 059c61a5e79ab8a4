"""Draw what a pixel attends to: `IMAGE --point X,Y --model_name_or_path M --output F.png`; `--help` lists the rest."""

from ccnet_hf.inference.attend import main


if __name__ == "__main__":
    raise SystemExit(main())

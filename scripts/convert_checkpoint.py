"""Convert a checkpoint of mmsegmentation, the authors and others: `--variant V [--checkpoint F.pth] --output DIR`."""

from ccnet_hf.zoo.convert import main


if __name__ == "__main__":
    raise SystemExit(main())

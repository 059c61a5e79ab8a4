"""Publish on the Hub: `--variant V ... | --all --checkpoints DIR --namespace N`, or `--dataset DIR`."""

from ccnet_hf.zoo.push import main


if __name__ == "__main__":
    raise SystemExit(main())

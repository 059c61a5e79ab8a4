"""`python -m ccnet_hf.zoo SUBCOMMAND`: the variants of the zoo, and what can be done with a converted folder."""

from collections.abc import Sequence

from ccnet_hf.command import run_subcommand


SUBCOMMANDS = {
    "list": ("ccnet_hf.zoo.listing", "[--json]: list the variants"),
    "verify": ("ccnet_hf.zoo.verify", "DIR: check a converted folder"),
    "to_mmsegmentation": (
        "ccnet_hf.zoo.to_mmsegmentation",
        "DIR --output F.pth: write a folder as a mmsegmentation checkpoint",
    ),
    "cards": ("ccnet_hf.zoo.cards", "[--output_dir DIR]: write the model cards"),
}

# What version 0.1 called it.
FORMER_NAMES = {"export": SUBCOMMANDS["to_mmsegmentation"]}


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.zoo") -> int:
    """Run one subcommand. Returns its exit status."""
    return run_subcommand(SUBCOMMANDS, argv, prog=prog, unlisted=FORMER_NAMES)


if __name__ == "__main__":
    raise SystemExit(main())

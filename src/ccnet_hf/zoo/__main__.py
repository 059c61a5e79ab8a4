"""`python -m ccnet_hf.zoo COMMAND`: the variants of the zoo, and what can be done with a converted folder."""

import sys
from collections.abc import Sequence
from importlib import import_module


# command: (module with `main(argv) -> int`, what it does)
COMMANDS = {
    "list": ("ccnet_hf.zoo.listing", "[--json]: list the 16 variants"),
    "verify": ("ccnet_hf.zoo.verify", "DIR: check a converted folder"),
    "export": ("ccnet_hf.zoo.export", "DIR --output F.pth: write a folder as a mmsegmentation checkpoint"),
    "cards": ("ccnet_hf.zoo.cards", "[--output_dir DIR]: write the model cards"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: python -m ccnet_hf.zoo COMMAND ...", "", sep="\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:6} {purpose}")
        return 0
    if not argv or argv[0] not in COMMANDS:
        seen = f", not {argv[0]!r}" if argv else ""
        print(f"error: say what to do: {', '.join(COMMANDS)}{seen} (see --help)", file=sys.stderr)
        return 2
    module, _ = COMMANDS[argv[0]]
    return import_module(module).main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())

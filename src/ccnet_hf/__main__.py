"""`python -m ccnet_hf SUBCOMMAND` is `ccnet-hf SUBCOMMAND`, in the form that launchers of several processes take."""

import sys

from ccnet_hf.cli import main


if __name__ == "__main__":
    sys.exit(main())

"""Open a web page that segments pictures and shows attention: `--host`, `--port`; `--help` lists the rest."""

from ccnet_hf.demo import main


if __name__ == "__main__":
    raise SystemExit(main())

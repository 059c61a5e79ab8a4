"""The server of the page: where its files lie, what it answers, and what it turns away."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import huggingface_hub.utils.logging
import transformers.utils.logging

from ccnet_hf.demo.demo_arguments import DemoArguments
from ccnet_hf.errors import InputError, describe
from ccnet_hf.limits import check_range


_SESSIONS = 100  # of whose pictures something is kept


def serve(arguments: DemoArguments) -> None:
    """Open a web page that segments pictures and videos and shows what a pixel attends to."""
    with _ended_by_signals(), running(arguments) as (blocks, address):
        print(f"the page answers at {address}, until Ctrl-C", flush=True)
        blocks.block_thread()


@contextmanager
def running(arguments: DemoArguments) -> Iterator[tuple[Any, str]]:
    """The page while it answers, and its address; afterwards its files are gone.

    Uploads and results lie in a folder of this process alone, so that the page serves nothing that others left
    in gradio's own.

    Raises:
        InputError: a checkpoint cannot be used, or there is no listening on the host and port.
        ModuleNotFoundError: the extra `demo` is not installed.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    host, port = _listening_place(arguments)
    with tempfile.TemporaryDirectory(prefix="ccnet-hf-demo-", ignore_cleanup_errors=True) as folder:
        settings = {
            "GRADIO_ANALYTICS_ENABLED": "False",  # read when gradio is imported
            "GRADIO_TEMP_DIR": os.path.join(folder, "files"),
            "GRADIO_EXAMPLES_CACHE": os.path.join(folder, "examples"),
        }
        with _environment(settings):
            from starlette.middleware import Middleware

            from ccnet_hf.demo.own_files import OwnFilesOnly
            from ccnet_hf.demo.page import build
            from ccnet_hf.demo.style import CSS, theme

            os.mkdir(settings["GRADIO_TEMP_DIR"])
            blocks = build(arguments).queue(max_size=arguments.max_waiting, api_open=False)
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                ssr_mode=False,
                max_file_size=f"{arguments.max_upload_megabytes}mb",
                state_session_capacity=_SESSIONS,
                enable_monitoring=False,
                allowed_paths=[settings["GRADIO_TEMP_DIR"]],  # without which names that begin with a dot are refused
                app_kwargs={
                    "middleware": [Middleware(OwnFilesOnly, max_upload_bytes=arguments.max_upload_megabytes * 2**20)]
                },
                footer_links=[],
                theme=theme(),
                css=CSS,
            )
            try:
                yield blocks, address
            finally:
                blocks.close(verbose=False)


def _listening_place(arguments: DemoArguments) -> tuple[str, int | None]:
    """Host and port to listen on, `None` for the first free one from gradio's first on; found out before anything is
    loaded.

    Raises:
        InputError: there is no such host here, the port is taken, or `GRADIO_SERVER_PORT` is none.
    """
    host = arguments.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port, given = arguments.port, os.environ.get("GRADIO_SERVER_PORT")
    if given is not None and not (given.isascii() and given.isdecimal()):
        raise InputError(f"the variable GRADIO_SERVER_PORT must be the number of a port, got {given[:50]!r}")
    if port is None and given is not None:
        port = int(given)
        check_range("the variable GRADIO_SERVER_PORT", port, 1, 65_535)
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port or 0, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of names that cannot be
        place = f"--host {host}" + ("" if port is None else f" and --port {port}")
        raise InputError(f"the page cannot listen on {place}: {describe(error)}") from error
    return host, port


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets the signals that end a process unasked end it as an exception does, so that its files are removed."""

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    unhandled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _) -> NoReturn:
        for other in unhandled:
            signal.signal(other, signal.SIG_IGN)  # while the files are removed
        raise SystemExit(128 + number)

    for number in unhandled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""The server of the page: where its files lie, what it answers, and what it turns away."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub.utils.logging
import transformers.utils.logging

from ccnet_hf.demo.demo_arguments import DemoArguments


_SESSIONS = 100  # of whose pictures something is kept


def serve(arguments: DemoArguments) -> None:
    """Open a web page that segments pictures and videos and shows what a pixel attends to."""
    with running(arguments) as (blocks, address):
        print(f"the page answers at {address}, until Ctrl-C", flush=True)
        blocks.block_thread()


@contextmanager
def running(arguments: DemoArguments) -> Iterator[tuple[Any, str]]:
    """The page while it answers, and its address; afterwards its files are gone.

    Uploads and results lie in a folder of this process alone, so that the page serves nothing that others left
    in gradio's own.

    Raises:
        InputError: a checkpoint cannot be used.
        OSError: the port is taken.
        ModuleNotFoundError: the extra `demo` is not installed.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
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
                server_name=arguments.host,
                server_port=arguments.port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                ssr_mode=False,
                max_file_size=f"{arguments.max_upload_megabytes}mb",
                state_session_capacity=_SESSIONS,
                app_kwargs={"middleware": [Middleware(OwnFilesOnly)]},
                footer_links=[],
                theme=theme(),
                css=CSS,
            )
            try:
                yield blocks, address
            finally:
                blocks.close(verbose=False)


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

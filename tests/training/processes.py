"""Processes that tests start: alone, or several that know of each other (gloo, CPU)."""

import multiprocessing
import os

import torch
from torch.distributed import TCPStore


# Children start as copies of a server that has imported everything, not with the imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ccnet_hf.training.loop", "ccnet_hf.training.augmentation"])


def launch(number: int, function, *arguments) -> list[int]:
    """Run `function(rank, *arguments)` in `number` processes that know of each other; their exit codes."""
    # They meet at this process, as at torchrun: a port that one of them opens might be taken meanwhile.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(number):
        process = CONTEXT.Process(target=_enter, args=(rank, number, store.port, function, arguments))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(900)
    return [process.exitcode for process in processes]


def _enter(rank, number, port, function, arguments) -> None:
    torch.set_num_threads(1)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    if number > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        os.environ.update({name: str(value) for name, value in (world | address).items()})
    os.environ["ACCELERATE_USE_CPU"] = "true"
    function(rank, *arguments)

"""Stand-in for tests/distributed_testing_utils.py, which the source distribution lacks: one process for every rank."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def _get_distributed_device_type() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def _get_distributed_backend() -> str:
    return dist.get_default_backend_for_device(_get_distributed_device_type())


def _get_rank_device(rank: int) -> torch.device:
    device_type = _get_distributed_device_type()
    return torch.device("cpu") if device_type == "cpu" else torch.device(device_type, rank)


def _set_rank_device(rank: int) -> None:
    if _get_distributed_device_type() != "cpu":
        torch.accelerator.set_device_index(rank)


def _start_rank_processes(function: Callable[..., None], args: tuple = (), nprocs: int = 1) -> None:
    """Call ``function(rank, *args)`` in ``nprocs`` processes; an exception in one of them is raised here."""
    torch.multiprocessing.spawn(function, args, nprocs)


def run_distributed(world_size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: call ``function(rank, *args)`` in processes that form one group."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            # This process holds the port until all ranks have met.
            store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            _start_rank_processes(_run_rank, (function, world_size, store.port, args, kwargs), world_size)

        return run

    return decorate


def _run_rank(
    rank: int, function: Callable[..., None], world_size: int, port: int, args: tuple, kwargs: dict[str, Any]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    _set_rank_device(rank)
    store = dist.TCPStore("localhost", port, is_master=False)
    dist.init_process_group(_get_distributed_backend(), store=store, rank=rank, world_size=world_size)
    function(rank, *args, **kwargs)
    dist.barrier()
    dist.destroy_process_group()

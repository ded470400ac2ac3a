"""How every script starts: in as many processes as it was launched for."""

import os
import sys


# What launchers export to each of several processes, as accelerate reads it.
WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def is_lone_launch() -> bool:
    """Whether ``accelerate launch`` was asked for several processes and started one.

    It does so, without a word, where it finds no several accelerators; all it leaves is the address to meet at.
    """
    is_asked_for_several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    return is_asked_for_several and not any(name in os.environ for name in WORLD_SIZE_NAMES)


def start_missing_processes() -> None:
    """Take the place of a lone launch with the processes it was asked for, by ``torchrun``; else do nothing.

    Returns where their number cannot be told from the launcher's command line, too.
    """
    if not is_lone_launch():
        return
    import psutil
    from accelerate.commands.launch import launch_command_parser

    words = psutil.Process(os.getppid()).cmdline()
    ends = [place for place, word in enumerate(words) if word in ("launch", "accelerate.commands.launch")]
    if not ends:
        return
    launched, _ = launch_command_parser().parse_known_args(words[ends[0] + 1 :])
    if launched.num_processes is None:
        return
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(launched.num_processes)]
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *torchrun, *sys.argv], environment)

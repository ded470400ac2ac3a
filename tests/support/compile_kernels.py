"""Compile the fused kernels for an NVIDIA GPU that need not be there: python -m tests.support.compile_kernels 90"""

import os
import sys
from typing import Any


os.environ["TRITON_INTERPRET"] = "0"

import torch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from modeling_alibi_gpt import attention_fused, attention_gradients, attention_kernels, attention_launch  # noqa: E402


# Bytes of shared memory that a block may take, by compute capability.
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
CAPABILITY = int(sys.argv[1])


class AbsentGPU:
    """What Triton asks a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


class CompiledOnly:
    """Stands for a kernel, compiles it where it would run, and checks its size."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Any:
        def compile_it(*arguments: Any, **options: int) -> None:
            compiled = self.kernel.warmup(*arguments, grid=grid, **options)
            if compiled.metadata.shared > SHARED_BYTES[CAPABILITY]:
                sys.exit(f"{self.kernel.__name__}: {compiled.metadata.shared} bytes of shared memory")
            print("compiled", self.kernel.__name__)

        return compile_it


def compile_for(head_dim: int, dtype: torch.dtype, has_first_keys: bool) -> None:
    states = [torch.zeros(1, 2, 1024, head_dim, dtype=dtype, requires_grad=True) for _ in range(3)]
    slopes = torch.ones(1, 2, requires_grad=has_first_keys)
    first_keys = torch.zeros(1, 1024, dtype=torch.int32) if has_first_keys else None
    output = attention_fused.fused_attention(*states, slopes, 0.125, 1e-6, first_keys)
    torch.autograd.grad(output, states, torch.zeros_like(output))


def main() -> None:
    driver.set_active(AbsentGPU())
    for module, names in (
        (attention_kernels, ("key_norms_kernel", "forward_kernel")),
        (attention_gradients, ("query_gradients_kernel", "key_gradients_kernel")),
    ):
        for name in names:
            setattr(module, name, CompiledOnly(getattr(module, name)))
    # Tiles are chosen by the device, which is not there.
    attention_launch._tiles = lambda kernel, dims, device: attention_launch._TILES[kernel][max(64, dims)][
        SHARED_BYTES[CAPABILITY] < attention_launch._MIN_SHARED_BYTES
    ]
    compile_for(64, torch.bfloat16, has_first_keys=False)
    compile_for(128, torch.bfloat16, has_first_keys=True)
    compile_for(80, torch.float16, has_first_keys=False)


if __name__ == "__main__":
    main()

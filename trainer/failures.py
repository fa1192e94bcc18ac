"""Turn what the machine says when it runs out of something into a :class:`Fault` that a person understands."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from trainer.contract import Exit
from trainer.job import Fault

NO_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "_ALLOCATION_FAILED", "DefaultCPUAllocator", "bad_alloc")
"""How torch says it: its own allocator on a GPU and the driver, cuBLAS and cuDNN up to 8, cuDNN from 9, its allocator on
the CPU, C++."""


@contextmanager
def machine_faults() -> Iterator[None]:
    """Raise DISK_FULL and OUT_OF_MEMORY instead of the many exceptions in which libraries say so."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        if is_disk_full(error):
            raise Fault(Exit.DISK_FULL) from error
        if is_out_of_memory(error):
            raise Fault(Exit.OUT_OF_MEMORY) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    return _is_numbered(error, errno.ENOSPC, errno.EDQUOT)


def is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or _is_numbered(error, errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))
    )


def _is_numbered(error: BaseException, *numbers: int) -> bool:
    # safetensors reports the operating system's error number in its text only
    return getattr(error, "errno", None) in numbers or any(f"os error {number})" in str(error) for number in numbers)

"""Turn what the machine says when it runs out of something into a :class:`Fault` that a person understands."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from trainer.contract import Exit
from trainer.job import Fault


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
    # safetensors reports the operating system's error number in its text only
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)
    )


def is_out_of_memory(error: BaseException) -> bool:
    # torch raises OutOfMemoryError for a GPU, but a plain RuntimeError for the CPU's memory
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
        or "DefaultCPUAllocator" in str(error)
    )

"""Whether memory that is freed stays in the process, ready for the next step of a training."""

import ctypes

__all__ = ["keep_freed_memory"]

# Of glibc's mallopt(3): no block is mapped by itself, and the heap never shrinks.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


def keep_freed_memory() -> bool:
    """From now on this process keeps memory that it frees, where glibc gives large blocks back.

    glibc's malloc maps large blocks from the system and gives them back when they are freed; the
    next step of a training gets them anew, page by page and zeroed, which takes up to a fifth of
    its time. Afterwards the process stays at the size of its peak. It cannot be undone: for
    programs that train, at their start. ``rnnfast train`` does it.

    Returns:
        Whether it is so now: False where the C library is not glibc, and nothing has changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))

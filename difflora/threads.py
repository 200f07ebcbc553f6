"""Small work on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Everything inside runs on one thread of torch.

    For work on many small tensors: on a machine that is busy with something else, a second thread was waited
    for at each of them, which made the reading of an adapter 25 times slower and LAPACK 200 times.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

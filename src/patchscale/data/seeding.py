"""Randomness as a function: every draw follows from named parts such as (seed, "augment", epoch, index)."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A number in [0, 2**63) that depends on all parts and their order; the same on every machine."""
    text = json.dumps([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch inside; put them back as they were on exit.

    torch's generator of the current CUDA device is included once CUDA is in use (never in a forked loader process).
    """
    import torch  # here, because listing a folder needs derive_seed and no torch

    seed = derive_seed(*parts)
    with_cuda = torch.cuda.is_initialized()
    # The libraries that augment draw from NumPy's legacy global generator, so that is the one to seed.
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda_state = torch.cuda.get_rng_state() if with_cuda else None
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if with_cuda:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)

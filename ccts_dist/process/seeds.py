"""Random seeds: one for each purpose, and those of this process's generators."""

import hashlib
import random

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, in order; the same on every machine and version."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices) from one number.

    numpy's global generator too: SpecAugment inside transformers draws from it.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

"""SHA-256 digests as documents spell them: 64 lower-case hexadecimal digits, and nothing that could be a path."""

import re
from typing import Annotated

DIGEST = re.compile(r"[0-9a-f]{64}")
DIGEST_OR_NONE = re.compile(r"(?:[0-9a-f]{64})?")

Digest = Annotated[str, DIGEST]
"""A field of a document that is a digest. Readers of documents refuse any other text."""

OptionalDigest = Annotated[str, DIGEST_OR_NONE]
"""The same, or empty where there is nothing to name."""


def is_digest(text: str) -> bool:
    """True for 64 lower-case hexadecimal digits."""
    return DIGEST.fullmatch(text) is not None

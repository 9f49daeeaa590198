"""Settings as they may be written down and shown."""

from collections.abc import Mapping
from typing import Any

import tomli_w

from ccts_dist.config.reader import run_to_tree
from ccts_dist.config.schema import RunConfig


def without_credentials(text: str) -> str:
    """An address without user and password; any other text as it is."""
    scheme, mark, rest = text.partition("://")
    host = rest.partition("/")[0]
    _, colon, port = host.rpartition(":")
    # A secret may have slashes: of "s3://KEY:a/b@place" the host seems to be "KEY:a".
    if "@" in host or (colon and not port.isdecimal() and "@" in rest):
        return f"{scheme}{mark}{rest.rpartition('@')[2]}"
    return text


def public_tree(run: RunConfig) -> dict[str, Any]:
    """As ``run_to_tree``, with user and password taken out of every address."""
    return {key: _public(value) for key, value in run_to_tree(run).items()}


def public_toml(run: RunConfig) -> str:
    """As ``run_to_toml``, with user and password taken out of every address."""
    return tomli_w.dumps(public_tree(run))


def _public(value: Any) -> Any:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        return {key: _public(one) for key, one in value.items()}
    return [_public(one) for one in value] if isinstance(value, list) else value

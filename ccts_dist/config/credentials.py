"""Settings as they may be written down and shown."""

from collections.abc import Mapping
from typing import Any

import tomli_w

from ccts_dist.config.reader import run_to_tree
from ccts_dist.config.schema import RunConfig
from ccts_dist.redaction import redact_addresses


def public_tree(run: RunConfig) -> dict[str, Any]:
    """Like ``run_to_tree``, with the credentials taken out of every address."""
    return {key: _public(value) for key, value in run_to_tree(run).items()}


def public_toml(run: RunConfig) -> str:
    """Like ``run_to_toml``, with the credentials taken out of every address."""
    return tomli_w.dumps(public_tree(run))


def _public(value: Any) -> Any:
    if isinstance(value, str):
        return redact_addresses(value)
    if isinstance(value, Mapping):
        return {key: _public(one) for key, one in value.items()}
    return [_public(one) for one in value] if isinstance(value, list) else value

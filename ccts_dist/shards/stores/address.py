"""Addresses of stores: which are taken, and none that carries a secret."""

import re
from pathlib import Path

import fsspec

from ccts_dist.errors import ConfigError

_IPV6_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]")
_WITHIN_OTHERS = (
    "blockcache",
    "cached",
    "dask",
    "dir",
    "filecache",
    "generic",
    "libarchive",
    "reference",
    "simplecache",
    "tar",
    "zip",
)
"""Protocols of fsspec that open what another address holds."""

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")


def is_address(root: str | Path) -> bool:
    """True if something that a user named is an address or a command rather than a folder."""
    return "://" in str(root) or str(root).startswith("pipe:")


def check_address(root: str) -> str:
    """An address as it may be shown to people, without a slash at its end.

    Raises:
        ConfigError: it is a command, holds credentials or a query, or its protocol is unknown. Reports nothing secret.
    """
    if root.startswith("pipe:"):
        raise ConfigError("pipe: addresses run a shell and are refused. Name a folder or an address such as s3://.")
    protocol, _, rest = _IPV6_HOST.sub("host", root).partition("://")
    shown = f"{protocol}://..." if _PROTOCOL.fullmatch(protocol) else "the address"
    host = rest.partition("/")[0]
    before_port, _, port = host.rpartition(":")
    # Secrets may have slashes: of "s3://KEY:a/b@place" the host is "KEY:a". Colons stand before ports, and in ARNs.
    no_host = ":" in host and not (before_port and port.isdecimal()) and not host.startswith("arn:")
    if "@" in host or no_host or ("@" in rest and ":" in host):
        raise ConfigError(
            f"{shown}: holds a user, a password or something that is no host. Keep credentials in the environment "
            "(AWS_ACCESS_KEY_ID, ...) or in fsspec's configuration, and name the place alone."
        )
    if "?" in rest or "#" in rest or "::" in protocol + rest:
        raise ConfigError(f"{shown}: holds one of ? # :: and may be a signed or chained address. Name the plain place.")
    if not rest.strip("/"):
        raise ConfigError(f"{shown}: names no place. Write it as protocol://place/folder.")
    if protocol in _WITHIN_OTHERS:
        raise ConfigError(f"{shown}: opens one store within another. Name the place itself.")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{shown}: cannot be read here ({' '.join(str(error).split())}). Known: s3, gs, http, https, file and "
            "what else fsspec opens."
        ) from None
    return root.rstrip("/")

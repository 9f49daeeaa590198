"""Addresses and names that no store or folder can have: each is refused in one line, and nothing is opened."""

import os
from pathlib import Path

import pytest

from ccts_dist.config import read_run
from ccts_dist.errors import CctsError, ConfigError
from ccts_dist.limits import open_regular
from ccts_dist.shards.stores.remote import open_store
from ccts_dist.shards.stores.retry import RetryPolicy

RUN = Path(__file__).resolve().parents[3] / "launch/runs/demo/speech.toml"

ADDRESSES = (
    "http://[",
    "http://[::1",
    "https://[::1]:x/a",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:1/\ud800",
    "http://127.0.0.1:1/\n",
    "http://" + "a" * 10_000,
    "://x",
    "http://",
    "x" * 5_000 + "://a",
    "data://a",
    "jupyter://a/b",
    "github://a/b",
    "no-such://a/b",
    "/nowhere/a\0b",
    "\ud800",
    *(
        f"{kind}://a/b"
        for kind in ("zip", "tar", "dir", "reference", "filecache", "simplecache", "blockcache", "generic")
    ),
)


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: ascii(address)[:30])
def test_an_address_that_names_no_store_is_refused_in_one_line(tmp_path: Path, address: str):
    with pytest.raises(CctsError) as refused:
        open_store(address, cache=tmp_path, retry_policy=RetryPolicy(attempts=1, stall_s=2.0)).read_bytes(
            "manifest.json"
        )
    assert "\n" not in str(refused.value).replace(address, "")


@pytest.mark.parametrize("key", ["run_name", "output_dir", "data.shards", "model.text.encoder"])
@pytest.mark.parametrize("text", ["a\0b", "a\udcff"])
def test_a_text_of_a_run_file_that_no_path_can_hold_is_refused(key: str, text: str):
    with pytest.raises(ConfigError, match=rf"{key} = .*must be Unicode text without NUL"):
        read_run(RUN, [f"{key}={text}"])


def test_a_name_that_no_file_can_have_is_reported_as_the_system_reports_others(tmp_path: Path):
    for name in ("a\0b", "\ud800", "a" * 300):
        with pytest.raises(OSError, match=r"no name that a file can have|File name too long"):
            open_regular(os.path.join(tmp_path, name))

"""Settings of the allocator of GPU memory, before torch is there."""

import subprocess
import sys

import pytest

from ccts_dist.train.memory.allocator import NAMES, prefer_expandable_segments
from tests.helpers.processes.launching import ROOT, environment


def test_segments_expand_unless_the_environment_states_otherwise():
    mine: dict[str, str] = {}
    prefer_expandable_segments(mine)
    assert mine == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_the_environment_stay_under_either_name(name):
    mine = {name: "max_split_size_mb:128"}
    prefer_expandable_segments(mine)
    assert mine == {name: "max_split_size_mb:128"}


def test_training_sets_them_before_torch_is_imported():
    words = (
        "import os, sys, ccts_dist.errors as errors, ccts_dist.commands.train as command\n"
        "from ccts_dist.train.memory.allocator import NAMES\n"
        "class Reached(Exception): pass\n"
        "def imports(): raise Reached('torch' in sys.modules, os.environ[NAMES[0]])\n"
        "command.gc_paused = imports\n"
        "try: command.main(['--config', 'none.toml'])\n"
        "except Reached as reached: print(*reached.args)\n"
    )
    plain = {key: value for key, value in environment().items() if key not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, env=plain, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "False expandable_segments:True\n", done.stderr[-2000:]

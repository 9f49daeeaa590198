"""Errors that are out of memory, and their words."""

import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ccts_dist.config import BatchConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import OutOfMemoryError
from ccts_dist.train.out_of_memory import MemoryWords, is_out_of_memory

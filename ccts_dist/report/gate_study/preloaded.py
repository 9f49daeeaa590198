"""All that the stages of the gate study import, for the process that they are forked from."""

import gc
import importlib

import torch

from ccts_dist.train.zero.engine import compile_for_ranks

for _name in (
    "accelerate.utils.deepspeed",
    "ccts_dist.commands.cache_teacher",
    "ccts_dist.commands.train",
    "ccts_dist.registry",
    "ccts_dist.report.gate_study.corpora",
    "ccts_dist.report.gate_study.counts",
    "ccts_dist.teacher",
    "ccts_dist.train.run",
    "torch.utils.checkpoint",
    "torch.utils.cpp_extension",
    "torchaudio.transforms",
    "transformers.integrations.deepspeed",
    "transformers.models.bert.modeling_bert",
):
    importlib.import_module(_name)
compile_for_ranks()
torch.set_num_threads(1)  # as many trainings as there are cores
gc.collect()
gc.freeze()  # what is here is not looked through in each process, which would copy it

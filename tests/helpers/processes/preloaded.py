"""All that commands import, for the process that tests fork them from: see tests/helpers/processes/forked.py.

What each first training of a process would set up again is set up here too: torch's fake tensors, matplotlib's fonts,
MLflow's tables.
"""

import gc
import importlib
import json
import os
import tempfile
from pathlib import Path

from tests.checked import check_signatures

os.environ.setdefault("OMP_NUM_THREADS", "1")
check_signatures("ccts_dist")  # forked ranks see no conftest.py
gc.disable()

import torch  # noqa: E402

from ccts_dist.train.zero.engine import _import_deepspeed  # noqa: E402
from tests.ready_store import copy_tables, use_a_store  # noqa: E402
from tests.remembered import remember_forecasts  # noqa: E402

MODULES = (
    "accelerate.utils.deepspeed",
    "PIL.JpegImagePlugin",
    "alembic.command",
    "alembic.runtime.migration",
    "ccts_dist.corpus.demo.spoken",
    "ccts_dist.evaluation.run",
    "ccts_dist.registry",
    "ccts_dist.report.demo",
    "ccts_dist.shards.build.command",
    "ccts_dist.shards.check",
    "ccts_dist.teacher",
    "ccts_dist.tracking.mlflow_run",
    "ccts_dist.tracking.sqlite_store",
    "ccts_dist.train.run",
    "ccts_dist.inference.command",
    "deepspeed.moe.ep_router",
    "deepspeed.moe.fused_expert_layout",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "pandas",
    "scipy.optimize",
    "setuptools.command.build_ext",
    "sqlalchemy.dialects.sqlite",
    "torch._dynamo",
    "torch.utils.checkpoint",
    "torch.utils.cpp_extension",
    "transformers.integrations.deepspeed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.hubert.modeling_hubert",
    "transformers.models.wav2vec2.modeling_wav2vec2",
)

_import_deepspeed()
for _name in MODULES:
    importlib.import_module(_name)


def _forecast() -> None:
    """Memory of a small model's forward pass, for what fake tensors set up at their first use, and keep by operator.

    Without the backward pass: autograd refuses to go on in processes that are forked from one that it has run in.
    """
    from ccts_dist.config.reader import parse_model
    from ccts_dist.model import build_model
    from ccts_dist.train.memory.activations import BatchShape, trace_peak
    from tests.helpers.processes.small_runs import SPEECH

    with torch.random.fork_rng(devices=[]):
        model = build_model(parse_model({"embedding_dim": 8, "speech": SPEECH}))
    encoders = model.encoder_configs
    shape = BatchShape(rows=2, samples=1_600)
    assert trace_peak(model.config, encoders, shape, precision="fp32", training=False, on_gpu=False)


def _draw(folder: Path) -> None:
    from ccts_dist.train.curves import draw_training

    steps = [{"step": step, "train/loss": 0.1 * step, "train/kept_share": 1.0} for step in (1, 2)]
    for name in ("history.jsonl", "validations.jsonl"):
        (folder / name).write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    draw_training(folder)


_forecast()
copy_tables()
with tempfile.TemporaryDirectory(prefix="ccts-preloaded-") as _place:
    _draw(Path(_place))
    use_a_store(Path(_place))
remember_forecasts()
gc.enable()
gc.freeze()

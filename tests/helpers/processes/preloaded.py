"""All that commands import, for the process that tests fork them from: see tests/helpers/processes/forked.py."""

import gc
import importlib
import os

from tests.checked import check_signatures

os.environ.setdefault("OMP_NUM_THREADS", "1")
check_signatures("ccts_dist")  # forked ranks see no conftest.py
gc.disable()

from ccts_dist.train.zero.engine import _import_deepspeed  # noqa: E402

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
gc.enable()
gc.freeze()

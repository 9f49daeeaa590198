"""DeepSpeed's JSON file: who owns which number.

Batch sizes, accumulation, clipping, learning rates and precision belong to the run file. In a ds_config they are
"auto" or absent: a literal there would override the run file without a word.
"""

import json
from pathlib import Path
from typing import Any

from ccts_dist.config import RunConfig
from ccts_dist.errors import ConfigError

OWNED_BY_RUN_FILE = {
    "train_batch_size": "batch.global_utterances",
    "train_micro_batch_size_per_gpu": "batch.micro_utterances",
    "gradient_accumulation_steps": "batch.micro_utterances and the number of ranks",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "[optim]",
    "scheduler": "optim.schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
}
"""Keys of a ds_config and what decides them instead."""


def read_ds_config(path: Path) -> dict[str, Any]:
    """The ds_config in ``path``, once nothing in it contradicts the run file.

    Raises:
        ConfigError: no such file, no JSON object, no ZeRO stage 0 to 3, or a literal value where the run file decides.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"train.deepspeed = '{path}': cannot read it ({error.strerror}). Name a file of ds_configs/."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}. Mend the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a JSON object. See ds_configs/README.md.")
    for key, owner in OWNED_BY_RUN_FILE.items():
        if key in tree and not _is_auto(tree[key]):
            raise ConfigError(
                f'{path}: {key} = {json.dumps(tree[key])}: must be "auto" or absent, since the run file\'s {owner} '
                "decides it. Take it out."
            )
    zero = tree.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage = {json.dumps(stage)}: must be 0, 1, 2 or 3. Change it.")
    return tree


def _is_auto(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_auto(inner) for inner in value.values())
    return value == "auto"


def resolve_ds_config(tree: dict[str, Any], run: RunConfig, *, passes: int) -> dict[str, Any]:
    """The ds_config with the run file's numbers filled in."""
    resolved = {key: value for key, value in tree.items() if key not in OWNED_BY_RUN_FILE}
    resolved |= {
        "train_micro_batch_size_per_gpu": run.batch.micro_utterances,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": run.optim.clip_norm,
        "bf16": {"enabled": run.train.precision == "bf16"},
        "fp16": {"enabled": False},
        # DeepSpeed counts samples by the two numbers above, which is not what we train on: keep it from printing them.
        "steps_per_print": 2**31 - 1,
    }
    return resolved

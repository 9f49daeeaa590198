"""Part A: versions, the collectives that ranks use, and an engine under every ds_config."""

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ccts_dist.distributed import Ranks, take_device
from tests.gpu.material import ROOT, write_run
from tests.gpu.outcome import Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import take_steps
from tests.helpers.processes.launching import free_port

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "numpy", "soundfile", "miniaudio", "pyarrow")
OFFLOADED = "zero3_offload"


def starts(outcome: Outcome, situation: Situation) -> None:
    """Everything that a training needs before its first step."""
    with outcome.item("versions") as figures:
        figures |= {name: importlib.metadata.version(name) for name in PACKAGES}
        figures |= {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
        figures["device"] = situation.device_name
        figures["deepspeed accelerator"] = _accelerator()
        if situation.on_gpu:
            figures["cuda"], figures["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
            figures["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
            figures["bf16"] = torch.cuda.is_bf16_supported()
            check(figures["deepspeed accelerator"] == "cuda", "DeepSpeed does not see the GPU")
    with outcome.item("collectives of NCCL"):
        situation.needs_gpu()
        take_device(Ranks())
        collectives("nccl", situation.device)
    with outcome.item("collectives of gloo"):
        collectives("gloo", torch.device("cpu"))
    for path in sorted((ROOT / "ds_configs").glob("*.json"), key=lambda path: (path.stem == OFFLOADED, path.stem)):
        for precision in ("fp32",) if situation.small else ("fp32", "bf16"):
            with outcome.item(f"engine under {path.stem}, {precision}") as figures:
                _engine_under(path, precision, situation, figures)
                outcome.show(f"{path.stem} {precision}", f"{figures['seconds']:.1f} s")


def collectives(backend: str, device: torch.device) -> None:
    """Each kind of tensor and object that ranks exchange, in a group of one rank, which is taken apart at the end."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    dist.init_process_group(backend, rank=0, world_size=1, device_id=device if device.type == "cuda" else None)
    try:
        for dtype in (torch.float64, torch.float32, torch.int32, torch.uint8):
            values = torch.arange(5, device=device).to(dtype)
            dist.all_reduce(values)
            check(values.tolist() == [0, 1, 2, 3, 4], f"all-reduce of {dtype}: {values.tolist()}")
        objects: list[object] = [None]
        dist.all_gather_object(objects, {"rank": 0})
        check(objects == [{"rank": 0}], f"gathered {objects}")
        box = ["told"]
        dist.broadcast_object_list(box, src=0, device=device)
        check(box == ["told"], f"broadcast {box}")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _engine_under(ds_config: Path, precision: str, situation: Situation, figures: dict[str, object]) -> None:
    """An engine and two steps by it: the second shows that the first has moved the weights."""
    began = time.monotonic()
    config = write_run(
        situation.work / f"{ds_config.stem}-{precision}.toml", situation.pack,
        train={"deepspeed": str(ds_config), "precision": precision},
    )  # fmt: skip
    first, second = take_steps(config, 2)
    situation.synchronize()
    figures |= {"seconds": time.monotonic() - began, "losses": [first["loss"], second["loss"]]}
    check(
        first["loss"] == first["loss"] and first["loss"] != second["loss"], f"losses {first['loss']}, {second['loss']}"
    )


def _accelerator() -> str:
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]  # DeepSpeed's autotuner alone wants it
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().device_name()


if __name__ == "__main__":
    run_part("A", starts)

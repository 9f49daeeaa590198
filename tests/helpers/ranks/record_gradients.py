"""launch/train.py that also keeps the first step's reduced gradient, in ``<output>/gradients.safetensors``."""

import sys
from pathlib import Path

from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from ccts_dist.config import read_run
from ccts_dist.distributed import process_group, rank_facts
from ccts_dist.train import run as training
from ccts_dist.train.zero.engine import Engine, Update


class RecordingEngine(Engine):
    """The real engine; before the weights move for the first time it writes down the gradient."""

    output: Path
    micro_batches_seen = 0

    def step(self) -> Update:
        self.micro_batches_seen += 1
        if self.micro_batches_seen == self.num_micro_batches:
            trained = {name: p for name, p in self._engine.module.named_parameters() if p.requires_grad}
            gradients = {name: safe_get_full_grad(parameter).clone() for name, parameter in trained.items()}
            if self.ranks.is_first:
                save_file(gradients, self.output / "gradients.safetensors")
        return super().step()


def main() -> None:
    config = read_run(Path(sys.argv[sys.argv.index("--config") + 1]))
    RecordingEngine.output = Path(config.output_dir)
    training.Engine = RecordingEngine
    ranks = rank_facts()
    with process_group(ranks):
        training.train(config, ranks, resume="")


if __name__ == "__main__":
    main()

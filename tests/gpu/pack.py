"""Everything that first_light.py needs and a GPU machine may lack, in one folder that can be carried there.

python -m tests.gpu.pack OUT               wheels for Python 3.12 on x86-64 Linux, shards, the CPU's own figures
python -m tests.gpu.pack OUT --no-wheels   without the wheels, for a machine that has all packages

OUT/wheels/          packages; first_light.py installs those that the machine lacks or has too old
OUT/shards/ cache/   200 short utterances made from code, and a teacher's outputs of them
OUT/teacher/         that teacher
OUT/references.json  loss, kept utterances and gradient norm of each step of each setting, on this CPU in fp32
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

MOST_BYTES = 60 * 2**20


def main(argv: list[str] | None = None) -> None:
    """Pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--no-wheels", action="store_true", help="shards and references alone")
    parser.add_argument(
        "--no-large", action="store_true", help="no references of HuBERT-large: 5 GB of memory, a minute"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of each reference; default 10")
    options = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: the references are the CPU's
    from tests.gpu.settings import NUM_STEPS

    options.out.mkdir(parents=True, exist_ok=True)
    if not options.no_wheels:
        from tests.gpu.wheels import fetch_wheels

        fetch_wheels(options.out / "wheels")
    make_material(options.out)
    write_references(options.out, options.steps or NUM_STEPS, large=not options.no_large)
    print(f"{options.out}: {check_size(options.out) / 2**20:.1f} MiB")


def make_material(out: Path) -> None:
    """Shards, teacher and cache."""
    from tests.gpu.material import make_shards, make_teacher

    for name in ("shards", "cache", "teacher"):
        shutil.rmtree(out / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        shards = make_shards(Path(place))
        make_teacher(Path(place), shards)
        for name in ("shards", "cache", "teacher"):
            shutil.move(Path(place) / name, out / name)


def write_references(out: Path, num_steps: int, *, large: bool) -> None:
    """The figures of each setting's steps in float32 on the CPU, under stage 0: by the plain optimizer."""
    from tests.gpu.material import write_run
    from tests.gpu.settings import LARGE_NAME, LARGE_SECTIONS, LARGE_STEPS, SETTINGS, with_precision
    from tests.gpu.steps import take_steps

    reported = {}
    every = {**SETTINGS, **({LARGE_NAME: LARGE_SECTIONS} if large else {})}
    with tempfile.TemporaryDirectory() as place:
        for name, sections in every.items():
            plain = with_precision(sections, deepspeed="ds_configs/zero0.json", precision="fp32")
            config = write_run(Path(place) / f"{name.replace(' ', '-')}.toml", out, **plain)
            reported[name] = take_steps(config, LARGE_STEPS if name == LARGE_NAME else num_steps)
            last = reported[name][-1]
            print(f"{name:24} loss {reported[name][0]['loss']:.4f} to {last['loss']:.4f}", file=sys.stderr)
    (out / "references.json").write_text(json.dumps({"num_steps": num_steps, "settings": reported}, indent=1))


def check_size(out: Path) -> int:
    """Bytes in all; ends the program where they are too many to be carried."""
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        sys.exit(
            f"{out}: {size / 2**20:.1f} MiB, and at most {MOST_BYTES / 2**20:.0f} are carried. Take something out."
        )
    return size


if __name__ == "__main__":
    from ccts_dist.errors import exit_without_teardown

    main()
    exit_without_teardown(0)

"""The commands as people and job scripts know them: options do not change without this file changing."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ccts_dist.commands import serve

OPTIONS = {
    "launch/train.py": "--assume --check --config --gpu-memory --ranks --resume --set",
    "launch/cache_teacher.py": "--batch-seconds --fit-splits --out --shards --splits --teacher --timeout-s",
    "launch/compare.py": "--key --plot --tolerance --tracking-uri",
    "launch/evaluate.py": (
        "--ages --batch-size --bins --embed-audio --impulse-responses --log-to-mlflow --model --noises --out --run "
        "--shards --snr --splits --submission --teacher-cache --text-model --tracking-uri --transcripts"
    ),
    "launch/export.py": "--format --model --out --tracking-uri",
    "launch/init.py": "--encoder --out --small --teacher-cache --text-encoder --with-text",
    "launch/register.py": (
        "--alias --checkpoint --force --margin --name --promote --shards --splits --target --tracking-uri"
    ),
    "launch/push.py": "--language --license --private --revision --tracking-uri",
    "launch/predict.py": (
        "--batch-seconds --device --embeddings --format --hop --model --out --plot --tracking-uri --window"
    ),
    "launch/probe.py": "--batch-size --normalize --model --out --pooling --shards --targets --test --train --valid",
    "launch/reproduce.py": (
        "--corpus --corrupt-transcripts --distances --folds --jobs --launcher --only --out --report-only --seeds --set "
        "--shards --table --transcripts --utterances"
    ),
    "launch/serve.py": (
        "--audio-root --host --max-body-seconds --max-connections --max-head-seconds --max-recording-bytes "
        "--max-recordings --max-request-bytes --max-requests --max-seconds --max-waiting-bytes --model "
        "--no-page --port --tracking-uri"
    ),
    "launch/sync.py": "--tracking-uri",
    "shards/build.py": "",  # its sub-commands have the options
    "shards/check.py": "--fast --teacher-cache --threads",
    "shards/info.py": "--json --plot",
    "shards/merge.py": "--out --shards --teacher-cache",
    "shards/transcribe.py": "",  # as above
}
STARTING_SLOWLY = Path("launch/reproduce.py")
"""Its options are made from tables that compute."""

READING_TABLES = ("shards/build.py", "shards/transcribe.py")
"""Commands whose options need the readers of corpora, and these pyarrow."""

SCRIPTS = sorted([*Path("launch").glob("*.py"), *Path("shards").glob("*.py")])


def test_every_script_is_listed():
    assert [str(path) for path in SCRIPTS] == sorted(OPTIONS)


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_script_is_a_table_of_contents(path):
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_help_teaches_and_options_are_the_known_ones(path, capsys):
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with pytest.raises(SystemExit) as ended:
        script.parse_args(["--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out
    shown = set(re.findall(r"(?<=[\s\[])--[a-z][a-z_-]*", words)) - {"--help", "--num_gpus", "--local_rank"}
    own = set(OPTIONS[str(path)].split())
    assert own <= shown
    assert "exit code" in words.lower().replace("\n", " ")
    usage = set(re.findall(r"--[a-z][a-z_-]*", words.split("\n\n")[0])) - {"--help"}
    assert usage == own
    assert "%%" not in words, "argparse formats the texts of options, and no others"


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path != STARTING_SLOWLY], ids=str)
@pytest.mark.parametrize("options", [["--help"], ["--no-such-option"]], ids=" ".join)
def test_help_and_mistakes_in_options_do_not_wait_for_torch(path, options):
    script = f"import runpy, sys; sys.argv = [{str(path)!r}, *{options!r}]\n"
    script += f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
    slow = ["torch"] if str(path) in READING_TABLES else ["torch", "pyarrow"]
    script += f"finally: assert not sys.modules.keys() & {slow}, 'imported'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if options == ["--no-such-option"] else 0), done.stderr


@pytest.mark.parametrize("words", [["runs/student"], ["--model", "runs/student"], ["-m", "runs/student"]])
def test_serve_takes_its_model_by_place_or_by_name(words):
    assert serve.parse_args([*words, "--port", "0"]).model == "runs/student"


@pytest.mark.parametrize("words", [[], ["a", "--model", "b"]])
def test_serve_takes_one_model(words, capsys):
    with pytest.raises(SystemExit) as ended:
        serve.parse_args(words)
    assert ended.value.code == 2
    assert "give the model to serve once" in capsys.readouterr().err

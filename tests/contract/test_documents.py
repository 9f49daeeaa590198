"""The documents: links and anchors resolve, commands parse, run files are read, and the prose keeps to its rules."""

import ast
import dataclasses
import importlib.util
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from ccts_dist.cli import COMMANDS, help_text, module_of
from ccts_dist.config import RunConfig
from ccts_dist.config.reader import parse_run
from ccts_dist.config.reference import page
from ccts_dist.config.renamed import with_present_keys
from ccts_dist.shards.build.corpora import FOLDER_CORPORA
from tests.helpers.repository import FILES, ROOT, name_of

README = ROOT / "README.md"
DOCUMENTS = [path for path in FILES if path.suffix == ".md" and path.name != "CHANGELOG.md"]
BANNED = (
    "tell", "tells", "told", "hear", "hears", "heard", "hearing", "say", "says", "said", "judge", "judges", "judged",
    "coin", "the words", "beside it", "left out", "leave out", "leaves out", "by hand", "ear", "ears", "kin",
)  # fmt: skip
"""Words of the project's former dialect; models predict, recognizers transcribe, commands print and report."""

FIELD_TERMS = (
    "gradient accumulation", "early stopping", "confidence interval", "throughput", "knowledge distillation",
    "mixed precision", "inference", "speech recognition",
)  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def prose(text: str) -> str:
    """The text without headings, tables, code and addresses."""
    lines = [line for line in without_code(text).splitlines() if not line.startswith(("#", "|", "!["))]
    plain = re.sub(r"`[^`]+`", "code", "\n".join(lines))
    return re.sub(r"\]\([^)]*\)", "]", plain)


def sentences(text: str) -> Iterator[str]:
    """Sentences end with . ! ? before white space; paragraphs and items of lists end them too."""
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        yield from re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))


def num_words(sentence: str) -> int:
    return len(re.findall(r"[^\W_][^\s]*", sentence))


def anchors(path: Path) -> set[str]:
    """GitHub's anchor of each heading."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_there_are_documents():
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "launch/README.md", "shards/README.md", "shards/FORMAT.md", "ccts_dist/README.md"} <= names
    assert {"launch/runs/README.md", "launch/runs/demo/README.md", "launch/runs/paper/README.md"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_and_anchors_resolve(path: Path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert broken == []


def command_lines() -> list[tuple[str, str]]:
    """Each command of a fenced block, with the document's name."""
    found = []
    for path in DOCUMENTS:
        for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
            if language in ("", "bash", "sh"):
                lines = block.replace("\\\n", " ").splitlines()
                found += [(name_of(path), line) for line in lines if re.match(r"(python|deepspeed|ccts|make) ", line)]
    return found


def parse_command(line: str) -> None:
    """Parse a command line by its own parser; [brackets] around optional parts and redirections are no part of it."""
    line = re.sub(r"\$\(ccts path ([\w-]+)\)", r"launch/\1.py", line)
    words = shlex.split(re.split(r"\s[>|]\s|&&", line)[0], comments=True)
    program, *words = [word if word.startswith("train.profile") else word.strip("[]") for word in words]
    if program == "make":
        target, *settings = words
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for setting in settings:
            assert re.search(rf"\b{setting.partition('=')[0]}\b", makefile), setting
        return
    if program == "ccts":
        parse_options(words[0], words[1:])
        return
    if program == "deepspeed":
        place = next(at for at, word in enumerate(words) if word.endswith(".py"))
        spec = importlib.util.find_spec("deepspeed")
        assert spec is not None
        assert spec.origin is not None
        options_are_in(Path(spec.origin).with_name("launcher") / "runner.py", words[:place])
        words = words[place:]
    elif words[0] == "-m":
        words = [f"{words[1].replace('.', '/')}.py", *words[2:]]
    script, *options = words
    path = ROOT / script
    if path.parent in (ROOT / "launch", ROOT / "shards"):
        parse_options(path.stem.replace("_", "-"), options)
    else:
        options_are_in(path if path.exists() else path.with_suffix("") / "__main__.py", options)


def parse_options(name: str, options: list[str]) -> None:
    if options != ["--help"]:
        assert name in COMMANDS
        import_module(module_of(name)).parse_args(options)


def options_are_in(path: Path, options: list[str]) -> None:
    """Options of a program that has no function to parse them alone: each is a text of its source."""
    texts = {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
    assert {option for option in options if option.startswith("--")} - texts == set()


@pytest.mark.parametrize(("document", "line"), command_lines())
def test_command_of_a_document_is_one_that_its_parser_takes(document: str, line: str):
    parse_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "python launch/train.py --config RUN.toml --chek",
        "deepspeed --num_gpu_ 2 launch/train.py --config RUN.toml",
        "make demmo",
        "python -m tests.bench.train.scaling --repeat-it 3",
        "ccts trian --config RUN.toml",
    ],
)
def test_wrong_command_is_noticed(line: str):
    with pytest.raises((SystemExit, AssertionError)):
        parse_command(line)


def toml_blocks() -> list[tuple[str, str]]:
    return [
        (name_of(path), block)
        for path in DOCUMENTS
        for language, block in FENCE.findall(path.read_text(encoding="utf-8"))
        if language == "toml"
    ]


def test_there_is_a_run_file_in_the_readme():
    assert "README.md" in {document for document, _ in toml_blocks()}


@pytest.mark.parametrize(("document", "block"), toml_blocks())
def test_toml_of_a_document_is_a_part_of_a_run_file(document: str, block: str):
    tree = tomllib.loads(block)
    assert with_present_keys(tree, source=document) == tree
    tree = {"run_name": "r", "output_dir": "o", "data": {}, "model": {}} | tree
    tree["data"].setdefault("shards", "SHARDS")
    if not {"speech", "text"} & set(tree["model"]):
        tree["model"]["speech"] = {"encoder": "filterbank"}
    parse_run(tree, source=document)


def keys_of(cls: type, table: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{table}{field.name}"
        for hint in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(hint):
                yield from keys_of(typing.cast(type, hint), f"{table}{field.name}.")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_keys_of_run_files_that_a_document_names_exist(path: Path):
    known = set(keys_of(RunConfig))
    tables = "|".join(sorted(key for key in known if any(other.startswith(f"{key}.") for other in known)))
    text = without_code(path.read_text(encoding="utf-8"))
    named = set(re.findall(rf"`(?:--set )?((?:{tables})\.[a-z_]+)(?=[` =])", text))
    assert {key for key in named if not key.endswith((".py", ".json", ".onnx", ".toml"))} - known == set()


def test_readme_is_at_most_250_lines():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


def test_sentences_of_the_readme_have_at_most_30_words():
    text = prose(README.read_text(encoding="utf-8"))
    found = list(sentences(text))
    assert len(found) > 50
    assert [sentence for sentence in found if num_words(sentence) > 30] == []


def test_sentences_of_the_reference_have_at_most_25_words():
    cells = [line.strip("| ").split(" | ")[-1] for line in page().splitlines() if line.startswith("| `")]
    found = [sentence for cell in cells for sentence in sentences(re.sub(r"``[^`]+``", "code", cell))]
    assert len(found) > 100
    assert [sentence for sentence in found if num_words(sentence) > 25] == []


def banned_in(text: str) -> list[str]:
    plain = " ".join(text.split())
    return [word for word in BANNED if re.search(rf"(?<![\w-]){word}(?![\w-])", plain, re.IGNORECASE)]


def test_readme_has_the_terms_of_the_field_and_no_banned_word():
    text = README.read_text(encoding="utf-8")
    plain = " ".join(text.split()).lower()
    assert [term for term in FIELD_TERMS if term not in plain] == []
    assert banned_in(text) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_document_has_no_banned_word(path: Path):
    assert banned_in(prose(path.read_text(encoding="utf-8"))) == []


def test_reference_has_no_banned_word():
    assert banned_in(page()) == []


BUILD_KINDS = [*(corpus.name for corpus in FOLDER_CORPORA), "hf", "manifest", "demo", "join"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, []) for name in COMMANDS),
        *(("build", [kind]) for kind in BUILD_KINDS),
        *(("transcribe", [kind]) for kind in BUILD_KINDS[:-2]),
    ],
)
def test_help_has_no_banned_word(name: str, options: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        import_module(module_of(name)).parse_args([*options, "--help"])
    words = capsys.readouterr().out
    assert "usage:" in words
    assert banned_in(words) == []


def test_help_of_the_program_has_no_banned_word():
    assert banned_in(help_text()) == []

"""Modules, names and paths that docstrings, comments and documents name are there.

Links between documents are in ``test_documents``.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

from ccts_dist.config import RunConfig
from tests.contract.test_documents import keys_of
from tests.helpers.repository import FILES, MODULES, ROOT, name_of

KINDS = {".md", ".toml", ".sh", ".yaml", ".ipynb", "Makefile", "Dockerfile", "run"}
TEXTS = [path for path in FILES if {path.suffix, path.name} & KINDS and path.name != "CHANGELOG.md"]
FOLDERS = "ccts_dist", "ds_configs", "launch", "shards", "tests"
PATH = re.compile(r"(?<![\w/.~$}:-])(?:(?:[\w.-]+/)+[\w.-]*\w|\w[\w-]*\.py)\b")
DOTTED = re.compile(r"(?<![\w./-])(?:ccts_dist|tests)(?:\.\w+)+(?!\.?\w)")
NAME = re.compile(r"``([a-z_][a-z0-9_]*)``")
WITHIN = re.compile(r"``([a-z_]+(?:\.[a-z_]+)+)``")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}")

ELSEWHERE = {
    "stage_1_and_2.py", "stage3.py",  # of DeepSpeed
    "train_ft_dim_ser.py", "net/ser.py", "net/pooling.py",  # of the baseline of Odyssey 2024
    "ccts_dist/models", "ccts_dist/proof",  # in the user's cache
    "torchfrtrace", "nohup",  # programs
    "train_dia0_utt3",  # a key of MELD
}  # fmt: skip
"""Paths and names that others have."""

PACKAGES = {path.parent.name for path in (ROOT / "ccts_dist").glob("*/__init__.py")} - {"config", "model"}
"""Less those that are also names of arguments."""

KEYS = set(keys_of(RunConfig))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(path: Path) -> Iterator[ast.Constant]:
    """Of modules, classes, functions and attributes."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


@cache
def prose_of(path: Path) -> str:
    """Docstrings and comments of a module; the whole of another file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    return "\n".join([*(str(node.value) for node in docstrings(path)), *re.findall(r"(?:^|\s)#.*", text)])


def wrong(pattern: re.Pattern[str], paths: list[Path], is_right: Callable[[str], bool]) -> list[str]:
    """Each match that is not right, with its file."""
    named = [(path, name) for path in paths for name in pattern.findall(prose_of(path))]
    assert len(named) > 40
    return [f"{name_of(path)}: {name}" for path, name in named if name not in ELSEWHERE and not is_right(name)]


@cache
def endings() -> set[str]:
    """Each file and folder of the repository as a document may name it, from any of its folders on."""
    every = {part for path in FILES for part in (path, *path.parents) if part.is_relative_to(ROOT)}
    parts = (reversed(path.relative_to(ROOT).parts) for path in every)
    return {ending for path in parts for ending in accumulate(path, lambda below, above: f"{above}/{below}")}


def is_path(name: str) -> bool:
    """True for a path that is there, and for what is no path of this repository."""
    ours = name.endswith((".py", ".md", ".toml")) or name.partition("/")[0] in FOLDERS
    return not ours or name in endings() or bool(PLACEHOLDER.search(name))


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What the body of a module or class binds."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.If | ast.Try):
            found |= members(node.body)
    return found


def is_dotted(name: str) -> bool:
    """True for a package, a module, or what one of them defines or imports."""
    at, parts = ROOT, name.split(".")
    while parts and (at / parts[0]).is_dir():
        at /= parts.pop(0)
    file = at / f"{parts.pop(0)}.py" if parts and (at / f"{parts[0]}.py").is_file() else at / "__init__.py"
    if not parts:
        return True
    within = members(tree_of(file).body) if file.is_file() else {}
    for part in parts:
        if part not in within:
            return False
        node = within[part]
        if not isinstance(node, ast.ClassDef):
            return True  # what it imports or assigns is not followed
        within = members(node.body)
    return True


def is_within(name: str) -> bool:
    """True for what a package of ours has, a key of a run file, and what begins with no package's name."""
    first, *_, last = name.split(".")
    return (
        first not in PACKAGES or last in ("py", "json", "npy", "html") or name in KEYS or is_dotted(f"ccts_dist.{name}")
    )


@cache
def code_names() -> set[str]:
    """Names of files, identifiers of all modules, and words of their strings."""
    found = {path.stem for path in FILES}
    for path in MODULES:
        described = {id(node) for node in docstrings(path)}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
                found.update(re.findall(r"\w+", node.value))
            elif isinstance(node, ast.ImportFrom):
                found.update(re.findall(r"\w+", node.module or ""))
            names = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname"))
            found.update(word for name in names if isinstance(name, str) for word in name.split("."))
    return found


def test_paths_are_there():
    assert wrong(PATH, [*TEXTS, *MODULES], is_path) == []


def test_dotted_names_are_there():
    assert wrong(DOTTED, [*TEXTS, *MODULES], is_dotted) == []
    assert wrong(WITHIN, MODULES, is_within) == []


def test_names_in_docstrings_are_those_of_code():
    assert wrong(NAME, MODULES, lambda name: name in code_names()) == []


def test_what_is_not_there_is_noticed():
    assert not is_path("ccts_dist/losses/concordance.py")
    assert not is_path("runs/demo/student.toml")
    assert is_path("losses/ccc.py")
    assert not is_dotted("ccts_dist.losses.concordance")
    assert not is_dotted("ccts_dist.losses.ccc.concordances")
    assert is_dotted("ccts_dist.losses.ccc.concordance")
    assert not is_within("train.engine")
    assert is_within("train.zero.engine")
    assert is_within("train.max_steps")
    assert is_dotted("ccts_dist.config.BatchConfig.gradient_accumulation_steps")

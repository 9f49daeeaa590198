"""Words of the project's former dialect stay out of identifiers, docstrings, comments, messages and run files."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.repository import MODULES, ROOT, name_of

SOURCES = [path for path in MODULES if not path.is_relative_to(ROOT / "tests")]
RUN_FILES = sorted(path for path in (ROOT / "launch" / "runs").rglob("*.toml"))
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

NAMES = re.compile(
    r"""_*(
        passes | num_passes | most_passes | fewest_passes | choose_passes                 # micro-batches of a step
        | kept | num_kept | kept_in | kept_share | is_kept | Kept                         # gate_mask, num_distilled
        | left_out | num_left_out | share_left_out | LeftOut                              # rejected_fraction
        | deviation | embedding_deviation | row_shares | prediction_shares                # residual_std, row_weights
        | told | tells | says | said | hears? | heard | hearing | ears? | Ear | [Uu]nheard
        | judged? | judges | coin | beats? | meter | Meter | Patience | whole_file | told_of | parts_at
        | streams | num_streams | compiled_folder | read_layout | ZeroLayout | in_step | together
        | Said | AwayError | RefusedError | quick_imports
        | figures_of | step_figures | epoch_figures | as_figure | also | also_normalise | normalise
    )""",
    re.VERBOSE,
)
"""Identifiers, with any number of leading underscores."""

WORDS = re.compile(
    r"(?<![\w-])(tells?|told|hears?|heard|hearing|says?|said|judge[sd]?|coin|ears?)(?![\w(-])", re.IGNORECASE
)
"""In prose, where models predict, recognizers transcribe, and commands print and report."""

NO_NOUN = ("What", "Whether", "Where", "As", "Of")
"""Beginnings of a docstring that does not name the thing."""

OLD_NAMES = ROOT / "ccts_dist" / "config" / "renamed.py"
SPOKEN = ROOT / "ccts_dist" / "corpus" / "open" / "tess.py"
"""Its recordings are of people who say "Say the word"."""


def tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)


def banned_names(path: Path) -> list[str]:
    """Identifiers of a module that are banned, with their lines; those inside of f-strings too."""
    found = []
    for token in tokens(path):
        names = [token.string] if token.type == tokenize.NAME else []
        if token.type == tokenize.STRING and "f" in token.string.partition(token.string[-1])[0].lower():
            names = re.findall(r"(?<!\{)\{\s*([A-Za-z_]\w*)", token.string)
        found += [f"line {token.start[0]}: {name}" for name in names if NAMES.fullmatch(name)]
    return found


def banned_prose(path: Path) -> list[str]:
    """Words of a module's strings and comments, or of a whole file of another kind, with their lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [f"{match[0]!r} in {line!r}" for line in text.splitlines() for match in WORDS.finditer(line)]
    prose = (token for token in tokens(path) if token.type in (tokenize.STRING, tokenize.COMMENT))
    return [f"line {token.start[0]}: {match[0]}" for token in prose for match in WORDS.finditer(token.string)]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Those of a module's parts, those under fields and constants included, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def riddles(path: Path) -> list[str]:
    """Docstrings that do not begin with the name of the thing or with a verb."""
    return [f"line {line}: {text[:60]}" for line, text in docstrings(path) if text.split(maxsplit=1)[0] in NO_NOUN]


def test_there_are_sources():
    assert len(SOURCES) > 200
    assert len(RUN_FILES) > 20
    assert SCRIPTS


@pytest.mark.parametrize("path", [path for path in SOURCES if path != OLD_NAMES], ids=name_of)
def test_identifiers_are_the_terms_of_the_field(path: Path):
    assert banned_names(path) == []


@pytest.mark.parametrize("path", [*SOURCES, *RUN_FILES, *SCRIPTS], ids=name_of)
def test_prose_has_no_banned_word(path: Path):
    if path not in (OLD_NAMES, SPOKEN):
        assert banned_prose(path) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings_name_the_thing_first(path: Path):
    assert riddles(path) == []


def test_banned_words_are_noticed(tmp_path: Path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""What the model says."""\n\nkept = 1  # as it was told\nprint(f"{passes} {{kept}}")\nfile.tell()\n'
    )
    assert banned_names(path) == ["line 3: kept", "line 4: passes"]
    assert banned_prose(path) == ["line 1: says", "line 3: told"]
    assert riddles(path) == ["line 1: What the model says."]
    (tmp_path / "run.toml").write_text("# what the words say\n")
    assert banned_prose(tmp_path / "run.toml") == ["'say' in '# what the words say'"]

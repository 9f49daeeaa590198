"""The list of packages, and where a run's code comes from."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ccts_dist.tracking import environment
from ccts_dist.tracking.environment import installed_packages, source_tags


def test_packages_are_listed_with_the_versions_that_python_states_and_no_setting_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "recognisable")
    text = installed_packages()
    lines = text.splitlines()
    assert lines[0].startswith("# Python 3.")
    assert lines[1:] == sorted(set(lines[1:]))
    for name in ("torch", "mlflow", "ccts-dist", "jaxtyping"):
        assert f"{name}=={version(name)}" in lines
    assert "recognisable" not in text


def test_commit_of_an_installed_program_is_that_of_the_packages_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, checkout = tmp_path / "bin" / "ccts", tmp_path / "checkout"
    program.parent.mkdir()
    program.touch()
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setattr(environment, "_PACKAGE", checkout / "ccts_dist")
    (checkout / "ccts_dist").mkdir(parents=True)
    assert "mlflow.source.git.commit" not in source_tags()
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert source_tags()["mlflow.source.git.commit"] == head
    (checkout / ".gitignore").write_text("ccts_dist/")
    assert "mlflow.source.git.commit" not in source_tags(), "a repository that ignores packages is not theirs"

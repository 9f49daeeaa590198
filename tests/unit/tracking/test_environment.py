"""The list of packages."""

from importlib.metadata import version

import pytest

from ccts_dist.tracking.environment import installed_packages


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

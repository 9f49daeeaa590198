"""Wheels for a machine that reaches no package index: fetched where there is one, installed where they are lacking.

Versions are those of ``requirements.lock``. Installing uses the standard library, pip and ``packaging``.
"""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements.lock"

NEEDED = (
    "accelerate", "deepspeed", "fsspec", "jaxtyping", "miniaudio", "psutil", "safetensors", "sentencepiece",
    "soundfile", "tomli-w", "tqdm", "transformers", "webdataset",
)  # fmt: skip
"""What a training imports, beside what ``THERE`` names; what these need comes along."""

THERE = ("torch", "numpy", "pyarrow", "matplotlib", "torchaudio", "setuptools")
"""Too large to carry, or of one piece with the machine's CUDA: the machine must have them."""

BUILT_HERE = ("deepspeed",)
"""There is no wheel of it to fetch; it is pure Python."""

PLATFORM_TAGS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64",
                 "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
"""pip takes each as it stands, and none that is older."""


def locked_versions(lock: Path = LOCK) -> dict[str, str]:
    """Version by canonical name."""
    lines = lock.read_text().splitlines()
    pins = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", line) for line in lines)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def carried_packages(lock: Path = LOCK) -> dict[str, str]:
    """What travels, with its version: ``NEEDED`` and all that these need, as this environment knows it."""
    pins, carried = locked_versions(lock), dict[str, str]()
    waiting = list(NEEDED)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in carried or name in THERE or name.startswith("nvidia"):
            continue
        carried[name] = pins[name]
        for line in requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": "", "python_version": "3.12"}):
                waiting.append(needed.name)
    return dict(sorted(carried.items()))


def fetch_wheels(folder: Path) -> None:
    """Fill ``folder`` with one wheel of each package, for CPython 3.12 on x86-64 Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = carried_packages()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    fetched = [f"{name}=={pin}" for name, pin in packages.items() if name not in BUILT_HERE]
    platforms = [part for tag in PLATFORM_TAGS for part in ("--platform", tag)]
    subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.12",
         "--implementation", "cp", *platforms, "-d", str(folder), *fetched],
        check=True,
    )  # fmt: skip
    for name in BUILT_HERE:
        subprocess.run(
            [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder),
             f"{name}=={packages[name]}"],
            check=True,
        )  # fmt: skip
    for wheel in folder.glob("*.whl"):
        if packages.get(canonicalize_name(wheel.name.split("-")[0])) != wheel.name.split("-")[1]:
            wheel.unlink()  # of an earlier lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A package in a file, and what it asks of others."""

    path: Path
    name: str
    version: str
    requirements: tuple[Requirement, ...]


def read_wheel(path: Path) -> Wheel:
    """Its name, version and requirements, as its METADATA has them."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = Parser().parsestr(archive.read(name).decode())
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist") or ()]
    return Wheel(
        path=path,
        name=canonicalize_name(metadata["Name"]),
        version=metadata["Version"],
        requirements=tuple(one for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})),
    )


def lacking(wheels: Sequence[Wheel], installed: Mapping[str, str], project: Iterable[Requirement]) -> list[Wheel]:
    """The wheels to install: packages that are missing, or not as the project or another of these wheels needs them."""
    by_name = {wheel.name: wheel for wheel in wheels}
    chosen: dict[str, Wheel] = {}
    asked = list(project)
    while True:
        demands = [*asked, *(need for wheel in chosen.values() for need in wheel.requirements)]
        unmet = {
            name
            for need in demands
            if (name := canonicalize_name(need.name)) in by_name and name not in chosen
            if name not in installed or not need.specifier.contains(installed[name], prereleases=True)
        }
        if not unmet:
            return [by_name[name] for name in sorted(chosen)]
        chosen |= {name: by_name[name] for name in unmet}


def install_lacking(folder: Path, target: Path) -> list[str]:
    """Install into ``target`` what this machine lacks of the wheels in ``folder``; NAME VERSION of each."""
    wheels = [read_wheel(path) for path in sorted(folder.glob("*.whl"))]
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = [Requirement(line) for line in tree["project"]["dependencies"]]
    chosen = lacking(wheels, _installed(wheel.name for wheel in wheels), [one for one in project if _carried(one)])
    if chosen:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
             "--disable-pip-version-check", "--no-cache-dir", "--upgrade", "--target", str(target),
             *(str(wheel.path) for wheel in chosen)],
            check=True,
        )  # fmt: skip
    return [f"{wheel.name} {wheel.version}" for wheel in chosen]


def _carried(need: Requirement) -> bool:
    """Whether it is one that travels."""
    return canonicalize_name(need.name) in {canonicalize_name(name) for name in NEEDED}


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

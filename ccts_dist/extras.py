"""Packages that training or a registry needs and prediction does not, and the extra that installs each."""

import importlib.util

_EXTRAS = {
    "train": ("accelerate", "deepspeed"),
    "mlflow": ("mlflow", "alembic", "google", "pandas", "requests", "sqlalchemy"),
    "lora": ("peft",),
    "tensorboard": ("tensorboard",),
}
"""Import names by extra; those of "mlflow" after the first come with it."""


def words_for_missing(package: str) -> str:
    """The error line for a package that is not installed and that an extra installs; "" for all others.

    Args:
        package: import name, such as "mlflow.entities".
    """
    top = package.partition(".")[0]
    extra = next((extra for extra, names in _EXTRAS.items() if top in names), "")
    if not extra:
        return ""
    named = "mlflow" if extra == "mlflow" else top
    return f"the package {named} is not installed. Install the extra: pip install 'ccts-dist[{extra}]'"


def missing_for_training(*, backend: str) -> str:
    """The error line for the first package that a training lacks; "" when all are there.

    Args:
        backend: of ``[tracking]``, such as "mlflow+tensorboard"; "none" needs no package.
    """
    needed = (*_EXTRAS["train"], *(name for name in ("mlflow", "tensorboard") if name in backend))
    return next((words_for_missing(name) for name in needed if importlib.util.find_spec(name) is None), "")

"""The page of a served model: one document without anything fetched, and the headers that hold it to that."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ccts_dist.inference.predictor import Predictor
from ccts_dist.records import is_rating
from ccts_dist.serving.handler import Limits

_FILES = Path(__file__).with_name("page_files")
_MIB = 1 << 20


def render_page(student: Predictor, limits: Limits, *, name: str) -> tuple[str, Mapping[str, str]]:
    """The document, and the headers it is sent with.

    Args:
        student: the model.
        limits: of a request; the page shows them before a recording is sent.
        name: of the model, as "emotion/3"; "" for one that has no public name.
    """
    style, script = ((_FILES / file).read_text(encoding="utf-8") for file in ("style.css", "script.js"))
    targets = [target for target in student.targets if is_rating(target)]
    predicted = [*([f"{', '.join(targets)} on {student.scale[0]:g} to {student.scale[1]:g}"] if targets else []),
                 *([f"classes {', '.join(student.categories)}"] if student.categories else [])]  # fmt: skip
    size = f"{limits.recording_bytes / _MIB:.3g} MiB"
    facts = {
        "targets": targets,
        "categories": student.categories,
        "scale": student.scale,
        "seconds": limits.seconds,
        "recording_bytes": limits.recording_bytes,
        "size": size,
    }
    pages = Environment(loader=FileSystemLoader(_FILES), autoescape=True, undefined=StrictUndefined)
    document = pages.get_template("page.html").render(
        title="Emotion of a recording",
        subtitle=" · ".join([*([name] if name else []), *predicted]),
        facts=json.dumps(facts),
        seconds=f"{limits.seconds:g}",
        size=size,
        style=Markup(style),
        script=Markup(script),
    )
    return document, _headers(style, script)


def _headers(style: str, script: str) -> Mapping[str, str]:
    """Nothing is fetched but this server's own answers, and nothing runs but the script whose digest stands here."""
    policy = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "connect-src": "'self'",
        "media-src": "blob:",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""First light's table: a line for each part, then what failed."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(device: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown: seconds, verdict, items and the key figures of each part."""
    lines = [
        f"### {device}",
        "",
        "| part | s | verdict | items | figures |",
        "|:--|--:|:--|:--|:--|",
    ]
    for part in parts:
        counted = ", ".join(f"{part[kind]} {kind}" for kind in ("passed", "failed", "skipped") if part[kind])
        shown = "; ".join(f"{name} {value}" for name, value in part["shown"].items())
        verdict = part["status"] if part["status"] != "skipped" else f"skipped: {part['reason']}"
        lines.append(f"| {part['part']} {part['title']} | {part['seconds']:.0f} | {verdict} | {counted} | {shown} |")
    for part in parts:
        if part["status"] == "failed":
            lines += ["", f"{part['part']}: {part['reason']}"]
    seconds = sum(part["seconds"] for part in parts)
    lines += ["", f"{seconds:.0f} s in all."]
    return "\n".join(lines)

"""Serve a student over HTTP: ``python launch/serve.py MODEL``. See ``--help``."""

import argparse
import os

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Serve a model's predictions of recordings at POST /invocations: the addresses and bodies of "
        "`mlflow models serve`, and forms with files, for a server that strangers reach. A browser finds a page at "
        "GET /: it takes a file or the microphone and draws the curve over time. Whatever is malformed, too large or "
        "no audio is refused with a 4xx and the reason. There are no users and no passwords.",
        epilog="examples:\n"
        "  python launch/serve.py models:/emotion@champion --audio-root /data/calls\n"
        '  printf \'{"inputs": [{"audio": "%s"}, {"path": "2026/a.wav"}]}\' "$(base64 -w0 a.wav)" |\n'
        "    curl -H 'Content-Type: application/json' --data-binary @- http://127.0.0.1:5001/invocations\n"
        "  curl -F audio=@a.wav -F window=5 -F hop=1 http://127.0.0.1:5001/invocations\n"
        "Each limit may come from the environment instead: CCTS_AUDIO_ROOT, CCTS_MAX_RECORDINGS, ...\n"
        "Each request is a line of JSON on stderr, but for /ping, /health, /ready and /metrics.\n"
        "exit codes: 0 ended by a signal, 1 the registry failed, 2 a mistake, or a port that is taken",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("place", nargs="?", metavar="MODEL", help="a run folder (its best model), a model folder, models:/NAME@ALIAS, "
        "runs:/RUN_ID or hf://ORG/NAME")  # fmt: skip
    add("--model", "-m", help="the same, as other commands take it")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: this machine only)")
    add("--port", type=int, default=5001, help="0 for any that is free (default: 5001)")
    add("--audio-root", default="", metavar="DIR", help="serve paths below this folder (default: no paths)")
    add("--max-recordings", default="", metavar="N", help="of a request (default: 32)")
    add("--max-recording-bytes", default="", metavar="N", help="of an audio file, before base64 (default: 16 MiB)")
    add("--max-seconds", default="", metavar="S", help="of a recording, at most 600 (default: 120)")
    add("--max-request-bytes", default="", metavar="N", help="of a body (default: 128 MiB)")
    add("--max-waiting-bytes", default="", metavar="N", help="of all bodies in memory together (default: 256 MiB)")
    add("--max-requests", default="", metavar="N", help="waiting or answered at a time; above it 503 (default: 32)")
    add("--max-connections", default="", metavar="N", help="at a time; the longest silent one gives way (default: 512)")
    add("--max-head-seconds", default="", metavar="S", help="in which a request's head must come (default: 10)")
    add("--max-body-seconds", default="", metavar="S", help="in which a body must come, or 16 KiB/s more (default: 20)")
    add("--no-page", dest="page", action="store_false", help="no page for people at GET /")
    add("--tracking-uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    args = parser.parse_args(argv)
    if (args.place is None) == (args.model is None):
        parser.error("give the model to serve once: MODEL or --model MODEL")
    args.model = args.place or args.model
    return args


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.serving.server import serve

    limits = {f"CCTS_{name.upper()}": value for name, value in vars(args).items() if name.startswith(("max_", "audio"))}
    given = {name: value for name, value in limits.items() if value}
    serve(args.model, host=args.host, port=args.port, environment=os.environ | given,
          tracking_uri=args.tracking_uri, page=args.page)  # fmt: skip
    return 0


if __name__ == "__main__":
    start("serve")

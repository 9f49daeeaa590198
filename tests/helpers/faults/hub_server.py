"""A hub of models on loopback that answers what huggingface_hub asks: repositories, commits, trees and files.

Files are kept in memory and sent whole with each commit, as the hub takes small ones; there is no LFS.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_recognisableTokenThatMustNeverBeSeen"


@dataclass(kw_only=True)
class Repository:
    """A model's repository."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Put files on a branch in place of what it had; the commit's name."""
        told = json.dumps([self.branches[branch], len(self.commits), sorted(files)])
        name = hashlib.sha1(told.encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name


@dataclass(kw_only=True)
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Of a repository by path."""
        found = self.repositories[repo]
        return found.commits[found.branches.get(revision, revision)]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub at a free port, as long as the block runs."""
    hub = Hub()
    config = uvicorn.Config(_Answers(hub).application(), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < until, "the hub did not start"
            time.sleep(0.01)
        hub.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield hub
    finally:
        server.should_exit = True
        thread.join(30)


class _Answers:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def application(self) -> Starlette:
        api = "/api/models/{org}/{name}"
        return Starlette(
            routes=[
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route("/api/validate-yaml", self.validate, methods=["POST"]),
                Route(f"{api}/branch/{{revision:path}}", self.branch, methods=["POST"]),
                Route(f"{api}/preupload/{{revision:path}}", self.preupload, methods=["POST"]),
                Route(f"{api}/commit/{{revision:path}}", self.commit, methods=["POST"]),
                Route(f"{api}/tree/{{revision:path}}", self.tree),
                Route(f"{api}/revision/{{revision:path}}", self.info),
                Route(api, self.info),
                Route("/{org}/{name}/resolve/{revision}/{path:path}", self.resolve),
            ]
        )

    async def create(self, request: Request) -> Response:
        self._note(request)
        if not _knows(request):
            return _refused(401, "", "Invalid username or password.")
        asked = await request.json()
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            return JSONResponse({"error": "You already created this repo", "url": f"{self.hub.address}/{repo}"}, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[repo] = Repository(private=private)
        return JSONResponse({"url": f"{self.hub.address}/{repo}"})

    async def validate(self, request: Request) -> Response:
        self._note(request)
        assert (await request.json())["content"].startswith("---\n")
        return JSONResponse({"errors": [], "warnings": []})

    async def branch(self, request: Request) -> Response:
        repository, refusal = self._repository(request, write=True)
        if repository is None:
            return refusal
        branch = request.path_params["revision"]
        if branch in repository.branches:
            return _refused(409, "", "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        repository, refusal = self._repository(request, write=True)
        if repository is None:
            return refusal
        named = [one["path"] for one in (await request.json())["files"]]
        files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in named]
        return JSONResponse({"files": files})

    async def commit(self, request: Request) -> Response:
        repository, refusal = self._repository(request, write=True)
        if repository is None:
            return refusal
        branch = request.path_params["revision"]
        files = dict(repository.commits[repository.branches[branch]])
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]
            else:
                assert entry["key"] == "header", entry
        name = repository.commit(branch, files)
        url = f"{self.hub.address}/{request.path_params['org']}/{request.path_params['name']}/commit/{name}"
        return JSONResponse({"commitUrl": url, "commitOid": name, "success": True})

    async def info(self, request: Request) -> Response:
        repository, refusal = self._repository(request)
        if repository is None:
            return refusal
        commit = self._commit(repository, request)
        if commit is None:
            return _refused(404, "RevisionNotFound", "Invalid rev id")
        repo = f"{request.path_params['org']}/{request.path_params['name']}"
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return JSONResponse(
            {"_id": "0", "id": repo, "sha": commit, "private": repository.private, "siblings": siblings}
        )

    async def tree(self, request: Request) -> Response:
        repository, refusal = self._repository(request)
        if repository is None:
            return refusal
        commit = self._commit(repository, request)
        if commit is None:
            return _refused(404, "RevisionNotFound", "Invalid rev id")
        files = repository.commits[commit].items()
        return JSONResponse(
            [{"type": "file", "path": path, "size": len(data), "oid": _etag(data)} for path, data in files]
        )

    async def resolve(self, request: Request) -> Response:
        repository, refusal = self._repository(request)
        if repository is None:
            return refusal
        commit = self._commit(repository, request)
        if commit is None:
            return _refused(404, "RevisionNotFound", "Invalid rev id")
        data = repository.commits[commit].get(request.path_params["path"])
        if data is None:
            return _refused(404, "EntryNotFound", "Entry not found")
        return Response(data, headers={"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit})

    def _repository(self, request: Request, *, write: bool = False) -> tuple[Repository | None, Response]:
        """The repository that is asked about, or why it is not given."""
        self._note(request)
        found = self.hub.repositories.get(f"{request.path_params['org']}/{request.path_params['name']}")
        if found is None or ((found.private or write) and not _knows(request)):
            code = 404 if _knows(request) else 401
            return None, _refused(code, "RepoNotFound", "Repository not found")
        return found, Response()

    def _commit(self, repository: Repository, request: Request) -> str | None:
        revision = request.path_params.get("revision", "main")
        name = repository.branches.get(revision, revision)
        return name if name in repository.commits else None

    def _note(self, request: Request) -> None:
        self.hub.asked.append(f"{request.method} {request.url.path}")


def _knows(request: Request) -> bool:
    return request.headers.get("authorization") == f"Bearer {TOKEN}"


def _refused(status: int, code: str, words: str) -> Response:
    """As the hub refuses: what kind of fault it is stands in a header."""
    headers = {"X-Error-Code": code, "X-Error-Message": words} if code else {}
    body: dict[str, Any] = {"error": words}
    return JSONResponse(body, status, headers=headers)


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

"""A real HTTP server on 127.0.0.1 that speaks the part of the hub's protocol which reading a data set needs.

Repositories hold commits (path → bytes) and branches that can be moved. It can be told to misbehave. Load it by path (tests
are no package): see `hub` in tests/data/conftest.py.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A data set: its commits, and what its branches and tags stand for."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


class HubServer:
    """Serves while the `with` block lasts. `requests` lists "METHOD path" of everything asked.

    `trouble` is one of: None; an HTTP status to answer everything with; "truncated" (half of a file, then the connection
    closes); "corrupt" (other bytes of the same length).
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.trouble: int | str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a commit and moves the branch to it; returns its 40 hex digits."""
        repository = self.repositories.setdefault(repo, Repository())
        seed = repr((repo, len(repository.commits), sorted(files.items())))
        commit = hashlib.sha1(seed.encode()).hexdigest()
        return self.commit_as(repo, files, commit, branch)

    def commit_as(self, repo: str, files: dict[str, bytes], commit: str, branch: str = "main") -> str:
        repository = self.repositories.setdefault(repo, Repository())
        repository.commits[commit] = dict(files)
        repository.refs[branch] = commit
        return commit

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _etag(path: str, content: bytes) -> str:
    """The hub names large (parquet) files by sha256 and small ones by git's own hash."""
    if path.endswith(".parquet"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if isinstance(hub.trouble, int):
                self._send(hub.trouble, b'{"error": "trouble"}', {"Retry-After": "0"} if hub.trouble == 429 else {})
            elif path.startswith("/api/datasets/"):
                self._api(path.removeprefix("/api/datasets/"))
            elif path.startswith("/datasets/") and "/resolve/" in path:
                repo, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
                revision, _, name = rest.partition("/")
                self._file(repo, revision, name)
            else:
                self._send(404, b"{}")

        def _find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
            repository = hub.repositories.get(repo)
            if repository is None:
                self._error("RepoNotFound", "Repository not found", status=401)  # as the hub hides private ones
                return None
            commit = repository.refs.get(revision, revision)
            if commit not in repository.commits:
                self._error("RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return commit, repository.commits[commit]

        def _api(self, rest: str) -> None:
            repo, _, tail = rest.partition("/revision/")
            if "/tree/" in rest:
                repo, _, tail = rest.partition("/tree/")
            revision = tail.split("/")[0] or "main"
            found = self._find(repo, revision)
            if found is None:
                return
            commit, files = found
            if "/tree/" in rest:
                listed: Any = [{"type": "file", "path": p, "size": len(c), "oid": _etag(p, c)} for p, c in files.items()]
            else:
                listed = {"id": repo, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": []}
            self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

        def _file(self, repo: str, revision: str, name: str) -> None:
            found = self._find(repo, revision)
            if found is None:
                return
            commit, files = found
            if name not in files:
                self._error("EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
                return
            content = files[name]
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(name, content)}"', "Accept-Ranges": "bytes"}
            if hub.trouble == "corrupt":
                content = bytes(reversed(content))
            self._send(200, content, headers, cut=hub.trouble == "truncated")

        def _error(self, code: str, message: str, headers: dict[str, str] | None = None, status: int = 404) -> None:
            body = json.dumps({"error": message}).encode()
            self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message} | (headers or {}))

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """The tests read `requests`."""

    return Handler

"""A small server on 127.0.0.1 that speaks the part of the Hub's HTTP API which publishing and loading use.

Written from what huggingface_hub sends and reads (its sources are the reference): repositories with commits, git
LFS for ``*.safetensors``, tokens with and without the right to write, and faults on request. No Xet. Stricter than the
Hub in one thing: a name is taken for every kind of repository; there each kind has names of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER, STRANGER = "hf_testwritertoken", "hf_testreadertoken", "hf_teststrangertoken"
USERS = {WRITER: "me", READER: "me", STRANGER: "stranger"}
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
BREAKS = 100  # huggingface_hub tries a request six times; this is a network that is gone


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    kind: str
    private: bool
    sdk: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: dict[str, bytes]) -> str:
        files = {**(self.commits[self.refs["main"]] if self.refs else {}), **changes}
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.refs["main"] = files, sha
        return sha

    def sha(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


@dataclass
class FakeHub:
    """State of the server; tests read and change it directly."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    break_uploads: int = 0  # so many uploads of large files lose their connection half-way
    break_after: int = 0  # but not the first so many
    break_commits: int = 0
    refuse_results: bool = False  # as the Hub may, for data that is no registered benchmark
    uploads: int = 0
    lock: Lock = field(default_factory=Lock)

    def add(self, kind: str, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        repo = self.repos[kind, name] = Repo(kind, private)
        repo.commit(files)
        return repo

    def count(self, method: str, part: str) -> int:
        return sum(verb == method and part in path for verb, path in self.log)

    def upload_breaks(self) -> bool:
        with self.lock:
            self.uploads += 1
            if self.uploads <= self.break_after or self.break_uploads <= 0:
                return False
            self.break_uploads -= 1
            return True


class Stop(Exception):
    """Answer with an error."""

    def __init__(self, status: int, text: str, code: str = "", commit: str = "") -> None:
        self.status, self.text, self.code, self.commit = status, text, code, commit


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = (
        -1
    )  # headers and body in one packet: the client's delayed acknowledgement costs 40 ms otherwise
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path))
        try:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    action(self, **match.groupdict())
                    return
            raise Stop(404, f"no such route: {self.command} {path}")
        except Stop as stop:
            # what was not read of the request would be taken for the next one
            self.close_connection = True
            headers = {
                "Connection": "close",
                "X-Error-Message": stop.text,
                "X-Error-Code": stop.code,
                "X-Repo-Commit": stop.commit,
            }
            self.answer(
                {"error": stop.text}, stop.status, {key: value for key, value in headers.items() if value}
            )

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def token(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in USERS:
            raise Stop(401, "Invalid credentials in Authorization header")
        return token

    def must_write(self, name: str) -> None:
        token = self.token()
        if token is None:
            raise Stop(401, "Invalid username or password.")
        if token == READER or USERS[token] != name.split("/")[0]:
            raise Stop(403, "You don't have the required permissions to perform this action")

    def repo(self, kind: str, name: str) -> Repo:
        token = self.token()
        repo = self.hub.repos.get((kind, name))
        hidden = repo is not None and repo.private and (token is None or USERS[token] != name.split("/")[0])
        if repo is None or hidden:
            raise Stop(401 if token is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repo.sha(revision)
        if sha is None:
            raise Stop(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]


def whoami(handler: Handler) -> None:
    token = handler.token()
    if token is None:
        raise Stop(401, "Invalid username or password.")
    handler.answer({"type": "user", "name": USERS[token], "orgs": [], "auth": {"type": "access_token"}})


def create(handler: Handler) -> None:
    request = json.loads(handler.body())
    kind = request.get("type") or "model"
    owner = request.get("organization") or USERS.get(handler.token() or "", "")
    name = f"{owner}/{request['name']}"
    handler.must_write(name)
    others = [taken for taken, other in handler.hub.repos if other == name]
    url = f"{handler.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
    if others:
        handler.answer({"error": f"You already created this {others[0]} repo", "url": url}, 409)
        return
    repo = handler.hub.repos[kind, name] = Repo(
        kind, request.get("visibility") == "private", request.get("sdk")
    )
    repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
    handler.answer({"url": url, "id": name})


def sibling(path: str, content: bytes) -> dict[str, Any]:
    """As with ``blobs=true``, which only gives more."""
    result = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
    if is_lfs(path):
        result["lfs"] = {"sha256": lfs_hash(content), "size": len(content), "pointerSize": 134}
    return result


def info(handler: Handler, kinds: str, name: str, revision: str | None) -> None:
    repo = handler.repo(KINDS[kinds], name)
    sha, files = handler.files(repo, revision or "main")
    siblings = [sibling(path, content) for path, content in sorted(files.items())]
    handler.answer(
        {
            "id": name,
            "sha": sha,
            "private": repo.private,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
    )


def entry(path: str, content: bytes) -> dict[str, Any]:
    result = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if is_lfs(path):
        result["lfs"] = {"oid": lfs_hash(content), "size": len(content), "pointerSize": 134}
    return result


def tree(handler: Handler, kinds: str, name: str, revision: str) -> None:
    _, files = handler.files(handler.repo(KINDS[kinds], name), revision)
    handler.answer([entry(path, content) for path, content in sorted(files.items())])


def validate_yaml(handler: Handler) -> None:
    text = json.loads(handler.body())["content"]
    errors = [] if text.startswith("---\n") else [{"message": "no metadata"}]
    handler.answer({"errors": errors, "warnings": []}, 400 if errors else 200)


def preupload(handler: Handler, kinds: str, name: str, revision: str) -> None:
    asked = json.loads(handler.body())["files"]
    handler.must_write(name)
    _, files = handler.files(handler.repo(KINDS[kinds], name), revision)
    answers = []
    for item in asked:
        path, old = item["path"], files.get(item["path"])
        oid = None if old is None else lfs_hash(old) if is_lfs(path) else git_hash(old)
        mode = "lfs" if is_lfs(path) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    handler.answer({"files": answers})


def lfs_batch(handler: Handler, name: str) -> None:
    objects = json.loads(handler.body())["objects"]
    handler.must_write(name.removeprefix("spaces/"))
    for item in objects:
        if item["oid"] not in handler.hub.lfs:
            href = f"{handler.hub.url}/lfs/{item['oid']}?X-Amz-Signature=secret"
            item["actions"] = {"upload": {"href": href}}
    handler.answer({"transfer": "basic", "objects": objects})


def lfs_put(handler: Handler, oid: str) -> None:
    if handler.hub.upload_breaks():
        handler.rfile.read(1000)
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return
    content = handler.body()
    if lfs_hash(content) != oid:
        raise Stop(400, "the content is not what was announced")
    handler.hub.lfs[oid] = content
    handler.answer({})


def commit(handler: Handler, kinds: str, name: str, revision: str) -> None:
    lines = [json.loads(line) for line in handler.body().splitlines()]
    handler.must_write(name)
    repo = handler.repo(KINDS[kinds], name)
    if handler.hub.break_commits > 0:
        handler.hub.break_commits -= 1
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return
    changes: dict[str, bytes] = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            changes[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            changes[value["path"]] = handler.hub.lfs[value["oid"]]
    if handler.hub.refuse_results and any(path.startswith(".eval_results/") for path in changes):
        raise Stop(400, "lfw is not a benchmark")
    sha = repo.commit(changes)
    handler.answer({"commitUrl": f"{handler.hub.url}/{name}/commit/{sha}", "commitOid": sha})


def refs(handler: Handler, kinds: str, name: str) -> None:
    found = {"branches": [], "converts": [], "tags": []}
    for ref, sha in handler.repo(KINDS[kinds], name).refs.items():
        kind, path = ("branches", "heads") if ref == "main" else ("tags", "tags")
        found[kind].append({"name": ref, "ref": f"refs/{path}/{ref}", "targetCommit": sha})
    handler.answer(found)


def tag(handler: Handler, kinds: str, name: str, revision: str) -> None:
    new = json.loads(handler.body())["tag"]
    handler.must_write(name)
    repo = handler.repo(KINDS[kinds], name)
    if new in repo.refs:
        raise Stop(409, "Tag reference exists already")
    repo.refs[new] = handler.files(repo, revision)[0]
    handler.answer({})


def resolve(handler: Handler, prefix: str, name: str, revision: str, path: str) -> None:
    repo = handler.repo(KINDS.get(prefix.rstrip("/"), "model"), name)
    sha, files = handler.files(repo, revision)
    if path not in files:
        raise Stop(404, "Entry not found", "EntryNotFound", sha)
    content = files[path]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{git_hash(content)}"'}
    if is_lfs(path):  # the real Hub redirects to another host here
        oid = lfs_hash(content)
        headers |= {"ETag": f'"{oid}"', "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
    handler.answer(content, headers=headers)


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
REPO = rf"/api/(?P<kinds>models|datasets|spaces)/{NAME}"
ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"{REPO}(?:/revision/(?P<revision>.+))?", info),
    ("GET", rf"{REPO}/refs", refs),
    ("POST", rf"{REPO}/tag/(?P<revision>[^/]+)", tag),
    ("GET", rf"{REPO}/tree/(?P<revision>[^/]+)/?", tree),
    ("POST", rf"{REPO}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"{REPO}/commit/(?P<revision>[^/]+)", commit),
    ("POST", r"/(?P<name>(?:spaces/)?[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w{64})", lfs_put),
    (
        "GET HEAD",
        rf"/(?P<prefix>(?:spaces/|datasets/)?){NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        resolve,
    ),
]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run the server on a free port of 127.0.0.1 in a thread."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

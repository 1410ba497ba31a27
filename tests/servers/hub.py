"""Subset of the Hugging Face Hub's HTTP API: publish and read model and dataset repositories."""

import base64
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.servers.faults import Answer, FaultyProxy

OWNER = "tester"  # the account of HUB_TOKEN
HUB_TOKEN = "hf_onlyInLocalTestsHubToken"
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".wav", ".flac", ".ogg", ".mp3", ".png")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

HUB_ANSWERS = {
    "throttle": Answer(429, b'{"error": "We had to rate limit you."}', "application/json"),
    "unavailable": Answer(503, b'{"error": "Service Unavailable"}', "application/json"),
}


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def entry(self, path: str) -> dict[str, Any]:
        """Return the file as an entry of a listing."""
        size = len(self.content)
        lfs = {"lfs": {"oid": self.sha256, "size": size, "pointerSize": 134}} if self.is_lfs else {}
        return {"type": "file", "path": path, "size": size, "oid": self.blob_id, **lfs}


@dataclass(frozen=True)
class Commit:
    title: str
    files: dict[str, File]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))

    @property
    def oid(self) -> str:
        tree = [(path, self.files[path].etag) for path in sorted(self.files)]
        return hashlib.sha1(json.dumps([self.title, self.date, tree]).encode()).hexdigest()

    def folder(self, prefix: str, recursive: bool) -> list[dict[str, Any]]:
        """Return the entries of a folder of the repository; `prefix` is empty or ends in a slash."""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(self.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                inner = prefix + "/".join(parts[:depth])
                entries[inner] = {
                    "type": "directory",
                    "path": inner,
                    "size": 0,
                    "oid": hashlib.sha1(inner.encode()).hexdigest(),
                }
            if recursive or len(parts) == 1:
                entries[path] = file.entry(path)
        return list(entries.values())


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(
        default_factory=lambda: [Commit("initial commit", {".gitattributes": File(ATTRIBUTES, is_lfs=False)})]
    )

    def at(self, revision: str) -> Commit:
        for commit in reversed(self.commits):
            if revision in {"main", commit.oid}:
                return commit
        raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


@dataclass
class Hub:
    """The Hub behind its proxy.

    Clients read the variables of the Hub when they are imported, so run them in separate processes.
    """

    proxy: FaultyProxy
    contents: "_Contents"

    @classmethod
    def create(cls) -> "Hub":
        contents = _Contents()
        return cls(FaultyProxy(contents.start, HUB_ANSWERS), contents)

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables by which a process finds this Hub and its credentials.

        `cache` is the folder for downloads.
        """
        return {
            "HF_ENDPOINT": self.proxy.url,
            "HF_TOKEN": HUB_TOKEN,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",  # this Hub supports only the LFS protocol
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """Return the files of a repository's main branch by path.

        Args:
            kind: `models` or `datasets`.
            name: OWNER/NAME.
        """
        return {path: file.content for path, file in self.contents.repositories[kind, name].at("main").files.items()}

    def close(self) -> None:
        self.proxy.close()
        self.contents.stop()

    def commit_titles(self, kind: str, name: str) -> list[str]:
        return [commit.title for commit in self.contents.repositories[kind, name].commits]


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


class _Contents:
    """All repositories and large files, and the HTTP API on them."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.server: uvicorn.Server | None = None
        repository = "/api/{kind}/{owner}/{name}"
        self.app = Starlette(
            routes=[
                Route("/api/whoami-v2", self.whoami),
                Route("/api/validate-yaml", self.validate_card, methods=["POST"]),
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route(repository, self.describe),
                Route(repository + "/revision/{revision:path}", self.describe),
                Route(repository + "/tree/{revision}", self.tree),
                Route(repository + "/tree/{revision}/{path:path}", self.tree),
                Route(repository + "/paths-info/{revision}", self.paths, methods=["POST"]),
                Route(repository + "/preupload/{revision}", self.preupload, methods=["POST"]),
                Route(repository + "/commit/{revision}", self.commit, methods=["POST"]),
                *[
                    Route(f"{prefix}/{{owner}}/{{name}}.git/info/lfs/objects/batch", self.large_batch, methods=["POST"])
                    for prefix in ("/datasets", "")
                ],
                Route("/lfs/{oid}", self.large_upload, methods=["PUT"]),
                *[
                    Route(f"{prefix}/{{owner}}/{{name}}/resolve/{{revision}}/{{path:path}}", self.content)
                    for prefix in ("/datasets", "")
                ],
            ],
            exception_handlers={_Refusal: self.refuse, 404: self.not_found},
        )

    def start(self) -> int:
        """Start the server in a thread of this process and return its port."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", lifespan="off"))
        threading.Thread(target=self.server.run, args=([listener],), name="hub", daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def stop(self) -> None:
        if self.server:
            self.server.should_exit = True

    async def refuse(self, request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, _Refusal)
        return refusal.answer

    async def not_found(self, request: Request, error: Exception) -> Response:
        return _Refusal(404, "RepoNotFound", "Repository not found").answer

    async def whoami(self, request: Request) -> Response:
        self._require_token(request)
        return JSONResponse(
            {
                "type": "user",
                "name": OWNER,
                "fullname": OWNER,
                "orgs": [],
                "auth": {"accessToken": {"displayName": "tests", "role": "write"}},
            }
        )

    async def validate_card(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def create(self, request: Request) -> Response:
        self._require_token(request)
        wanted = await request.json()
        kind, name = f"{wanted.get('type') or 'model'}s", f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        url = _page(request, kind, name)
        if (kind, name) in self.repositories:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        self.repositories[kind, name] = Repository(private=wanted.get("visibility") == "private")
        return JSONResponse({"url": url, "name": name})

    async def describe(self, request: Request) -> Response:
        repository = self._repository(request)
        commit = repository.at(request.path_params.get("revision", "main"))
        name = "{owner}/{name}".format(**request.path_params)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        known = {
            "id": name,
            "author": request.path_params["owner"],
            "private": repository.private,
            "gated": False,
            "disabled": False,
        }
        return JSONResponse(
            {
                **known,
                "sha": commit.oid,
                "lastModified": commit.date,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    async def tree(self, request: Request) -> Response:
        commit = self._commit(request)
        prefix = request.path_params.get("path", "").rstrip("/")
        entries = commit.folder(
            prefix + "/" if prefix else "", recursive=request.query_params.get("recursive", "").lower() == "true"
        )
        if prefix and not entries:
            raise _Refusal(404, "EntryNotFound", f"{prefix} does not exist")
        return JSONResponse(entries)

    async def paths(self, request: Request) -> Response:
        commit = self._commit(request)
        wanted = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([entry for entry in commit.folder("", recursive=True) if entry["path"] in wanted])

    async def preupload(self, request: Request) -> Response:
        self._require_token(request)
        files = self._commit(request).files
        answers = []
        for file in (await request.json())["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 else "regular"
            answers.append(
                {
                    "path": path,
                    "uploadMode": mode,
                    "shouldIgnore": False,
                    "oid": files[path].etag if path in files else None,
                }
            )
        return JSONResponse({"files": answers})

    async def large_batch(self, request: Request) -> Response:
        self._require_token(request)
        objects = []
        for wanted in (await request.json())["objects"]:
            actions = (
                {}
                if wanted["oid"] in self.large
                else {"actions": {"upload": {"href": f"{request.base_url}lfs/{wanted['oid']}"}}}
            )
            objects.append({**wanted, **actions})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def large_upload(self, request: Request) -> Response:
        content = await request.body()
        oid = request.path_params["oid"]
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refusal(400, "BadDigest", f"the content does not have the digest {oid}")
        self.large[oid] = content
        return Response()

    async def commit(self, request: Request) -> Response:
        self._require_token(request)
        repository = self._repository(request)
        last = repository.at(request.path_params["revision"])
        files, title = dict(last.files), ""
        for line in (await request.body()).splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", last.oid) != last.oid:
                    raise _Refusal(
                        412, "PreconditionFailed", "A commit has happened since. Please refresh and try again."
                    )
            elif item["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif item["key"] == "lfsFile":
                files[value["path"]] = File(self.large[value["oid"]], is_lfs=True)
            else:
                removed = value["path"].rstrip("/")
                files = {
                    path: file for path, file in files.items() if path != removed and not path.startswith(removed + "/")
                }
        repository.commits.append(Commit(title, files))
        oid = repository.at("main").oid
        page = _page(request, request.path_params["kind"], "{owner}/{name}".format(**request.path_params))
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "hookOutput": ""})

    async def content(self, request: Request) -> Response:
        commit = self._commit(request)
        path = request.path_params["path"]
        if path not in commit.files:
            raise _Refusal(404, "EntryNotFound", f"{path} does not exist")
        file = commit.files[path]
        headers = {
            "ETag": f'"{file.etag}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(file.content)),
        }
        if "Range" not in request.headers:
            return Response(file.content, 200, headers)
        first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
        end = min(int(last or len(file.content) - 1), len(file.content) - 1)
        part = file.content[int(first) : end + 1]
        place = f"bytes {first}-{end}/{len(file.content)}"
        return Response(part, 206, {**headers, "Content-Range": place, "Content-Length": str(len(part))})

    def _require_token(self, request: Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {HUB_TOKEN}":
            raise _Refusal(401, "", "Invalid username or password.")

    def _repository(self, request: Request) -> Repository:
        """Return the repository of a URL; a private repository is visible to its owner only."""
        kind = request.path_params.get("kind") or (
            "datasets" if request.url.path.startswith("/datasets/") else "models"
        )
        repository = self.repositories.get((kind, "{owner}/{name}".format(**request.path_params)))
        if repository and repository.private:
            self._require_token(request)
        if not repository:
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, request: Request) -> Commit:
        return self._repository(request).at(request.path_params["revision"])


def _page(request: Request, kind: str, name: str) -> str:
    """Return the address of a repository's page."""
    return f"{request.base_url}{'datasets/' if kind == 'datasets' else ''}{name}"

"""A stand-in for the hub on this machine: what huggingface_hub asks of it, over a real connection, from memory."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
from huggingface_hub import constants

from fusionlib.zoo.hub import retrying

_API = re.compile(r"/api/(models|datasets)/(?P<id>[^/]+(/[^/]+)?)/(?P<what>revision|tree)/(?P<revision>[^/]+)(/.*)?")
_FILE = re.compile(r"/(?P<data>datasets/)?(?P<id>[^/]+(/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
LARGE = (".safetensors", ".bin", ".parquet", ".tar")  # which the hub keeps by their SHA-256


@dataclass
class Fault:
    """What goes wrong: "503", "cut" (half of the body comes) or "corrupt", the first ``times`` that a path matches."""

    path: str
    kind: str
    times: int = 1


@dataclass
class Hub:
    """Repositories by (kind, id), the requests that came, and the faults still to be made."""

    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    faults: list[Fault] = field(default_factory=list)
    url: str = ""

    def commit(self, kind: str, name: str) -> str:
        """Depends on the content, as a commit does."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repos[kind, name].items()):
            digest.update(path.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def fault(self, path: str) -> str | None:
        for fault in self.faults:
            if fault.times and re.search(fault.path, path):
                fault.times -= 1
                return fault.kind
        return None


def etag(path: str, content: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port of the loopback device until the block ends."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connected(hub: Hub, folder: Path) -> Iterator[Hub]:
    """The hub's client talks to the stand-in, without waiting, and all that is kept is kept below ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSIONLIB_HOME", str(folder / "home"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(retrying, "PAUSES", (0.0, 0.0))
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        wrong = self.hub.fault(path) if body else None
        if wrong == "503":
            return self._send(503, b"busy")
        if match := _API.fullmatch(path):
            return self._api(match)
        if match := _FILE.fullmatch(path):
            return self._file(match, body, wrong)
        return self._refuse("EntryNotFound")

    def _api(self, match: re.Match[str]) -> None:
        kind, name = match[1].removesuffix("s"), match["id"]
        if (kind, name) not in self.hub.repos:
            return self._refuse("RepoNotFound")
        commit = self.hub.commit(kind, name)
        if match["revision"] not in ("main", commit):
            return self._refuse("RevisionNotFound")
        files = []
        for path, content in sorted(self.hub.repos[kind, name].items()):
            large = {
                "oid": etag(path, content),
                "sha256": etag(path, content),
                "size": len(content),
                "pointerSize": 130,
            }
            files.append(
                {"type": "file", "oid": etag(path, content)[:40], "size": len(content), "path": path, "rfilename": path}
                | ({"lfs": large} if path.endswith(LARGE) else {})
            )
        if match["what"] == "tree":
            return self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        info = {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": [], "private": False}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, match: re.Match[str], body: bool, wrong: str | None) -> None:
        kind, name, path = "dataset" if match["data"] else "model", match["id"], match["path"]
        if (kind, name) not in self.hub.repos:
            return self._refuse("RepoNotFound")
        commit = self.hub.commit(kind, name)
        if match["revision"] not in ("main", commit):
            return self._refuse("RevisionNotFound")
        content = self.hub.repos[kind, name].get(path)
        if content is None:
            return self._refuse("EntryNotFound")
        tag = f'"{etag(path, content)}"'
        headers = {"X-Repo-Commit": commit, "ETag": tag, "X-Linked-ETag": tag, "X-Linked-Size": str(len(content))}
        headers |= {"Accept-Ranges": "bytes"}
        if not body:
            return self._send(200, content, headers, body=False)
        status, first = 200, 0
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, first = 206, int(span[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        sent = content[first:]
        if wrong == "corrupt":
            sent = bytes(byte ^ 1 for byte in sent)
        return self._send(status, sent, headers, cut=wrong == "cut")

    def _refuse(self, code: str) -> None:
        self._send(404, b"not found", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        body: bool = True,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        if cut:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if cut else content)

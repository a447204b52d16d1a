"""A tiny Hugging Face hub: repositories in memory, the few addresses that uploading and fetching ask for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """``repositories``: files by name of each repository; ``asked``: every request line."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on this machine while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def tell(self, tree: object, status: int = 200) -> None:
            self.answer(status, json.dumps(tree).encode(), {"Content-Type": "application/json"})

        def missing(self) -> None:
            self.answer(
                404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and len(parts) >= 4:
                files = hub.repositories.get("/".join(parts[2:4]))
                if files is None:
                    return self.missing()
                if "tree" in parts:
                    return self.tell([entry(name, data) for name, data in files.items()])
                return self.tell({
                    "id": "/".join(parts[2:4]), "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": name} for name in files],
                })  # fmt: skip
            if len(parts) >= 5 and parts[2] == "resolve":
                files = hub.repositories.get("/".join(parts[:2]), {})
                data = files.get("/".join(parts[4:]))
                if data is None:
                    return self.missing()
                return self.answer(200, data, {"ETag": f'"{oid(data)}"', "X-Repo-Commit": COMMIT})
            return self.missing()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                known = name in hub.repositories
                hub.repositories.setdefault(name, {})
                return self.tell({"url": f"{hub.address}/{name}", "name": name}, 409 if known else 200)
            if self.path == "/api/validate-yaml":
                return self.tell({"errors": [], "warnings": []})
            name = "/".join(self.path.split("/")[3:5])
            if name not in hub.repositories:
                return self.missing()
            if "/preupload/" in self.path:
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                return self.tell({"files": files})
            if "/commit/" in self.path:
                for line in body.splitlines():
                    said = json.loads(line)
                    if said["key"] == "file":
                        data = base64.b64decode(said["value"]["content"])
                        hub.repositories[name][said["value"]["path"]] = data
                url = f"{hub.address}/{name}/commit/{COMMIT}"
                return self.tell({"success": True, "commitOid": COMMIT, "commitUrl": url})
            return self.missing()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def oid(data: bytes) -> str:
    """A file's name in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(name: str, data: bytes) -> dict[str, object]:
    """A file in a listing."""
    return {"type": "file", "oid": oid(data), "size": len(data), "path": name}

"""A hub on this machine that speaks as much of the real one's protocol as its client asks for, and fails as told.

A repository's name says how it behaves: `gated`, `private`, `silent`, `busy`, `html`, `cut`; those that are given a
folder are served from it; any other is not there.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"gated": (403, "GatedRepo"), "private": (401, None), "busy": (503, None)}


class FakeHub(ThreadingHTTPServer):
    """Serves folders by their id; `asked` lists requests for them, such as "HEAD /a/b/resolve/main/config.json"."""

    daemon_threads = True

    def __init__(self, folders: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folders, self.asked = folders, []
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts[1:] if parts[0] == "datasets" else parts
        if parts[:1] == ["some"]:
            self.server.asked.append(f"{self.command} {self.path}")
        name, rest = "/".join(parts[:2]), parts[2:]
        kind = parts[1] if len(parts) > 1 else ""
        if kind == "silent":
            self.server.closing.wait(60)
        elif kind in REFUSALS:
            self._end(*REFUSALS[kind])
        elif kind == "html":
            self._end(200, content=b"<html>welcome</html>")
        elif name not in self.server.folders:
            self._end(404, "RepoNotFound")
        elif is_api:
            self._describe(name, rest)
        else:
            self._file(self.server.folders[name], rest, is_cut=kind == "cut" and rest[-1].endswith(".safetensors"))

    do_GET = do_HEAD

    def _describe(self, name: str, rest: list[str]) -> None:
        """The commit that a revision is, or with `tree` its files; the tree has no folders."""
        if rest[0] == "tree" and len(rest) > 2:
            self._end(404, "EntryNotFound")
            return
        paths = sorted(path for path in self.server.folders[name].iterdir() if path.is_file())
        tree = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT} for path in paths]
        self._end(200, content=json.dumps(tree if rest[0] == "tree" else {"id": name, "sha": COMMIT}).encode())

    def _file(self, folder: Path, rest: list[str], is_cut: bool) -> None:
        if rest[1] not in ("main", COMMIT):
            self._end(404, "RevisionNotFound")
            return
        path = folder / rest[-1]
        if not path.is_file():
            self._end(404, "EntryNotFound")
            return
        content = path.read_bytes()
        self.send_response(200)
        self._headers({"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Content-Length": str(len(content))})
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)

    def _end(self, status: int, error: str | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        own = {"X-Error-Code": error} if error else {}
        self._headers(own | {"Content-Length": str(len(content))}, is_hub=not content)
        if self.command == "GET":
            self.wfile.write(content)

    def _headers(self, headers: dict[str, str], is_hub: bool = True) -> None:
        for name, value in (headers | ({"X-Repo-Commit": COMMIT} if is_hub else {})).items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def fake_hub(**folders: Path):
    """A hub that serves folders under ids of this organisation: `tiny=folder` is `some/tiny`."""
    hub = FakeHub({f"some/{name}": folder for name, folder in folders.items()})
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        hub.server_close()

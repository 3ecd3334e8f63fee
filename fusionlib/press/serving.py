"""Showing the built site on this machine, and nothing else."""

from __future__ import annotations

import functools
import http.server
import webbrowser
from http import HTTPStatus
from pathlib import Path
from typing import Any

# a page of another site may not read the book by a name of its own for this machine
_NAMES = ("127.0.0.1", "localhost", "[::1]")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line per request would bury the address."""

    def send_head(self) -> Any:
        """As it is, but for requests that no browser makes that shows the book."""
        host = self.headers.get("Host", _NAMES[0])
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "this server is for the machine it runs on")
        elif not self._lies_inside():
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            return super().send_head()
        return None

    def list_directory(self, path: Any) -> None:
        """A folder without a page of its own shows nothing."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def _lies_inside(self) -> bool:
        """Whether the path, with links followed, leads into the site."""
        try:
            found = Path(self.translate_path(self.path)).resolve()
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, a circle of links
            return False
        return found.is_relative_to(Path(self.directory).resolve())


def make_server(site: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of the site on the loopback address; port 0 takes a free one."""
    handler = functools.partial(_Quiet, directory=str(site))
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def serve(site: Path) -> None:
    """Serves the site and opens it in a browser, until interrupted."""
    with make_server(site) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/index.html"
        print(f"Serving the book on {address} (Ctrl-C to stop)", flush=True)
        webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Stopped.")

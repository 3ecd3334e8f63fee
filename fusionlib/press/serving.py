"""Showing the built site on this machine."""

from __future__ import annotations

import functools
import http.server
import webbrowser
from pathlib import Path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line per request would bury the address."""


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

"""A server of files on this machine, for tests of what is fetched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served:
    """What a server has and was asked for.

    Args:
        address: of the server, with a slash at its end.
        files: content by path without the first slash; may change.
        asked: the paths of the files that were asked for, in order.
    """

    def __init__(self, address: str, files: dict[str, bytes]) -> None:
        self.address, self.files, self.asked = address, files, list[str]()


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Served]:
    """Serve files over HTTP until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            served.asked.append(name)
            content = served.files.get(name)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *given: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/", files)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

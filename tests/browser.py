"""A page in a real headless Chromium, through the DevTools protocol over a pipe; only the standard library.

It answers what a test of a page must know: what the page asked of the network, what went to the console,
whether it can be read without scrolling sideways, and what it looks like.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)


@dataclass
class Visit:
    """What was seen of a page: URLs asked for, console errors, the width of page and window, a screenshot."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    page_width: int = 0
    window_width: int = 0
    png: bytes = b""
    answer: Any = None

    @property
    def outside(self) -> list[str]:
        """The requests that left the page: neither the file itself nor data inside it."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A running Chromium. Use it as ``with open_browser() as browser``."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._buffer, self._id = send, receive, b"", 0
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable", self._session)

    def visit(self, file: Path, width: int, *, height: int = 900, dark: bool = False, full: bool = True,
              script: str = "null") -> Visit:  # fmt: skip
        """Open ``file`` in a window of ``width`` pixels.

        Args:
            dark: prefer the dark colours.
            full: photograph the whole page, not only its first screen.
            script: JavaScript evaluated afterwards, by the test and not by the page; its value is ``answer``.
        """
        session, seen = self._session, Visit()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", session, features=scheme)
        self._call("Emulation.setDeviceMetricsOverride", session, width=width, height=height,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip
        self._events.clear()
        self._call("Page.navigate", session, url=file.resolve().as_uri())
        self._wait("Page.loadEventFired")
        time.sleep(0.1)  # whatever the page would still ask for after it is loaded
        size = "[document.documentElement.scrollWidth, innerWidth, document.documentElement.scrollHeight]"
        seen.page_width, seen.window_width, tall = self._evaluate(size)
        seen.answer = self._evaluate(script)
        clip = {"x": 0, "y": 0, "width": width, "height": tall if full else height, "scale": 1}
        shot = self._call("Page.captureScreenshot", session, captureBeyondViewport=full, clip=clip)
        seen.png = base64.b64decode(shot["data"])
        for event in self._events:
            self._note(event["method"], event["params"], seen)
        return seen

    def _note(self, method: str, params: dict[str, Any], seen: Visit) -> None:
        if method == "Network.requestWillBeSent":
            seen.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            seen.requests.append(params["url"])
        elif method == "Runtime.exceptionThrown":
            seen.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            seen.errors.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            seen.errors.append(params["entry"]["text"])

    def _evaluate(self, script: str) -> Any:
        answer = self._call("Runtime.evaluate", self._session, expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._id += 1
        message = {"id": self._id, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self._events.append(answer)

    def _wait(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            if "method" in (answer := self._read()):
                self._events.append(answer)

    def _read(self, seconds: float = 30.0) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], seconds)[0]:
                raise TimeoutError("Chromium does not answer")
            chunk = os.read(self._receive, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)


def _high(descriptor: int) -> int:
    """The same pipe under a number that does not clash with Chromium's 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended on leaving."""
    chromium = find_chromium()
    assert chromium is not None
    to_read, send = map(_high, os.pipe())
    receive, to_write = map(_high, os.pipe())
    # Chromium reads its commands from descriptor 3 and answers on 4; the shell puts them there.
    command = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", command, "browser", chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        try:
            yield Browser(send, receive)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(send)
            os.close(receive)

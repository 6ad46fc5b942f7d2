"""A headless Chromium, steered over its DevTools pipe, to look at pages as a reader does."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What reaches beyond the window, what has to be scrolled sideways, and text that is cut off.
OVERFLOWING = """
[...document.querySelectorAll('main *')].filter(e => {
  if (e.closest('.unseen') || !e.clientWidth && getComputedStyle(e).display !== 'inline')
    return false;
  const box = e.getBoundingClientRect();
  const text = e.matches('.scroll, pre, p, li, h1, h2, h3, th, td, dd, dt, summary, .name, .told');
  return box.left < 0 || box.right > innerWidth || text && e.scrollWidth > e.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 100))
"""


def executable() -> str | None:
    """The browser of this machine; None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab."""

    def __init__(self, writing: int, reading: int):
        self._to = os.fdopen(writing, "wb")
        self._from = os.fdopen(reading, "rb")
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict:
        """The answer to a command of the DevTools protocol."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self) -> dict:
        found = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser has gone"
            found += byte
        return json.loads(found)

    def open(self, path: Path, width: int, theme: str = "light") -> None:
        """Shows a file at a width, in a theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass
        self.run("document.querySelectorAll('img').forEach(e => e.loading = 'eager')")
        self.run("Promise.all([...document.images].map(e => e.decode()))")

    def run(self, script: str) -> Any:
        """The value of an expression on the page, of a promise what it comes to."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key that is pressed and let go."""
        code = {"Tab": 9, "Enter": 13}[key]
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more
            )

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shown = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shown["data"]))


@contextlib.contextmanager
def opened(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; it is gone afterwards."""
    ends = [os.pipe(), os.pipe()]  # To the browser, and from it.
    # The browser reads from 3 and writes to 4; none of these may be in the way.
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ends[0][0], ends[1][1])]

    to, back = theirs
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" 3<&{to} 4>&{back} {to}<&- {back}>&-', program,
         "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
         "--hide-scrollbars", "--no-first-run", f"--user-data-dir={profile}"],
        pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (*theirs, ends[0][0], ends[1][1]):
        os.close(end)
    browser = Browser(ends[0][1], ends[1][0])
    try:
        yield browser
        browser.call("Browser.close")
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        for file in (browser._to, browser._from):
            with contextlib.suppress(OSError):
                file.close()

"""A real Chromium without a window, driven over its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp

from support.cluster import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_PORT_FILE = "DevToolsActivePort"
_STARTING_SECONDS = 60.0
_ANSWER_SECONDS = 30.0


class PageLeftError(Exception):
    """The page has just gone elsewhere."""


class Browser:
    """One page of a browser. Every method waits for what it says."""

    def __init__(self, loop, socket):
        self._loop, self._socket, self._number = loop, socket, 0

    def _call(self, method, **parameters):
        return self._loop.run_until_complete(self._send(method, parameters))

    async def _send(self, method, parameters):
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            try:
                answer = await self._socket.receive_json(timeout=_ANSWER_SECONDS)
            except asyncio.TimeoutError:  # what is asked while a page is being left may have no answer
                raise PageLeftError from None
            if answer.get("id") == self._number:
                if "navigated" in str(answer.get("error")):
                    raise PageLeftError
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        self._call("Page.navigate", url=url)

    def run(self, script):
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _tried(self, script):
        with contextlib.suppress(PageLeftError):
            return self.run(script)
        return None

    def text(self):
        return self._tried("document.body ? document.body.innerText : ''") or ""

    def wait_for(self, *words):
        """Wait until the page shows all of some words; returns what it shows."""
        deadline = time.monotonic() + PATIENCE
        while True:
            text = self.text()
            if all(word in text for word in words):
                return text
            assert time.monotonic() < deadline, f"no {words} in:\n{text}"
            time.sleep(0.2)

    def click(self, words):
        """Click on the innermost element with just these words, as soon as there is one."""
        script = f"""(() => {{ const found = [...document.querySelectorAll("*")]
            .filter((e) => e.innerText && e.innerText.trim() === {json.dumps(words)}).pop();
            if (found) found.click(); return !!found; }})()"""
        deadline = time.monotonic() + PATIENCE
        while not self._tried(script):
            assert time.monotonic() < deadline, f"no {words!r} to click on in:\n{self.text()}"
            time.sleep(0.2)

    def type(self, text):
        """Type into the field that has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, path, width=1280, height=800):
        """Write what is seen as a PNG."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(1)
        Path(path).write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser(folder):
    """A browser with a profile of its own below a folder."""
    profile = Path(folder) / "profile"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    session = None
    try:
        port = _port(profile / _PORT_FILE, process)
        session = loop.run_until_complete(_session())
        yield Browser(loop, loop.run_until_complete(_socket(session, port)))
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        loop.close()
        process.kill()
        process.wait(30)


def _port(file, process):
    deadline = time.monotonic() + _STARTING_SECONDS
    while not (file.exists() and file.read_text().strip()):
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return int(file.read_text().splitlines()[0])


async def _session():
    return aiohttp.ClientSession()


async def _socket(session, port):
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        pages = [page for page in await answer.json() if page["type"] == "page"]
    return await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

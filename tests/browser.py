"""What a page holds in a real browser: Debian's `chromium`, asked through its DevTools protocol."""

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
]  # fmt: skip
_PATIENCE = 240  # seconds: WebAssembly is compiled first, on a machine that does other things too
_PAUSE = 0.1

needs_browser = pytest.mark.skipif(_BROWSER is None, reason="chromium is not installed")


def value_when_there(address: str, expression: str, folder: Path) -> Any:
    """What the JavaScript `expression` is in the page at `address` once it is not null.

    Chromium's own way to print a page when it has settled does not wait for WebAssembly.
    """
    assert _BROWSER is not None
    profile, log = folder / "profile", folder / "browser.log"
    end = time.monotonic() + _PATIENCE

    def wait(found):
        while not (value := found()):
            assert browser.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < end, f"{expression} is null in {address}"
            time.sleep(_PAUSE)
        return value

    with open(log, "wb") as out:
        command = [_BROWSER, *_FLAGS, f"--user-data-dir={profile}", address]
        browser = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        port = profile / "DevToolsActivePort"
        wait(lambda: port.exists() and port.read_text().count("\n"))
        pages = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
        target = wait(lambda: next((t for t in _json(pages) if t["type"] == "page"), None))
        with connect(target["webSocketDebuggerUrl"], max_size=None) as page:
            return wait(lambda: _value(page, f"({expression}) ?? null"))
    finally:
        browser.terminate()
        browser.wait()


def _json(address):
    with urllib.request.urlopen(address, timeout=_PATIENCE) as answer:
        return json.load(answer)


def _value(page, expression):
    request = {"expression": expression, "returnByValue": True}
    page.send(json.dumps({"id": 1, "method": "Runtime.evaluate", "params": request}))
    answer = json.loads(page.recv(timeout=_PATIENCE))["result"]
    assert "exceptionDetails" not in answer, answer
    return answer["result"]["value"]

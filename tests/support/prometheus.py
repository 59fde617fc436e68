"""A real Prometheus that scrapes a Ray cluster by the discovery file that Ray keeps."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from support.cluster import PATIENCE

PROMETHEUS = shutil.which("prometheus") or shutil.which("prometheus", path=str(Path(sys.executable).parent))
_CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: ray, file_sd_configs: [{{files: ["{discovery}"], refresh_interval: 1s}}]}}]
"""


class Prometheus:
    """What a server has scraped."""

    def __init__(self, url):
        self.url = url

    def _get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        """The samples that an expression has now: labels and value of each."""
        return [(one["metric"], float(one["value"][1])) for one in self._get("query", query=expression)["result"]]

    def names(self):
        return self._get("label/__name__/values")

    def series(self, match):
        return self._get("series", **{"match[]": match})


@contextlib.contextmanager
def prometheus(folder, discovery, port):
    """A server that scrapes every second, with its data below a folder."""
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.format(discovery=discovery))
    url = f"http://127.0.0.1:{port}"
    command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(f"{url}/-/ready", process)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(60)


def _wait(url, process):
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(url, timeout=5).close()
        assert process.poll() is None, f"Prometheus ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)

"""A small Hugging Face hub on this machine: it takes the requests of an upload and keeps what was sent."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """What came in: requests, files by name, and who asked."""

    def __init__(self):
        self.requests, self.files, self.objects, self.tokens, self.created = [], {}, {}, set(), {}


@contextlib.contextmanager
def running_hub():
    """Serve a hub; gives its address and what it keeps."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _answer(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self):
            hub.requests.append((self.command, self.path))
            if "/objects/" not in self.path or self.command == "POST":
                hub.tokens.add(self.headers.get("Authorization"))
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self):
            body = self._body()
            here = f"http://127.0.0.1:{self.server.server_port}"
            if self.headers.get("Authorization") != "Bearer hf_good":
                return self._answer({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                hub.created = json.loads(body)
                return self._answer({"url": f"{here}/me/{hub.created['name']}", "name": f"me/{hub.created['name']}"})
            if self.path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in asked
                ]
                return self._answer({"files": modes})
            if self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{here}/objects/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                return self._answer({"transfer": "basic", "objects": objects})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.objects[value["oid"]]
                return self._answer({"commitUrl": f"{here}/me/pirate/commit/abc", "commitOid": "abc", "success": True})
            return self._answer({}, 404)

        def do_PUT(self):
            hub.objects[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

        def do_GET(self):
            self._body()
            self._answer({}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

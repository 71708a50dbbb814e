"""A proxy that counts what is asked of a server, and breaks some of it: for a server whose failures cannot be
ordered."""

import contextlib
import http.client
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FaultyProxy:
    """Stands before ``base_url`` at its own ``base_url``. ``script`` says what becomes of the first requests: a status
    code, ``"not json"``, ``"hang"`` (answered after ``hang`` seconds), ``"cut"`` (the connection ends in the middle of
    the reply), or ``"good"``; later ones are passed on."""

    def __init__(self, base_url, script=(), hang=1.0):
        self.target, self.script, self.hang = urlsplit(base_url), list(script), hang
        self.asked, self.passed_on, self.done = 0, 0, Counter()
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    outer.asked += 1
                    step = outer.script.pop(0) if outer.script else "good"
                    outer.done[step] += 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that has given up
                    self.answer(step, body)

            def answer(self, step, body):
                if isinstance(step, int):
                    return self.send(step, b'{"error": {"message": "injected"}}')
                if step == "not json":
                    return self.send(200, b"<html>gateway</html>")
                if step == "hang":
                    time.sleep(outer.hang)
                with lock:
                    outer.passed_on += 1
                to = http.client.HTTPConnection(outer.target.hostname, outer.target.port, timeout=60)
                to.request("POST", self.path, body, {"content-type": "application/json"})
                reply = to.getresponse()
                payload = reply.read()
                to.close()
                self.send(reply.status, payload[: len(payload) // 2] if step == "cut" else payload, len(payload))

            def send(self, status, payload, length=None):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(length or len(payload)))
                self.end_headers()
                self.wfile.write(payload)
                if length not in (None, len(payload)):
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self.http.server_address[1]}{self.target.path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

"""A chat server on this machine that answers by rule and misbehaves on request."""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """A chat server that answers by rule: HIGH where the answer holds the word of a statement. ``script`` injects
    failures; ``logprobs(content)`` gives the tokens of a reply with their alternatives, as an endpoint that knows them
    does. ``refuse(body)`` gives (status, error object) for a request that the server would not take, else None.
    ``answer(body)`` gives the content, or a choice as a dictionary, laid over a good one."""

    def __init__(self, script=(), delay=0.0, answer=None, logprobs=None, refuse=lambda body: None):
        self.logprobs, self.refuse = logprobs, refuse
        self.script, self.delay, self.answer = list(script), delay, answer or self.rate
        self.bodies, self.headers, self.sent, self.active, self.peak = [], [], Counter(), 0, 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    step = outer.script.pop(0) if outer.script else "good"
                    outer.sent[step] += 1
                    outer.active += 1
                    outer.peak = max(outer.peak, outer.active)
                try:
                    outer.reply(self, body, step)
                finally:
                    with lock:
                        outer.active -= 1

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    @staticmethod
    def statements(body):
        text = body["messages"][1]["content"]
        lines = text.rpartition("<statements>")[2].split("</statements>")[0].strip().splitlines()
        return [line.split(". The answer ", 1)[1] for line in lines]

    @staticmethod
    def part(body, name="answer"):
        """A part of the material, between the marks around it."""
        return re.search(rf"<{name} (\w+)>\n(.*)\n</{name} \1>", body["messages"][1]["content"], re.DOTALL)[2]

    @classmethod
    def rate(cls, body):
        answer = cls.part(body)
        rated = {str(i + 1): "HIGH" if s in answer else "LOW" for i, s in enumerate(cls.statements(body))}
        return json.dumps(rated)

    def _logprobs(self, body, content):
        if self.logprobs is None or not body.get("logprobs"):
            return None
        tokens = [
            {"token": t, "logprob": a[t], "top_logprobs": [{"token": k, "logprob": v} for k, v in a.items()]}
            for t, a in self.logprobs(content)
        ]
        return {"content": tokens}

    def reply(self, handler, body, step):
        time.sleep(self.delay)
        status, headers, content = 200, {}, self.answer(body)
        error = {"message": f"{step}; key {handler.headers.get('authorization')} refused"}
        if refused := self.refuse(body):
            status, error = refused
        elif step == 429:
            status, headers, content = 429, {"retry-after": "0"}, ""
        elif isinstance(step, int):
            status, content = step, ""
        elif step == "hang":
            time.sleep(1.0)
        elif step == "garbage":
            content = "I would say it is rather high."
        elif step == "no logprobs" and body.get("logprobs"):
            status, content = 400, ""
        choice = content if isinstance(content, dict) else {"message": {"role": "assistant", "content": content}}
        payload = json.dumps({"error": error})
        if status == 200 and step == "not json":
            payload = "<html>proxy</html>"
        elif status == 200:
            payload = json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "logprobs": self._logprobs(body, content),
                            **choice,
                        }
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
            )
        try:
            handler.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(payload)),
                **headers,
            }.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(payload.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up on a slow answer

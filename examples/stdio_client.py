"""Talk with a model in a process of its own, over pipes: no port, and nothing but Python's standard library.

    python examples/stdio_client.py MODEL "Why is the sky blue?" "And at night?"

All questions are asked at once. docs/stdio.md describes the lines.
"""

import json
import queue
import subprocess
import sys
import threading


class Client:
    """`edgellm serve --stdio` with these arguments. hello: its first line."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "edgellm", "serve", "--stdio", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.hello = json.loads(self.process.stdout.readline() or "{}")
        self.events = {}  # of each request, by its id
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:  # it must be read always: answers wait for that
            event = json.loads(line)
            self.events[event["id"]].put(event)
        for waiting in self.events.values():
            waiting.put({"event": "error", "message": "edgellm has ended"})

    def send(self, id, method, **params):
        """Ask for something. `answer(id)` has what comes of it; send(id, "cancel") ends it."""
        if method != "cancel":
            self.events[id] = queue.SimpleQueue()
        self.process.stdin.write(json.dumps({"id": id, "method": method, "params": params}) + "\n")
        self.process.stdin.flush()

    def answer(self, id):
        """The events of a request as they come, up to its last one. Raises RuntimeError."""
        kind = ""
        while kind not in ("done", "result"):
            event = self.events[id].get()
            kind = event["event"]
            if kind == "error":
                raise RuntimeError(event["message"])
            yield event

    def close(self):
        """End it; returns its exit code."""
        self.process.stdin.close()
        self.reader.join()
        self.process.stdout.close()
        return self.process.wait()


def main(model, *questions):
    client = Client(model)
    for question in questions:
        client.send(question, "chat", messages=[{"role": "user", "content": question}])
    for question in questions:
        print(f"> {question}")
        for event in client.answer(question):
            print(event.get("text", "") if event["event"] == "chunk" else "", end="", flush=True)
        print(f"\n[{event['usage']['completion_tokens']} tokens, {event['finish_reason']}]\n")
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

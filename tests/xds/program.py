"""`remora run`: programs with sidecars that the control plane configures."""

import collections
import os
import time
import urllib.request

from world import free_port, wait_for, world


def documents(port):
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec: {{ports: [{{name: http, port: {port}, targetPort: http}}]}}
"""


def ask(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return answer.read().decode()


def programs():
    """Two instances and a caller, each under `remora run`: one instance leaves in order, one is killed."""
    with world(issued=True) as w:
        def run(name, *arguments):
            where = ("--name", name, "--control", w.tls, "--server", w.rest)
            return w.start(name, os.environ["REMORA"], "run", *where, *arguments, "--", "sleep", "600")

        local = free_port()
        w.apply(documents(8080))
        one = run("one", "--service", "shop", "--port", w.application("one"))
        two = run("two", "--service", "shop", "--port", w.application("two"))
        run("caller", "--egress", f"shop={local}")
        try:
            wait_for("both instances", lambda: {ask(local) for _ in range(20)} == {"one", "two"})

            began = time.monotonic()
            w.end(one)
            left = time.monotonic() - began
            answers = collections.Counter(ask(local) for _ in range(100))
            assert answers == {"two": 100}, answers

            one = run("one", "--service", "shop", "--port", w.application("one"))
            wait_for("the instance again", lambda: {ask(local) for _ in range(20)} == {"one", "two"})
            w.kill(two)
            began = time.monotonic()
            wait_for("the other alone", lambda: {ask(local) for _ in range(20)} == {"one"}, 10)
            killed = time.monotonic() - began
            assert killed < 3, f"a killed instance had requests for {killed:.1f} s"
        except Exception:
            for name in ("one", "two", "caller", "control"):
                print(f"--- {name}\n{w.log(name)}")
            raise
        return (f"mTLS between two programs and their caller; one left in {left:.1f} s and no request met it; "
                f"one was killed and out of traffic after {killed:.1f} s")

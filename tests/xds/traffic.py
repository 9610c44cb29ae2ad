"""Requests that go on while something else happens, none of which may fail."""

import contextlib
import http.client
import threading
import time


def http_client(port, path="/", keep_alive=True):
    """Asks again and again, on one connection or each time on a new one. A factory of functions that give an answer's text."""
    def connect():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

        def ask():
            connection.request("GET", path() if callable(path) else path, headers={} if keep_alive else {"connection": "close"})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {text[:200]} {answer.getheader('x-remora-reason') or ''}")
            return text

        return ask, connection.close

    return connect


class Traffic:
    """One thread for each client: (name, factory, the answers that are right)."""

    def __init__(self, *clients):
        self.ending = threading.Event()
        self.counts = {name: 0 for name, _, _ in clients}
        self.failures = []
        self.threads = [threading.Thread(target=self.run, args=client, daemon=True) for client in clients]

    def run(self, name, factory, right):
        ask, close = factory()
        while not self.ending.is_set():
            began = time.time()
            try:
                answer = ask()
                if answer not in right:
                    raise RuntimeError(f"{answer!r} is none of {sorted(right)}")
            except Exception as e:  # noqa: BLE001 - whatever it is, it is a failure
                at = time.strftime("%H:%M:%S", time.gmtime(began)) + f"{began % 1:.3f}"[1:]
                self.failures.append(f"{name}, {at} + {time.time() - began:.3f} s: {type(e).__name__}: {e}")
                close()
                ask, close = factory()
            self.counts[name] += 1
        close()

    def count(self):
        return sum(self.counts.values())


@contextlib.contextmanager
def traffic(*clients):
    """Flows inside of the block. One failure, or one client that never came through, is an error."""
    flow = Traffic(*clients)
    for thread in flow.threads:
        thread.start()
    try:
        yield flow
    finally:
        flow.ending.set()
        for thread in flow.threads:
            thread.join()
    if flow.failures:
        text = "\n".join(flow.failures[:8])
        raise RuntimeError(f"{len(flow.failures)} of {flow.count()} requests failed:\n{text}")
    assert all(flow.counts.values()), f"a client never asked: {flow.counts}"

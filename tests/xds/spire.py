"""SPIRE as the issuer of `agent.py`'s proxies: a server below the root that the control plane's CA is below, too, and an agent."""

import os
import pathlib
import shutil
import subprocess

from agent import DOMAIN, root
from world import free_port, wait_for

SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{dir}/server.sock"
  trust_domain = "{domain}"
  data_dir = "{dir}/server"
  log_level = "INFO"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3", connection_string = "{dir}/server/store" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{root}.pem", key_file_path = "{root}.key" }} }}
}}
"""

AGENT = """
agent {{
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{dir}/agent.sock"
  trust_domain = "{domain}"
  trust_bundle_path = "{dir}/bundle.pem"
  data_dir = "{dir}/agent"
  log_level = "INFO"
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{dir}/agent" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
"""


class Spire:
    """A server and an agent, out of the directory that the variable SPIRE names."""

    # Seconds; the agent asks for another certificate at about half of it.
    life = 20

    @staticmethod
    def place(w, name):
        """The agent knows a proxy by its path, so each has one of its own."""
        program = w.dir / f"{name}-proxy"
        if not program.exists():
            shutil.copy2(os.environ["REMORA"], program)
        return program, w.dir / "agent.sock"

    def __init__(self, w):
        self.w, self.root, programs = w, root(w), pathlib.Path(os.environ["SPIRE"])
        self.server, self.agent = programs / "spire-server", programs / "spire-agent"
        values = {"dir": w.dir, "port": free_port(), "domain": DOMAIN, "root": self.root}
        for name, text in ("server", SERVER), ("agent", AGENT):
            (w.dir / name).mkdir()
            (w.dir / f"{name}.conf").write_text(text.format(**values))
        w.start("spire-server", self.server, "run", "-config", w.dir / "server.conf")
        wait_for("SPIRE's server", self.healthy, 60)
        (w.dir / "bundle.pem").write_text(self.ask("bundle", "show"))
        self.token = self.ask("token", "generate").split("Token:")[1].split()[0]
        self.start("-joinToken", self.token)

    def start(self, *options):
        self.process = self.w.start("spire-agent", self.agent, "run", "-config", self.w.dir / "agent.conf", *options)

    def end(self):
        self.w.end(self.process)

    def healthy(self):
        try:
            return self.ask("healthcheck")
        except RuntimeError:
            return None

    def ask(self, *command):
        done = subprocess.run([self.server, *command, "-socketPath", self.w.dir / "server.sock"], capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def entry(self, name, path):
        """Whoever runs the program of `name` has the identity `path`."""
        program, _ = self.place(self.w, name)
        self.ask("entry", "create", "-parentID", f"spiffe://{DOMAIN}/spire/agent/join_token/{self.token}", "-spiffeID",
                 f"spiffe://{DOMAIN}/{path}", "-selector", f"unix:path:{program}", "-x509SVIDTTL", str(self.life))

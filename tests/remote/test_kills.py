"""Pullers that are killed: the store stays what it was, and the next pull goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lamella.store.store import Store
from tests.fakes.web import Ranged, serving
from tests.remote.test_pull import assert_same, pull

ROOT = Path(__file__).parents[2]
PULLER = """
import sys
from pathlib import Path
from lamella.remote.pull import pull_variant
from lamella.remote.remote_store import RemoteStore

with RemoteStore(sys.argv[1]) as remote:
    print("ready", flush=True)
    pull_variant(remote, "eight", Path(sys.argv[2]))
"""
SECONDS = 0.4  # that the slow server takes for all shards


class Slow(Ranged):
    def send(self, code: int, body: bytes, headers: dict[str, str], n_before_cut: int | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        for start in range(0, len(body), 4096):
            self.wfile.write(body[start : start + 4096])
            time.sleep(SECONDS / 60)


def start_puller(url: str, local: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PULLER, url, str(local)]
    puller = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert puller.stdout is not None
    assert puller.stdout.readline() == "ready\n"
    return puller


def test_a_puller_killed_at_any_moment_leaves_what_it_has(origin: Store, local: Path) -> None:
    moments = random.Random(3)
    with serving(origin.path, Slow) as site:
        for _ in range(4):
            puller = start_puller(site.url, local)
            time.sleep(moments.uniform(0.05, SECONDS))
            puller.kill()
            puller.communicate()
            if (local / "store.json").exists():
                assert Store.open(local).verify().ok
            else:
                assert not (local / "shards").exists()
    with serving(origin.path, Ranged) as site:
        report = pull(site.url, "eight", local)
    assert report.moved_bytes < origin.variant("eight").n_bytes
    Store.open(local).collect_garbage()  # a kill at the very end leaves a document or a folder half made
    assert_same(local, origin, "eight")


def test_ctrl_c_leaves_what_it_has(origin: Store, local: Path) -> None:
    with serving(origin.path, Slow) as site:
        puller = start_puller(site.url, local)
        while not list(local.glob("incoming/*.part")):
            time.sleep(0.005)
        time.sleep(0.05)
        puller.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in puller.communicate()[1]
    assert not (local / "store.json").exists()
    with serving(origin.path, Ranged) as site:
        assert pull(site.url, "eight", local).resumed_bytes > 0
    assert_same(local, origin, "eight")

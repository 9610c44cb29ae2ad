"""Runs the checks; see run.sh."""

import os
import sys
import time

from checks import CHECKS
from rig import rig


def main(wanted):
    passed = failed = 0
    with rig(os.environ["REMORA"]) as world:
        for name, function in CHECKS:
            if wanted and not any(w in name for w in wanted):
                continue
            started = time.monotonic()
            try:
                words = function(world)
                passed += 1
                print(f"ok      {name}: {words} ({time.monotonic() - started:.1f} s)", flush=True)
            except Exception as e:  # noqa: BLE001 - a check fails by raising, whatever it raises
                failed += 1
                print(f"FAILED  {name}: {type(e).__name__}: {' '.join(str(e).split())}", flush=True)
        if failed:
            for sidecar in ("outbound", "inbound"):
                print(f"--- {sidecar}\n{world.log(sidecar)}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


sys.exit(main(sys.argv[1:]))

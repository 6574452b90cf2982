"""Winnow's flows: each links cached tasks and reads like the method section of its paper."""

import os

if __name__ != "winnow.flows":
    raise ImportError(f"this folder is the package winnow.flows, imported as {__name__}")

# A process that runs a flow is Winnow's own. Read when torch is first imported. Threads that spin at a
# barrier cost nothing on an idle machine; on a busy one they keep the threads that they wait for off the
# cores: on two busy cores, the cluster heads of digits take five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

FLOWS = {
    name: f"winnow.flows.{name}:{name}" for name in ("select", "elfs", "ccs", "d2", "deepcore", "compare")
}

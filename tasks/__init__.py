"""Winnow's stages, in reading order: data, embed, train, score, select, report. Each imports only those before it."""

import os

# Read when torch is first imported. Threads that spin at a barrier cost nothing on an idle machine, but where anything else runs they
# keep from the cores those that they wait for: on two busy cores the cluster heads of digits take five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

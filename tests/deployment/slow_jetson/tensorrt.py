"""The stand-in of fake_jetson, whose builds take until the file of SLOW_UNTIL is there."""

import importlib.util
import os
import sys
import time
from pathlib import Path

spec = importlib.util.spec_from_file_location(__name__, os.environ["SLOW_FAKE"])
fake = importlib.util.module_from_spec(spec)
sys.modules[__name__] = fake
spec.loader.exec_module(fake)
build = fake.Builder.build_serialized_network


def slowly(self, *arguments):
    """Build when the test lets it; each build is noted."""
    with open(os.environ["SLOW_UNTIL"] + ".builds", "a") as noted:
        noted.write(f"{os.getpid()}\n")
    while not Path(os.environ["SLOW_UNTIL"]).exists():
        time.sleep(0.05)
    return build(self, *arguments)


fake.Builder.build_serialized_network = slowly

"""Build this model's TensorRT engine on this device, check its outputs, measure its latency.

Usage: python3 run.pyz [--check] [--profile] [--mode single-stream] [--background] ...

Needs Python 3.8 or later, NumPy and the `tensorrt` module that JetPack installs (or
`tensorrt_rtx`). Beside this file lie kit.json, model.onnx and reference.npz. The engine is
kept as engine.plan and built again only when the model, TensorRT or the GPU has changed.

Before anything is built, the device is compared with what the kit needs; --check does only that.
Ends with 0 (passed, or built where there is no GPU), 1 (outputs differ too much from the
reference) or 2 (it could not be done; the message says why). Results go to result.json.
"""

import os
import sys

if __name__ == "__main__":
    # Any Python can read this file, those of kit/ only 3.8 and later.
    if sys.version_info < (3, 8):  # noqa: UP036
        sys.stderr.write(
            "Error: Python {}.{} is too old: the kit needs 3.8 or later.\n"
            "JetPack 5 and later have it as /usr/bin/python3; JetPack 4 has Python 3.6, and a\n"
            "TensorRT that is too old as well.\n".format(*sys.version_info[:2])
        )
        sys.exit(2)

    from pathlib import Path

    from kit.main import main  # type: ignore[import-not-found]

    sys.exit(main(Path(os.path.realpath(sys.argv[0])).parent, __doc__))

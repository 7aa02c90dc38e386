"""Build this model's TensorRT engine on this device, check its outputs, measure its latency.

Usage: python3 run.pyz [--iterations 100] [--warmup 10] [--rebuild] [--result result.json]

Needs Python 3.8 or later, NumPy and the `tensorrt` module that JetPack installs (or
`tensorrt_rtx`). Beside this file lie kit.json, model.onnx and reference.npz. The engine is
kept as engine.plan and built again only when the model, TensorRT or the GPU has changed.

Ends with 0 (passed, or built where there is no GPU), 1 (outputs differ too much from the
reference) or 2 (it could not be done; the message says why). Results go to result.json.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from kit.main import main  # type: ignore[import-not-found]

    sys.exit(main(Path(sys.argv[0]).resolve().parent, __doc__))

"""Run an ONNX model by ONNX Runtime, as it is written: here, or in a Python that has it.

The Python in which a kit is tested may have none: then FAKE_PYTHON names one that has. It is
started with this file, and gets and gives frames: a line of JSON, and as many bytes of npz as the
line says.
"""
# ruff: noqa: B905 - Python 3.8 has no zip(strict)

import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np


class Local:
    """A model in this process."""

    def __init__(self, model):
        import onnx
        import onnxruntime

        self._onnx, self._graph = onnx, onnx.load_from_string(model).graph
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._run = onnxruntime.InferenceSession(model, options).run
        constants = {tensor.name for tensor in self._graph.initializer}
        self.facts = {
            "inputs": [self._tensor(v) for v in self._graph.input if v.name not in constants],
            "outputs": [self._tensor(v) for v in self._graph.output],
            "nodes": [[node.name, node.op_type] for node in self._graph.node],
            "types": sorted({int(tensor.data_type) for tensor in self._graph.initializer}),
        }

    def _tensor(self, value):
        kind = value.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        dtype = self._onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        return [value.name, sizes, np.dtype(dtype).name]

    def run(self, inputs):
        """Outputs by name."""
        names = [value.name for value in self._graph.output]
        return dict(zip(names, self._run(None, inputs)))


class Remote:
    """A model in a process of another Python."""

    def __init__(self, model):
        command = [os.environ["FAKE_PYTHON"], __file__]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.facts = self._ask({}, model)[0]

    def run(self, inputs):
        """Outputs by name."""
        return _unpack(self._ask({}, _pack(inputs))[1])

    def _ask(self, header, payload):
        send(self._process.stdin, header, payload)
        return receive(self._process.stdout)


def open_model(model):
    """A serialized model, ready to run."""
    there = importlib.util.find_spec("onnx") is not None
    return Local(model) if there else Remote(model)


def serialized(path):
    """A model's file with its external data in it, as bytes."""
    if importlib.util.find_spec("onnx") is not None:
        import onnx

        return onnx.load(path).SerializeToString()
    command = [os.environ["FAKE_PYTHON"], "-c", "import onnx, sys; sys.stdout.buffer.write("]
    command[-1] += "onnx.load(sys.argv[1]).SerializeToString())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([*command, path], stdout=subprocess.PIPE, env=environment, check=True)
    return done.stdout


def send(stream, header, payload):
    """Write a frame."""
    stream.write(json.dumps({**header, "bytes": len(payload)}).encode() + b"\n" + payload)
    stream.flush()


def receive(stream):
    """(header, payload) of a frame; ({}, b"") at the end."""
    line = stream.readline()
    if not line:
        return {}, b""
    header = json.loads(line)
    return header, stream.read(header["bytes"])


def _pack(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpack(payload):
    with np.load(io.BytesIO(payload)) as file:
        return {name: file[name] for name in file.files}


def main():
    """Answer one model's calls."""
    model = Local(receive(sys.stdin.buffer)[1])
    send(sys.stdout.buffer, model.facts, b"")
    while True:
        header, payload = receive(sys.stdin.buffer)
        if not header:
            break
        send(sys.stdout.buffer, {}, _pack(model.run(_unpack(payload))))


if __name__ == "__main__":
    main()

"""The part of JetPack 5's TensorRT 8.5 that the kit uses; engines run by ONNX's own evaluator.

It is as strict as TensorRT: a size that varies needs a profile, an input that varies needs a
shape within it before each first run, and 64-bit integers become 32-bit ones.
"""

import base64
import ctypes
import enum
import json
import os

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

__version__ = "8.5.2.2"
FACTOR = float(os.environ.get("FAKE_FACTOR", "1"))
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"EXPLICIT_BATCH": 0})
BuilderFlag = enum.Enum("BuilderFlag", "FP16 INT8 SPARSE_WEIGHTS")
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF INT32 BOOL")
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "BOOL": np.bool_}


class ILogger:
    pass


class Tensor:
    def __init__(self, value):
        kind = value.type.tensor_type
        self.name = value.name
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        self.wide = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        self.dtype = {
            "float32": DataType.FLOAT,
            "float16": DataType.HALF,
            "int64": DataType.INT32,
            "bool": DataType.BOOL,
        }[self.wide.name]


class Network:
    inputs = ()
    num_inputs = property(lambda self: len(self.inputs))

    def get_input(self, index):
        return self.inputs[index]


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        self.shapes[name] = [list(least), list(usual), list(most)]

    def get_shape(self, name):
        return self.shapes[name]


class Config:
    def __init__(self):
        self.flags, self.profiles = set(), []

    def set_flag(self, flag):
        self.flags.add(flag)

    def get_flag(self, flag):
        return flag in self.flags

    def add_optimization_profile(self, profile):
        for least, usual, most in profile.shapes.values():
            if not all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)):
                return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Plan(bytes):
    nbytes = property(len)


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        given = config.profiles[0].shapes if config.profiles else {}
        if {t.name for t in network.inputs if -1 in t.shape} != set(given):
            self.logger.log(Severity.ERROR, "dynamic inputs without an optimization profile")
            return None
        self.logger.log(Severity.INFO, "Total Activation Memory: 512")
        plan = {
            "flags": sorted(flag.name for flag in config.flags),
            "profile": given,
            "model": base64.b64encode(network.model.SerializeToString()).decode(),
        }
        return Plan(json.dumps(plan).encode())


class OnnxParser:
    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        self.network.model = onnx.load(path)
        self.network.inputs = [Tensor(value) for value in self.network.model.graph.input]
        return True


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return Engine(json.loads(plan))


class Engine:
    def __init__(self, plan):
        self.model = onnx.load_from_string(base64.b64decode(plan["model"]))
        self.profile = plan["profile"]
        graph = self.model.graph
        self.inputs = {value.name: Tensor(value) for value in graph.input}
        self.outputs = {value.name: Tensor(value) for value in graph.output}
        self.tensors = {**self.inputs, **self.outputs}

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.tensors[name].dtype

    def get_tensor_shape(self, name):
        return self.tensors[name].shape

    def get_tensor_profile_shape(self, name, index):
        assert index == 0
        return self.profile[name]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}
        self.run = ReferenceEvaluator(engine.model).run
        fixed = {name: t.shape for name, t in engine.inputs.items() if -1 not in t.shape}
        self.shapes = dict(fixed)

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.profile.get(name, [self.engine.inputs[name].shape] * 3)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        if self.shapes.keys() != self.engine.inputs.keys():
            return (-1,) * len(self.engine.outputs[name].shape)
        zeros = {n: np.zeros(s, self.engine.inputs[n].wide) for n, s in self.shapes.items()}
        return self.run([name], zeros)[0].shape

    def set_tensor_address(self, name, address):
        assert address
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert self.shapes.keys() == self.engine.inputs.keys()
        assert self.addresses.keys() == self.engine.tensors.keys()
        inputs = {name: self._array(name, shape) for name, shape in self.shapes.items()}
        wide = {name: array.astype(self.engine.inputs[name].wide) for name, array in inputs.items()}
        results = self.run(None, wide)
        for name, result in zip(self.engine.outputs, results, strict=True):
            self._array(name, result.shape)[...] = result * np.asarray(FACTOR, result.dtype)
        return stream == 7

    def _array(self, name, shape):
        dtype = np.dtype(NUMPY[self.engine.tensors[name].dtype.name])
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

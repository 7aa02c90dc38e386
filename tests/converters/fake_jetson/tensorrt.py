"""The part of JetPack 5's TensorRT 8.5 that the kit uses, for engines that double float32 x."""

import ctypes
import enum
import os
from types import SimpleNamespace

import numpy as np

__version__ = "8.5.2.2"
FACTOR = float(os.environ.get("FAKE_FACTOR", "2"))
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"EXPLICIT_BATCH": 0})
BuilderFlag = enum.Enum("BuilderFlag", "FP16 INT8")
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT")


class ILogger:
    pass


class Config:
    def __init__(self):
        self.flags = set()

    def set_flag(self, flag):
        self.flags.add(flag)

    def get_flag(self, flag):
        return flag in self.flags


class Plan(bytes):
    nbytes = property(len)


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        return SimpleNamespace(
            num_inputs=1, get_input=lambda index: SimpleNamespace(name="x", shape=(1, 4))
        )

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return SimpleNamespace()

    def build_serialized_network(self, network, config):
        self.logger.log(Severity.INFO, "Total Activation Memory: 512")
        return Plan(",".join(sorted(flag.name for flag in config.flags)).encode())


class OnnxParser:
    def __init__(self, network, logger):
        pass

    def parse_from_file(self, path):
        return os.path.isfile(path)


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return Engine()


class Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType.FLOAT

    def get_tensor_shape(self, name):
        return (1, 4)

    def create_execution_context(self):
        return Context()


class Context:
    def __init__(self):
        self.addresses = {}

    def set_input_shape(self, name, shape):
        return tuple(shape) == (1, 4)

    def get_tensor_shape(self, name):
        return (1, 4)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        x, y = (
            np.ctypeslib.as_array((ctypes.c_float * 4).from_address(self.addresses[name]))
            for name in "xy"
        )
        y[:] = x * FACTOR + (0 if FACTOR > 0 else np.array([9, 0, 0, 0], np.float32))
        return stream == 7

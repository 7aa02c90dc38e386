"""A stand-in for JetPack's TensorRT, of the version FAKE_TENSORRT: 8.5, 10.3, 10.13 or 11.4.

What exists, and what it takes, is what the real module of that version says of itself (see
fake_api.py and read_api.py). What it does is modelled here for the part that the kit uses, as
strictly as TensorRT does it: a size that varies needs a profile, an input that varies needs a
shape within it before each first run, an engine loads only in the version and on the GPU that it
was built for, precision is the builder's flags before 10 and none of its business in a strongly
typed network. The engine runs by ONNX's own reference evaluator.

More of the environment: FAKE_FACTOR multiplies the outputs, FAKE_FAST lists what the GPU is said
to run ("fp16,int8"), FAKE_SM is its compute capability, FAKE_LOG takes a line for each call.
"""
# ruff: noqa: B905, F821 - Python 3.8 has no zip(strict); the enums are the version's own

import base64
import ctypes
import json
import os

import numpy as np
from fake_api import MAJOR, VERSION, bound, enums
from fake_evaluator import open_model, serialized

WHOLE = {"8.5": "8.5.2.2", "10.3": "10.3.0", "10.13": "10.13.3.9", "11.4": "11.4.0.106"}
__version__ = WHOLE[VERSION]
globals().update(enums())

FACTOR = float(os.environ.get("FAKE_FACTOR", "1"))
FAST = os.environ.get("FAKE_FAST", "fp16,int8").split(",")
SM = os.environ.get("FAKE_SM", "8.7")
#: TensorRT's type of a NumPy type; before 10 it has no 64-bit integers and takes them as 32-bit.
TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64" if MAJOR >= 10 else "INT32",
    "bool": "BOOL",
}
NUMPY = {kind: np.dtype(name) for name, kind in TYPES.items() if name != "int64" or MAJOR >= 10}
HALF_TYPE = 10  # onnx.TensorProto.FLOAT16
PRECISIONS = ("FP16", "BF16", "INT8", "INT4", "FP8", "FP4")


@bound("ILogger")
class ILogger:
    def __init__(self):
        pass


class Severity:
    def __init__(self, name):
        self.name = name


def tell(logger, severity, text):
    logger.log(Severity(severity), text)


@bound("IProfiler")
class IProfiler:
    def __init__(self):
        pass


@bound("IProgressMonitor")
class IProgressMonitor:
    def __init__(self):
        pass


if IProgressMonitor is None:
    del IProgressMonitor


@bound("ITensor")
class ITensor:
    def __init__(self, name, sizes, dtype):
        self._name, self._shape, self._wide = name, tuple(sizes), np.dtype(dtype)
        self._dtype = DataType[TYPES[self._wide.name]]


def tensors(described):
    return {name: ITensor(name, sizes, dtype) for name, sizes, dtype in described}


@bound("INetworkDefinition")
class INetworkDefinition:
    num_inputs = property(lambda self: len(self._inputs))

    def get_input(self, index):
        return list(self._inputs.values())[index]


@bound("IOptimizationProfile")
class IOptimizationProfile:
    def set_shape(self, input, min, opt, max):
        self.__dict__.setdefault("_given", {})[input] = [list(min), list(opt), list(max)]

    def get_shape(self, input):
        return self._given[input]


@bound("IBuilderConfig")
class IBuilderConfig:
    def set_flag(self, flag):
        self.__dict__.setdefault("_set", set()).add(flag)

    def get_flag(self, flag):
        return flag in self.__dict__.get("_set", set())

    def add_optimization_profile(self, profile):
        for least, usual, most in profile.__dict__.get("_given", {}).values():
            if not all(a <= b <= c for a, b, c in zip(least, usual, most)):
                return -1
        held = self.__dict__.setdefault("_profiles", [])
        held.append(profile)
        return len(held) - 1


class IHostMemory(bytes):
    nbytes = property(len)


@bound("Builder")
class Builder:
    def __init__(self, logger):
        self._log = logger

    platform_has_fast_fp16 = property(lambda self: "fp16" in FAST)
    platform_has_fast_int8 = property(lambda self: "int8" in FAST)

    def create_network(self, flags=0):
        asked = [flag.name for flag in NetworkDefinitionCreationFlag if flags >> int(flag) & 1]
        if flags >> max(map(int, NetworkDefinitionCreationFlag)) + 1:
            raise ValueError(f"unknown flags {flags}")
        if MAJOR < 10 and "EXPLICIT_BATCH" not in asked:
            raise ValueError("the ONNX parser takes networks of explicit batch only")
        network = INetworkDefinition()
        network._typed = MAJOR >= 11 or "STRONGLY_TYPED" in asked
        return network

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        given = config._profiles[0]._given if "_profiles" in vars(config) else {}
        flags = sorted(flag.name for flag in config.__dict__.get("_set", ()))
        monitor = config.__dict__.get("_progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 1)
            if monitor.step_complete("Building Engine", 0) is not True:
                return None
            monitor.phase_finish("Building Engine")
        refused = self._refused(network, flags, given)
        if refused:
            tell(self._log, "ERROR", refused)
            return None
        tell(self._log, "INFO", "Total Activation Memory: 512")
        plan = {
            "tensorrt": __version__,
            "sm": SM,
            "flags": flags,
            "profile": given,
            "verbosity": config.profiling_verbosity.name,
            "model": base64.b64encode(network._model).decode(),
        }
        return IHostMemory(json.dumps(plan).encode())

    def _refused(self, network, flags, given):
        varying = {name for name, t in network._inputs.items() if -1 in t._shape}
        if varying != set(given):
            return "dynamic inputs without an optimization profile"
        set_ = [flag for flag in flags if flag in PRECISIONS]
        if network._typed and set_:
            return f"precision flags are not allowed in a strongly typed network: {set_}"
        operators = {kind for _, kind in network._facts["nodes"]}
        if not network._typed and HALF_TYPE in network._facts["types"] and "FP16" not in set_:
            return "fp16 precision has been set for a layer, but is not configured in the builder"
        if not network._typed and "QuantizeLinear" in operators and "INT8" not in set_:
            return "Int8 precision has been set for a layer, but is not configured in the builder"
        return ""


@bound("OnnxParser")
class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def parse_from_file(self, model):
        network = self._network
        network._model = serialized(model)
        network._facts = open_model(network._model).facts
        network._inputs = tensors(network._facts["inputs"])
        self._errors = [ParserError(*node) for node in network._facts["nodes"] if node[1] == "Det"]
        return not self._errors


@bound("ParserError")
class ParserError:
    def __new__(cls, name, operator):
        made = object.__new__(cls)
        made._name, made._operator = name, operator
        return made

    def code(self):
        return "ErrorCode.UNSUPPORTED_NODE"

    def desc(self):
        return "no importer is registered for it"

    def node(self):
        return 0

    def node_name(self):
        return self._name

    def node_operator(self):
        return self._operator


ParserError.__init__ = lambda self, name, operator: None


@bound("Runtime")
class Runtime:
    def __init__(self, logger):
        self._log = logger

    def deserialize_cuda_engine(self, serialized_engine):
        plan = json.loads(bytes(serialized_engine))
        for key, here in (("tensorrt", __version__), ("sm", SM)):
            if plan[key] != here:
                tell(self._log, "ERROR", f"the engine is of {key} {plan[key]}, this is {here}")
                return None
        return ICudaEngine(plan)


@bound("ICudaEngine")
class ICudaEngine:
    def __init__(self, plan):
        self._plan = plan
        self._evaluator = open_model(base64.b64decode(plan["model"]))
        self._profile = plan["profile"]
        self._inputs = tensors(self._evaluator.facts["inputs"])
        self._outputs = tensors(self._evaluator.facts["outputs"])
        self._tensors = {**self._inputs, **self._outputs}

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._tensors[name].dtype

    def get_tensor_shape(self, name):
        return self._tensors[name].shape

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0
        return self._profile[name]

    def create_execution_context(self):
        return IExecutionContext(self)

    def create_engine_inspector(self):
        inspector = EngineInspector()
        inspector._engine = self
        return inspector


def layers(engine):
    """[(layer, nodes)]: how this version calls what it fused of the graph."""
    names = [name for name, _ in engine._evaluator.facts["nodes"]]
    if VERSION == "8.5":
        fused = [(" + ".join(names[:2]), names[:2]), *((name, [name]) for name in names[2:])]
        return [(f"Reformatting CopyNode for Input Tensor 0 to {fused[0][0]}", names[:1]), *fused]
    if VERSION == "10.3":
        return [(f"{{ForeignNode[{names[0]}...{names[-1]}]}}", names)]
    pairs = [names[start : start + 2] for start in range(0, len(names), 2)]
    return [(f"__myl_Fused_myl0_{place}", pair) for place, pair in enumerate(pairs)]


@bound("EngineInspector")
class EngineInspector:
    def get_engine_information(self, format):
        assert format is LayerInformationFormat.JSON
        found = layers(self._engine)
        if self._engine._plan["verbosity"] != "DETAILED":
            return json.dumps({"Layers": [name for name, _ in found]})
        told = []
        for name, nodes in found:
            detail = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
            told.append({"Name": name, **({"Metadata": detail} if MAJOR >= 10 else {})})
        # TensorRT writes the separator as it is, which strict JSON does not allow.
        return json.dumps({"Layers": told}).replace("\\u001f", "\x1f")


@bound("IExecutionContext")
class IExecutionContext:
    def __init__(self, engine):
        self._made, self._addresses = engine, {}
        self._shapes = {n: t._shape for n, t in engine._inputs.items() if -1 not in t._shape}
        self._known = {}

    def set_input_shape(self, name, shape):
        least, _, most = self._made._profile.get(name, [self._made._inputs[name]._shape] * 3)
        if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, most)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        if self._shapes.keys() != self._made._inputs.keys():
            return (-1,) * len(self._made._outputs[name]._shape)
        key = tuple(sorted(self._shapes.items()))
        if key not in self._known:
            zeros = {n: np.zeros(s, self._made._inputs[n]._wide) for n, s in self._shapes.items()}
            found = self._made._evaluator.run(zeros)
            self._known[key] = {n: array.shape for n, array in found.items()}
        return self._known[key][name]

    def set_tensor_address(self, name, memory):
        if name not in self._made._tensors or not memory:
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert self._shapes.keys() == self._made._inputs.keys()
        assert self._addresses.keys() == self._made._tensors.keys()
        inputs = {name: self._array(name, shape) for name, shape in self._shapes.items()}
        wide = {name: a.astype(self._made._inputs[name]._wide) for name, a in inputs.items()}
        for name, result in self._made._evaluator.run(wide).items():
            self._array(name, result.shape)[...] = result * np.asarray(FACTOR, result.dtype)
        profiler = self.__dict__.get("_profiler")
        if profiler is not None:
            for place, (name, _) in enumerate(layers(self._made)):
                profiler.report_layer_time(name, 0.25 * (place + 1))
        return stream_handle == 7

    def _array(self, name, shape):
        dtype = NUMPY[self._made._tensors[name]._dtype.name]
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

"""What NPU compilers take, and a walk over a graph that finds what one of them would not.

The lists are of onnxruntime's execution providers, each with its source. Nodes that the CPU runs
anyway are exempt (`on_cpu`): the router and the scatter of its weights, which no NPU takes whole,
and the entry of the graph, where ids, mask and positions arrive as integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from tenp_edge.errors import UserError

CPU_PATHS = frozenset({"router", "scatter", "embed_tokens", "mask", "rotary"})


@dataclass(frozen=True)
class Target:
    """An execution provider: the operators of ai.onnx it takes, of those that decoders consist of.

    ``refused`` names operators that it takes in general but not as written here, with the reason.
    ``wide``: it computes with activations of 16 bits and weights of 8.
    """

    name: str
    title: str
    source: str
    taken: frozenset[str]
    refused: Mapping[str, str]
    wide: bool = False


_REPOSITORY = "https://github.com/microsoft/onnxruntime/blob/v1.23.0"
_SITE = "https://onnxruntime.ai/docs/execution-providers"


def _ops(names: str) -> frozenset[str]:
    return frozenset(names.split())


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "nnapi",
            "NNAPI (Android)",
            f"{_REPOSITORY}/tools/ci_build/github/android/nnapi_supported_ops.md",
            _ops(
                "Abs Add AveragePool BatchNormalization Cast Clip Concat Conv DepthToSpace "
                "DequantizeLinear Div Elu Exp Flatten Floor Gather Gemm GlobalAveragePool "
                "GlobalMaxPool Identity LeakyRelu Log LRN MatMul MaxPool Max Min Mul Neg Pad "
                "Pow PRelu QLinearConv QLinearMatMul QuantizeLinear ReduceMean Relu Reshape "
                "Resize Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose "
                "Unsqueeze"
            ),
            {"Gather": "its indices must be int32 or constant"},
        ),
        Target(
            "coreml",
            "CoreML (ML Program)",
            f"{_REPOSITORY}/tools/ci_build/github/apple/coreml_supported_mlprogram_ops.md",
            _ops(
                "Add And ArgMax AveragePool Cast Clip Concat Conv ConvTranspose Cos "
                "DepthToSpace Ceil Div Elu Erf Exp GatherND Gemm Gelu GlobalAveragePool "
                "GlobalMaxPool GridSample GroupNormalization HardSigmoid Identity "
                "InstanceNormalization LayerNormalization LeakyRelu MatMul MaxPool Max Mul Pow "
                "PRelu Reciprocal ReduceSum ReduceMean ReduceMax Relu Reshape Resize Round "
                "Shape Sin Slice Softplus Split Sub Sigmoid Softmax Sqrt Squeeze Tanh Tile "
                "Transpose Unsqueeze Where"
            ),
            {"Reciprocal": "it adds an epsilon that ONNX does not have"},
        ),
        Target(
            "qnn",
            "QNN (Qualcomm HTP)",
            f"{_SITE}/QNN-ExecutionProvider.html#supported-onnx-operators",
            _ops(
                "Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil "
                "Clip Concat Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div "
                "Einsum Elu Equal Exp Expand Flatten Floor Gather GatherElements GatherND Gelu "
                "Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample "
                "HardSigmoid HardSwish Identity InstanceNormalization LRN LSTM "
                "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization "
                "MatMul Max MaxPool Mean Min Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear "
                "Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu "
                "Reshape Resize Round ScatterElements ScatterND Shape Sigmoid Sign Sin Slice "
                "Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK "
                "Transpose Unsqueeze Upsample Where Xor"
            ),
            {"Gather": "it takes positive indices only"},
            wide=True,  # the same page: "16-bit activation and 8-bit weights"
        ),
        Target(
            "openvino",
            "OpenVINO (Intel NPU, GPU and CPU)",
            f"{_SITE}/OpenVINO-ExecutionProvider.html#support-coverage",
            _ops(
                "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Ceil Cast Clip Concat "
                "Constant ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace "
                "DequantizeLinear Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather "
                "GatherND Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual "
                "HardSigmoid Identity If InstanceNormalization LeakyRelu Less LessOrEqual Log "
                "Loop LRN LSTM MatMul Max MaxPool Mean Min Mod Mul Neg Not OneHot Or Pad Pow "
                "PRelu QuantizeLinear Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin "
                "ReduceProd ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Shape "
                "Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze "
                "Sub Sum Tan Tanh Tile TopK Transpose Unsqueeze Where Xor"
            ),
            {
                "If": "the NPU falls back to the CPU for it",
                "Loop": "the NPU falls back to the CPU for it",
            },
        ),
    )
}


def on_cpu(name: str) -> bool:
    """Whether the node ``name`` (a path) is meant for the CPU."""
    return not CPU_PATHS.isdisjoint(name.split("/"))


def activation_type(names: Sequence[str]) -> ir.DataType:
    """Of quantised activations: 16 bits where every one of the targets computes with them."""
    wide = bool(names) and all(target.wide for target in targets_of(names))
    return ir.DataType.UINT16 if wide else ir.DataType.UINT8


def targets_of(names: Sequence[str]) -> list[Target]:
    """Raises UserError for a name that is not in `TARGETS`."""
    for name in names:
        if name not in TARGETS:
            raise UserError(f"no NPU target '{name}'", f"--target {'|'.join(TARGETS)}")
    return [TARGETS[name] for name in names]


def require_static(file: str, model: onnx.ModelProto, targets: Sequence[Target]) -> None:
    """Raise UserError unless every dimension in ``model`` is a number and ``targets`` take every
    operator outside `CPU_PATHS`."""
    shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = shaped.graph
    values = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    outputs = [(node.name, name) for node in graph.node for name in node.output if name]
    inputs = [("the inputs", value.name) for value in graph.input]
    loose = [node for node, name in inputs + outputs if not _is_static(values.get(name))]
    if loose:
        raise UserError(
            f"{file} would have {len(loose)} nodes without a fixed shape, first {loose[0]}",
            "--mode portable; and tell us, this is a bug",
        )
    for target in targets:
        _require_taken(file, graph, target)


def _require_taken(file: str, graph: onnx.GraphProto, target: Target) -> None:
    nodes = [node for node in graph.node if not on_cpu(node.name)]
    refused = [n for n in nodes if n.op_type not in target.taken or n.op_type in target.refused]
    if not refused:
        return
    first = refused[0]
    why = target.refused.get(first.op_type, f"not in {target.source}")
    raise UserError(
        f"{target.title} does not take {len(refused)} of the {len(nodes)} nodes of {file}, first "
        f"{first.op_type} at {first.name}: {why}",
        "another --target, or --mode portable for the CPU",
    )


def _is_static(value: onnx.ValueInfoProto | None) -> bool:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)

"""The generated source is MLX's own, byte for byte: MLX prints its own when a call is exported, without Metal."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tiny_llm.kernels.catalog import CATALOG, DTYPES
from tiny_llm.kernels.launch import source
from tiny_llm.kernels.sim import Interface, Simulator
from tiny_llm.kernels.sim.signature import ATTRIBUTES, generate

CASES: list[dict[str, Any]] = [
    {"inputs": {"x": mx.zeros((4, 4))}, "body": "out[0] = x[0];"},
    {"inputs": {"x": mx.zeros((4, 4))}, "body": "out[0] = x_shape[0] + x_strides[0] + x_ndim;"},
    {
        "inputs": {"x": mx.zeros(7), "s": mx.array(1.0), "y": mx.zeros(8)},
        "body": "out[0] = x[0] + s; // s_shape",
    },
    {"inputs": {}, "body": "out[thread_position_in_grid.x] = 1;\n"},
    {"inputs": {"x": mx.zeros(9)}, "body": " ".join(name for name, _ in ATTRIBUTES)},
    *(
        {"inputs": {"x": mx.zeros(9)}, "body": f"uint a = {name}{'.x' if kind == 'uint3' else ''};"}
        for name, kind in ATTRIBUTES
    ),
    *({"inputs": {"x": mx.zeros(9, dtype=dtype)}, "body": "", "dtypes": [dtype]} for dtype in DTYPES),
    *(
        {"inputs": {"x": mx.zeros(9, dtype=dtype)}, "body": "", "dtypes": [dtype]}
        for dtype in (mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.uint64, mx.int64, mx.complex64)
    ),
    {
        "inputs": {"x": mx.zeros((3, 3)), "w": mx.zeros(3, dtype=mx.bfloat16)},
        "body": "thread_position_in_grid x_shape w_strides\n",
        "dtypes": [mx.float16, mx.float32],
        "template": [("T", mx.bfloat16), ("N", -3), ("B", True), ("M", 12)],
        "header": "// helpers\ninline float f(float x) { return x; }\n",
        "atomic": True,
    },
]


def printed_by_mlx(case: dict[str, Any], dtypes: list[mx.Dtype], path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    names, arrays = list(case["inputs"]), list(case["inputs"].values())
    kernel = mx.fast.metal_kernel(
        name=case.get("name", "probe"),
        input_names=names,
        output_names=case.get("outputs", ["out", "more"][: len(dtypes)]),
        source=case["body"],
        header=case.get("header", ""),
        atomic_outputs=case.get("atomic", False),
    )

    def call(*inputs: mx.array) -> Any:
        sizes = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)] * len(dtypes)}
        return kernel(inputs=list(inputs), template=case.get("template"), output_dtypes=dtypes, verbose=True, **sizes)

    mx.export_function(str(path / "call"), call, *arrays)
    text = capfd.readouterr().out
    return text.partition("```\n")[2].rpartition("```")[0]


@pytest.mark.parametrize("case", CASES, ids=map(str, range(len(CASES))))
def test_source_is_mlx_s(case: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dtypes = case.get("dtypes", [mx.float32])
    outputs = ("out", "more")[: len(dtypes)]
    interface = Interface("probe", tuple(case["inputs"]), outputs, case.get("atomic", False))
    made = generate(interface, case["body"], list(case["inputs"].values()), dtypes, case.get("template", ()))
    expected = printed_by_mlx(case, dtypes, tmp_path, capfd)
    assert "[[kernel]]" in expected
    assert made.text(case.get("header", ""), case["body"]) == expected.removesuffix("\n")


def test_mlx_breaks_shapes_with_two_outputs_and_we_say_so() -> None:
    """MLX closes the parameter list before the second output."""
    interface = Interface("probe", ("x",), ("a", "b"))
    with pytest.raises(ValueError, match="thread_position_in_grid"):
        generate(interface, "a[0] = b[0] = x_shape[0];", [mx.zeros((4, 4))], [mx.float32] * 2, ())


@pytest.mark.parametrize("name", CATALOG)
def test_the_kernels_own_sources_are_mlx_s(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = CATALOG[name]
    text = source(entry.kernel.path)
    seen: list[Any] = []
    monkeypatch.setattr(Simulator, "launch", lambda self, *call: seen.append(call) or entry.run(example, "plain"))
    example = entry.examples(mx.float32)[-1]
    entry.run(example, Simulator())
    interface, _, inputs, dispatch = seen[0]
    inputs = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
    case = {
        "name": name,
        "inputs": dict(zip(interface.inputs, inputs, strict=True)),
        "outputs": list(interface.outputs),
        "body": text.body,
        "header": text.header,
        "template": list(dispatch.template),
    }
    dtypes = list(dispatch.output_dtypes)
    made = generate(interface, text.body, inputs, dtypes, dispatch.template).text(text.header, text.body)
    assert made == printed_by_mlx(case, dtypes, tmp_path, capfd).removesuffix("\n")

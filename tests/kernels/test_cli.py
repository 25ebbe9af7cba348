"""`tiny-llm kernels check` and `profile`."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from tiny_llm.cli import main
from tiny_llm.config import QuantizationConfig
from tiny_llm.engine.llm import POCKET
from tiny_llm.kernels.catalog import CATALOG
from tiny_llm.kernels.chips import CHIPS, Chip
from tiny_llm.kernels.roofline import bound, step_bytes, step_operations, this_machine, weight_bits
from tiny_llm.kernels.sim import Simulator
from tiny_llm.kernels.sim.report import SiteCount
from tiny_llm.model.loader import load_config


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "swiglu.metal"
    path.write_text(CATALOG["swiglu"].kernel.path.read_text())
    return path


def test_a_clean_kernel(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "check", "axpby", str(mine)]) == 0
    assert capsys.readouterr().out == "axpby: clean\nswiglu: clean\n"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("i >= uint(n)", "i > uint(n)", "out of bounds"),  # whole groups, as on CUDA
        ("gate_up[at])", "gate_up[at + 9999])", "out of bounds"),
        ("+ uint(width)]", "+ uint(width) - 1]", "wrong result: `out`["),
        ("float up =", "float up", "does not compile"),
        ("out[i] =", "out[i / 2] =", "race"),
    ],
)
def test_a_faulty_kernel(old: str, new: str, words: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = mine.read_text()
    assert old in text
    mine.write_text(text.replace(old, new))
    assert main(["kernels", "check", str(mine)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("swiglu: ")
    assert "swiglu.metal" in out
    assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check"], "name kernels or pass --all"),
        (["check", "axpby", "--all"], "name kernels or pass --all"),
        (["check", "nothing.metal"], "the kernels are axpby, rms_norm"),
        (["check", "somewhere/axpby.metal"], "no such file"),
        (["profile", "softmax.txt"], "the kernels are"),
        (["check", "axpby", "--seed", "-1"], "-1"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_strict(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("clang.cindex")
    mine.write_text(
        mine.read_text().replace("float up =", "auto f = [](float a) { return a; };\nfloat up = f(1) * 0 +")
    )
    assert main(["kernels", "check", str(mine), "--strict"]) == 1
    assert "Metal has no lambdas" in capsys.readouterr().out


def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "profile", "axpby"]) == 0
    out = capsys.readouterr().out
    line = 1 + CATALOG["axpby"].kernel.path.read_text().splitlines().index(
        "out[i] = T(a * float(x[i]) + b * float(y[i]));"
    )
    for words in ("256 threadgroups, 65,536 threads", "786,432 is the least: 1.00 times", f"line {line} reads x: 32 "
                  "lanes side by side, 4 bytes each", "M4 Max", "H200"):  # fmt: skip
        assert words in out


def count(body: str, run: object, **options: object) -> list[SiteCount]:
    simulator = Simulator(trace=True)
    run(body, [mx.zeros(2048)], simulator=simulator, **options)  # type: ignore[operator]
    return simulator.reports[0].sites


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (8, 32), (16, 32)])
def test_sectors_of_a_request(stride: int, sectors: int, run: object) -> None:
    """32 lanes of 4 bytes: four sectors of 32 bytes side by side, up to one for each lane."""
    sites = count(f"uint i = thread_position_in_grid.x;\nout[i] = x0[i * {stride}];", run)
    read = next(site for site in sites if site.buffer == "x0")
    assert (read.requests, read.sectors, read.bytes, read.line) == (2, 2 * sectors, 256, 2)


@pytest.mark.parametrize(("stride", "cycles"), [(1, 1), (2, 2), (8, 8), (32, 32), (33, 1), (0, 1)])
def test_bank_conflicts(stride: int, cycles: int, run: object) -> None:
    """Words a multiple of 32 apart share a bank; one word for all lanes is broadcast."""
    body = f"""uint i = thread_position_in_grid.x;
threadgroup float s[32 * 33];
for (int k = 0; k < 33; k++) s[i + 32 * k] = x0[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
out[i] = s[i * {stride}];"""
    sites = count(body, run, n=32, group=32)
    read = next(site for site in sites if site.buffer == "threadgroup" and not site.write)
    assert (read.requests, read.sectors) == (1, cycles)
    assert read.efficiency == 1 / cycles


def test_the_roofline() -> None:
    chip = Chip("test", 100, 1, "")
    assert chip.balance == 10
    assert bound(chip, 10**9, 10**9) == (0.01, "memory")
    assert bound(chip, 10**9, 10**11) == (0.1, "arithmetic")
    assert all(chip.source and chip.bandwidth > 0 for chip in CHIPS)


def test_the_roofline_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The model inside: as many tokens per second as its sequences share a step, on each chip and on this machine."""
    assert main(["kernels", "roofline", "--rows", "16", "--bits", "4.5", "--context", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    config = load_config(POCKET)
    moved, operations = step_bytes(config, 100, 16, 4.5), step_operations(config, 100, 16)
    assert lines[0].endswith(" weights of 4.5 bits, 16 · 100 tokens")
    rows = {line.split("  ")[0]: line.split()[-1] for line in lines[3:]}
    assert rows.keys() == {chip.name for chip in CHIPS} | {"this machine"}
    for chip in CHIPS:
        assert rows[chip.name] == f"{int(16 / bound(chip, moved, operations).seconds):,}"


def test_bits_of_weights() -> None:
    config = load_config(POCKET)
    assert weight_bits(config) == 16 and weight_bits(config, 32) == 32
    assert weight_bits(replace(config, quantization=QuantizationConfig(4, 64))) == 4.5


def test_this_machine_has_a_speed() -> None:
    chip = this_machine(1e6)
    assert chip.bandwidth > 0.1 and chip.teraflops and chip.teraflops > 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--rows", "0"], "--rows"), (["--bits", "0"], "--bits"), (["--context", "0"], "--context")],
)
def test_a_roofline_of_nothing(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "roofline", *arguments]) == 2
    assert words in capsys.readouterr().err

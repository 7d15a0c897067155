"""The op benchmark: rows, files, the refusal on red tests, and errors."""

from __future__ import annotations

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ceilings, measure, ops, report
from seqmodels.errors import UserError
from seqmodels.ops import cases
from seqmodels.ops.dispatch import Implementation, dispatch

IMPLEMENTATIONS = {
    "chunked": Implementation(lambda x, y, shift: (x @ y + shift, jnp.sum(x))),
    "reference": Implementation(lambda x, y, shift: (jnp.einsum("ij,jk->ik", x, y) + shift, jnp.sum(x))),
    "pallas_tpu": Implementation(lambda x, y, shift: x, lambda *args, **kwargs: "too small"),
}


def product(x, y, *, shift, impl="auto"):
    return dispatch("product", impl, IMPLEMENTATIONS, x, y, shift=shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(cases.Case):
    size: int

    def make(self, key, dtype=jnp.float32):
        square = jax.random.normal(key, (self.size, self.size), dtype)
        return (square, square), {"shift": 1.0}

    def flops(self):
        return 2.0 * self.size**3

    def bytes(self, dtype=jnp.float32):
        return 3.0 * self.size**2 * jnp.dtype(dtype).itemsize


OP = cases.Op("product", product, IMPLEMENTATIONS, (Case(name="tiny", size=16), Case(name="big", size=32, large=True)))


@pytest.fixture
def only_product(monkeypatch):
    monkeypatch.setattr(cases, "discover", lambda: ["product"])
    monkeypatch.setattr(cases, "load", lambda name: OP)
    monkeypatch.setattr(ceilings, "measure", lambda dtype, size=None: ceilings.Ceilings(1e12, 1e11))


def test_rows(only_product):
    rows = ops.benchmark(OP, OP.cases[:1], dtypes=("float32", "bfloat16"), rounds=1)
    assert [(row["case"], row["dtype"], row["impl"]) for row in rows] == [
        ("tiny", dtype, impl) for dtype in ("float32", "bfloat16") for impl in ("chunked", "reference")
    ]
    for row in rows:
        assert row["ms_forward"] > 0 and row["ms_both"] > 0
        assert row["flops"] == pytest.approx(2 * 16**3 / row["ms_forward"] * 1e3)
        assert row["ratio"] == 1 or row["impl"] == "chunked"
        assert row["peak_bytes"] >= 5 * 16 * 16 * jnp.dtype(row["dtype"]).itemsize  # two in, one cotangent, two out


def test_refusals(only_product):
    with pytest.raises(UserError, match=r"chunkd.*did you mean 'chunked'"):
        ops.usable(OP, OP.cases[0], ["chunkd"])
    with pytest.raises(ValueError, match="too small"):
        ops.benchmark(OP, OP.cases[:1], impls=("pallas_tpu",), rounds=1)


def test_command_writes_results(only_product, tmp_path, capsys):
    words = ["--op", "product", "--cases", "small", "--rounds", "1", "--skip-tests", "--out", str(tmp_path)]
    assert ops.main(words) == 0
    content = json.loads((tmp_path / "product_cpu.json").read_text())
    assert content["tests_skipped"] is True
    assert {"device", "versions", "commit", "time"} <= content["environment"].keys()
    assert [row["case"] for row in content["rows"]] == ["tiny", "tiny"]
    assert (tmp_path / "product_cpu.png").stat().st_size > 5000
    assert "x reference" in capsys.readouterr().out


def test_red_tests_stop_the_benchmark(only_product, monkeypatch, tmp_path, capsys):
    (tmp_path / "tests/ops").mkdir(parents=True)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    words = ["--op", "product", "--out", str(tmp_path / "results")]
    assert ops.main(words) == 2
    assert "has no tests/ops/test_product.py" in capsys.readouterr().err
    (tmp_path / "tests/ops/test_product.py").write_text("def test():\n    assert False\n")
    assert ops.main(words) == 2
    assert "the tests of product are red" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    (tmp_path / "tests/ops/test_product.py").write_text("def test():\n    pass\n")
    (tmp_path / "tests/ops/test_others_gpu.py").write_text("# of inner_product\ndef test():\n    assert False\n")
    ops.require_green("product")
    (tmp_path / "tests/ops/test_walks_gpu.py").write_text("# of product, too\ndef test():\n    assert False\n")
    with pytest.raises(UserError, match=r"red \(tests/ops/test_product.py tests/ops/test_walks_gpu.py\)"):
        ops.require_green("product")


def test_selection(monkeypatch, capsys):
    assert [case.name for case in ops.select(OP, "all", [])] == ["tiny", "big"]
    assert [case.name for case in ops.select(OP, "headline", [])] == ["big"]
    assert [case.name for case in ops.select(OP, "headline", ["tiny"])] == ["tiny"]
    monkeypatch.setattr(ops, "CPU_BYTES", OP.cases[1].bytes())
    assert [case.name for case in ops.select(OP, "all", [])] == ["tiny"]
    assert "left out on a CPU: big" in capsys.readouterr().out


def test_unknown_case_is_one_line(only_product, capsys):
    assert ops.main(["--op", "product", "--skip-tests", "--case", "tini"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_unknown_op_is_one_line(only_product, capsys):
    assert ops.main(["--op", "produkt", "--skip-tests"]) == 2
    message = capsys.readouterr().err
    assert "did you mean 'product'" in message and message.count("\n") == 1


def test_interleave_takes_turns():
    order = []
    programs = {
        name: lambda name=name: (time.sleep(0.03 if name == "slow" else 0.02), order.append(name))
        for name in ("slow", "fast")
    }
    seconds = measure.interleave(programs, rounds=4, sample_seconds=0.0)
    assert order[4:] == ["slow", "fast", "fast", "slow"] * 2
    assert seconds["slow"] > seconds["fast"] >= 0.02


def test_ceilings_bound():
    roof = ceilings.Ceilings(flops=100.0, bytes=10.0)
    assert roof.bound(flops=20.0, moved=4.0) == 50
    assert roof.bound(flops=1000.0, moved=4.0) == 100
    measured = ceilings.measure("float32", 64)
    assert measured.flops > 0 and measured.bytes > 0


def test_table():
    lines = report.table([{"a": 1.23456, "b": None}, {"a": 1234.5, "b": "x"}]).splitlines()
    assert [line.split() for line in lines] == [["a", "b"], ["1.23", "-"], ["1234", "x"]]


def test_every_op_with_cases_loads():
    for name in cases.discover():
        op = cases.load(name)
        assert "reference" in op.implementations
        assert {case.large for case in op.cases} == {True, False}, f"{name} needs small and headline cases"
        assert len({case.name for case in op.cases}) == len(op.cases)
        for case in op.cases:
            assert case.flops() > 0 and case.bytes(jnp.float32) > 0
            args = jax.eval_shape(lambda case=case: case.make(jax.random.key(0))[0])
            assert args

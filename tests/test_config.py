"""Experiment files, overrides and JSON."""

import dataclasses
import io
import json
import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from configs.quickstart import get_config
from seqmodels.config import check_types, fields_of, from_json, load, override, to_json
from seqmodels.errors import UserError
from seqmodels.mixers.base import discover
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    choice: Literal["a", "b"] = "a"
    """A or B."""
    maybe: int | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    width: int = 3
    """How wide."""
    rate: float = 0.1
    inner: Inner = dataclasses.field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    pairs: tuple[tuple[str, float], ...] = ()
    anything: Any = None
    flag: bool = True


# JSON


@pytest.mark.parametrize(
    "value",
    [
        Outer(),
        Outer(rate=1 / 3, many=(Inner("b", 7), Inner()), pairs=(("x", math.inf), ("y", -0.0))),
        Outer(anything=(1, (2.5, None, ("deep",)), Inner(maybe=-1)), flag=False),
        Outer(anything=np.dtype("float32"), rate=5e-324),
        Outer(anything=("ünïcode", "line\nbreak")),
    ],
)
def test_json_round_trip_is_exact(value):
    back = from_json(to_json(value))
    assert back == value
    assert type(back) is type(value) and to_json(back) == to_json(value)


def test_dtype_objects_come_back():
    assert from_json(to_json(Outer(anything=jnp.bfloat16))).anything == jnp.dtype("bfloat16")


def test_json_names_classes_by_module_and_qualname():
    tree = json.loads(to_json(Outer()))
    assert tree["class"] == f"{__name__}:Outer"
    assert tree["inner"] == {"class": f"{__name__}:Inner", "choice": "a", "maybe": None}


def test_every_mixer_round_trips():
    for cls in discover().values():
        model = LMConfig(dim=32, depth=2, pattern=(BlockConfig(cls.tiny()), BlockConfig(cls.tiny(), mlp=None)))
        assert from_json(to_json(model)) == model
        assert hash(from_json(to_json(model))) == hash(model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tree: tree.update(widht=4), "no field 'widht'; did you mean 'width'"),
        (lambda tree: tree["inner"].update(choose="a"), "inner: Inner has no field 'choose'; did you mean 'choice'"),
        (lambda tree: tree.update(width="wide"), "width='wide' must be int"),
        (lambda tree: tree["inner"].update(choice="c"), "inner.choice='c' must be one of 'a', 'b'"),
        (lambda tree: tree["inner"].pop("class"), "inner is an object without a 'class' key"),
        (lambda tree: tree.update({"class": f"{__name__}:Outter"}), "does not exist; did you mean 'Outer'"),
        (lambda tree: tree.update({"class": "nowhere.at_all:Outer"}), "does not import"),
        (lambda tree: tree.update({"class": "json:dumps"}), "is not a dataclass"),
    ],
)
def test_damaged_json_is_told_in_one_line(edit, message):
    tree = json.loads(to_json(Outer()))
    edit(tree)
    with pytest.raises(UserError) as error:
        from_json(json.dumps(tree), "config.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_json_text_that_is_none():
    with pytest.raises(UserError, match=r"config\.json is not valid JSON at line 1"):
        from_json("{", "config.json")
    with pytest.raises(UserError, match="holds int"):
        from_json("3")


def test_missing_field_without_default():
    tree = json.loads(to_json(get_config()))
    del tree["model"]["dim"]
    with pytest.raises(UserError, match="model: LMConfig needs field 'dim'"):
        from_json(json.dumps(tree))


def test_what_json_cannot_hold():
    with pytest.raises(UserError, match=r"anything=\[1\] is a list"):
        to_json(Outer(anything=[1]))

    @dataclasses.dataclass(frozen=True)
    class Local:
        x: int = 1

    with pytest.raises(UserError, match="cannot be found by name"):
        to_json(Outer(anything=Local()))


# Overrides


def test_overrides_reach_every_level():
    before = get_config()
    words = "--model.dim 512 --train.steps 2000 --model.pattern.0.mixer.num-heads 8 --model.tie-embeddings False"
    after = override(before, [*words.split(), "--optim.name", "lion", "--model.pattern.3.mixer.window", "None"])
    assert (after.model.dim, after.train.steps, after.optim.name) == (512, 2000, "lion")
    untouched = before.model.pattern[1].mixer.num_heads
    assert [block.mixer.num_heads for block in after.model.pattern[:2]] == [8, untouched]
    assert after.model.pattern[3].mixer.window is None and after.model.tie_embeddings is False
    assert after.data == before.data and after.mesh == before.mesh
    assert override(before, []) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.dmi 4", "'--model.dmi' is not known; did you mean '--model.dim'"),
        ("--model.dim wide", "--model.dim: invalid literal for int() with base 10: 'wide'"),
        ("--model.dim", "Missing value for argument '--model.dim'"),
        ("--optim.name adam", "invalid choice 'adam' for argument '--optim.name'"),
        ("stray", "'stray' is not known"),
        ("--model.depth 0", "model.depth=0 must be at least 1"),
        ("--model.pattern.0.mixer.num-haeds 2", "did you mean '--model.pattern.0.mixer.num-heads'"),
        ("--model.pattern.0.mixer.num-heads 0", "GatedDeltaNetConfig.num_heads=0 must be positive"),
    ],
)
def test_bad_overrides_are_told_in_one_line(words, message, capfd):
    with pytest.raises(UserError) as error:
        override(get_config(), words.split())
    assert message in str(error.value) and "\n" not in str(error.value) and "│" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_help_lists_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        override(get_config(), ["--help"])
    shown = capsys.readouterr().out
    assert end.value.code in (0, None)
    missing = [name for name in fields_of(get_config()) if f"--{name.replace('_', '-')}" not in shown]
    assert set(missing) <= {"eval"}  # an empty tuple of tasks has no fields
    assert "Model width D." in shown and "(default: 128)" in shown and "Query heads H." in shown


# Types


def test_types_of_a_python_config_are_checked():
    check_types(get_config())
    for change, message in [
        ({"train": dataclasses.replace(get_config().train, steps=10.5)}, r"train.steps=10.5 must be int"),
        ({"model": LMConfig(8, 1, (BlockConfig(GatedDeltaNetConfig()),), remat="ful")}, "did you mean 'full'"),
        ({"data": None}, "data=None must be Dataset"),
        ({"model": LMConfig(8, 1, (GatedDeltaNetConfig(),))}, r"model.pattern=.* must be tuple"),
    ]:
        with pytest.raises(UserError, match=message):
            check_types(dataclasses.replace(get_config(), **change))


# Files


def test_load_runs_the_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom configs.quickstart import get_config as base\n"
        "def get_config():\n    return dataclasses.replace(base(), name='mine')\n"
    )
    assert load(file) == dataclasses.replace(get_config(), name="mine")


def test_a_file_may_be_named_like_a_known_module(tmp_path):
    file = tmp_path / "json.py"
    file.write_text("from configs.quickstart import get_config\n")
    assert load(file) == get_config()
    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no function get_config()"),
        ("def get_config(:\n", "fails to run at line 1: SyntaxError"),
        ("x = 1\nimport no_such_module\n", "fails to run at line 2: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0\n", "get_config() fails at line 2: ZeroDivisionError"),
        ("def get_config():\n    return 3\n", "get_config() returned int, expected an Experiment"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, text, message):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load(file)
    assert message in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_missing_file_suggests_its_neighbour():
    with pytest.raises(UserError, match=r"did you mean 'configs/quickstart\.py'"):
        load("configs/quikstart.py")


def test_a_mistake_reads_the_same_where_boxes_are_drawn_in_ascii(monkeypatch):
    """tyro draws its boxes by the encoding of stdout, which is not utf-8 in notebooks and in many containers."""
    told = []
    for encoding in ("utf-8", "ascii"):
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        with pytest.raises(UserError) as error:
            override(get_config(), ["--model.dim", "0"])
        told.append(str(error.value))
    assert told[0] == told[1] and "--" * 3 not in told[0]
    assert told[0].startswith("model: model.dim=0 must be at least 1")

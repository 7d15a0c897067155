"""Mistakes of a user: exit code 2, one line on stderr that names field, value and fix, and nothing overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import eval.run
import seqmodels.describe
import seqmodels.generate
import train
from seqmodels.config import load, override, to_json

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train.py": train.main,
    "-m seqmodels.describe": seqmodels.describe.main,
    "-m seqmodels.generate": seqmodels.generate.main,
    "-m eval.run": eval.run.main,
}

EXPERIMENT = """
from seqmodels.data.text import TextFiles
from seqmodels.mixers.attention import AttentionConfig
from seqmodels.mixers.gated_delta_net import GatedDeltaNetConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment, OptimConfig, TrainConfig


def get_config():
    pattern = (BlockConfig(GatedDeltaNetConfig(num_heads=2)), BlockConfig(AttentionConfig(num_heads=4, window=8)))
    return Experiment(
        name="tiny",
        model=LMConfig(dim=32, depth=2, pattern=pattern),
        data=TextFiles(paths=("texts",), seq_len=64),
        optim=OptimConfig(warmup_steps=2),
        train=TrainConfig(steps=10, batch_size=8),
    )
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with an experiment, a corpus, broken files, and a run of it that has no checkpoint."""
    monkeypatch.chdir(tmp_path)
    files = {
        "exp.py": EXPERIMENT,
        "none.py": "x = 1\n",
        "broken.py": "def get_config(:\n",
        "raises.py": "import no_such_module\n",
        "tokenizer.json": '{"model": 3}',
        "texts/a.txt": "the quick brown fox jumps over the lazy dog\n" * 200,
        "empty/a.txt": "",
        "prompts.txt": "one\n\nthree\n",
        "old/config.json": "",
        "leaves.py": "import sys\nsys.exit(3)\n",
        "a_file": "mine",
        "typed/config.json": "",
        "damaged/config.json": "{",
        "other/notes.txt": "mine",
        "outer/config.json": "{}",
        "outer/inner/config.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin/a.txt").write_bytes("naïve\n".encode("latin-1") * 100)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    config = to_json(load("exp.py"))
    (tmp_path / "old/config.json").write_text(config)
    (tmp_path / "typed/config.json").write_text(config.replace('"dim": 32', '"dim": "wide"'))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


EXP = "--config exp.py"
# name -> (command, arguments, what the line must say: field, value, fix)
MISTAKES: dict[str, tuple[str, str, list[str]]] = {
    "unknown field": ("train.py", f"{EXP} --model.dmi 4", ["--model.dmi", "did you mean '--model.dim'"]),
    "wrong type": ("train.py", f"{EXP} --model.dim wide", ["--model.dim", "'wide'", "--help"]),
    "bad literal": ("train.py", f"{EXP} --optim.name adam", ["--optim.name", "'adam'", "'adamw'"]),
    "unknown dtype": ("train.py", f"{EXP} --model.dtype float61", ["--model.dtype", "'float61'", "'bfloat16'"]),
    "heads do not divide the width": (
        "train.py", f"{EXP} --model.pattern.1.mixer.num-heads 5",
        ["model.pattern.1.mixer", "num_heads=5", "dim=32", "divisor"],
    ),
    "no heads": ("train.py", f"{EXP} --model.pattern.0.mixer.num-heads 0", ["num_heads=0", "positive"]),
    "window below one": ("train.py", f"{EXP} --model.pattern.1.mixer.window 0", ["window=0", "positive"]),
    "no depth": ("train.py", f"{EXP} --model.depth 0", ["model.depth=0", "at least 1", "--model.depth"]),
    "negative steps": ("train.py", f"{EXP} --train.steps -5", ["train.steps=-5", "at least 1", "--train.steps"]),
    "warm-up longer than the training": (
        "train.py", f"{EXP} --optim.warmup-steps 10",
        ["optim.warmup_steps=10", "train.steps=10", "--optim.warmup-steps"],
    ),
    "sequence does not divide the mesh": (
        "train.py", f"{EXP} --mesh.sequence 8 --data.seq-len 60",
        ["data.seq_len=60", "mesh.sequence=8", "--data.seq_len"],
    ),
    "no sequence": ("train.py", f"{EXP} --data.seq-len 0", ["seq_len", "0", "at least 1"]),
    "batch does not divide the mesh": (
        "train.py", f"{EXP} --train.batch-size 12", ["train.batch_size=12", "mesh.data=8", "--train.batch_size"],
    ),
    "batch does not divide the accumulation": (
        "train.py", f"{EXP} --train.accumulate 3", ["train.batch_size=8", "train.accumulate=3", "--train.accumulate"],
    ),
    "mesh larger than the devices": ("train.py", f"{EXP} --mesh.tensor 16", ["tensor=16", "8", "--mesh.data"]),
    "two axes take the rest": ("train.py", f"{EXP} --mesh.fsdp -1", ["mesh.data", "mesh.fsdp", "-1", "--mesh.data"]),
    "vocabulary too small": (
        "train.py", f"{EXP} --model.vocab-size 256", ["model.vocab_size=256", "257", "--model.vocab-size 264"],
    ),
    "empty corpus": ("train.py", f"{EXP} --data.paths empty", ["paths", "empty", "name other files"]),
    "missing corpus": ("train.py", f"{EXP} --data.paths txets", ["paths", "txets"]),
    "corpus is not UTF-8": ("train.py", f"{EXP} --data.paths latin", ["a.txt", "UTF-8"]),
    "bad tokenizer": (
        "train.py", f"{EXP} --data.tokenizer-file tokenizer.json", ["tokenizer_file", "tokenizer.json", "save one"],
    ),
    "missing tokenizer": (
        "train.py", f"{EXP} --data.tokenizer-file no.json", ["tokenizer_file", "'no.json'", "give the path"],
    ),
    "no config": ("train.py", "--train.steps 5", ["--config", "configs/quickstart.py"]),
    "missing config": ("train.py", "--config expp.py", ["'expp.py'", "did you mean 'exp.py'"]),
    "config without get_config": ("train.py", "--config none.py", ["'none.py'", "get_config()", "an Experiment"]),
    "config with a syntax error": ("train.py", "--config broken.py", ["'broken.py'", "line 1", "SyntaxError"]),
    "config that raises": ("train.py", "--config raises.py", ["'raises.py'", "line 1", "no_such_module"]),
    "config that leaves": ("train.py", "--config leaves.py", ["'leaves.py'", "line 2", "SystemExit: 3"]),
    "name that leads elsewhere": ("train.py", f"{EXP} --name ../b", ["name='../b'", "one folder", "--name"]),
    "endless learning rate": (
        "train.py", f"{EXP} --optim.learning-rate inf", ["optim.learning_rate=inf", "finite", "--optim.learning-rate"],
    ),
    "initialisation is not a number": (
        "train.py", f"{EXP} --model.init-std nan", ["model.init_std=nan", "finite", "--model.init-std"],
    ),
    "negative epsilon": ("train.py", f"{EXP} --model.pattern.0.norm-eps -1", ["norm_eps=-1.0", "pattern.0", "1e-6"]),
    "replace a file": ("train.py", f"{EXP} --run-dir a_file --replace", ["'a_file'", "not a run", "--run-dir"]),
    "run exists": ("train.py", f"{EXP} --run-dir old", ["old", "holds a run already", "--resume"]),
    "replace what is no run": ("train.py", f"{EXP} --run-dir other --replace", ["'other'", "not a run", "--run-dir"]),
    "replace a run that holds another": (
        "train.py", f"{EXP} --run-dir outer --replace", ["'outer'", "'outer/inner'", "move it"],
    ),
    "profile after the end": (
        "train.py", f"{EXP} --log.profile-at 11", ["log.profile_at=11", "train.steps=10", "--log.profile-at 5"],
    ),
    "resume another architecture": (
        "train.py", f"{EXP} --resume old --model.dim 64", ["model.dim=64", "32", "old", "--run-dir"],
    ),
    "resume another mixer": (
        "train.py", f"{EXP} --resume old --model.pattern.0.mixer.num-heads 4",
        ["model.pattern.0.mixer.num_heads=4", "2", "--run-dir"],
    ),
    "resume nothing": ("train.py", f"{EXP} --resume nowhere", ["'nowhere'", "does not exist"]),
    "resume and replace": ("train.py", f"{EXP} --resume old --replace", ["--resume", "--replace", "one of them"]),
    "resume without saying what": ("train.py", "--resume", ["--resume", "RUN_DIR"]),
    "damaged config.json": ("train.py", "--resume damaged", ["config.json", "line 1", "restore"]),
    "wrong type in config.json": ("train.py", "--resume typed", ["model.dim='wide'", "int"]),
    "describe on impossible devices": (
        "-m seqmodels.describe", f"{EXP} --mesh.fsdp 4 --devices 6", ["--devices 6", "4", "multiple"],
    ),
    "describe what cannot be built": (
        "-m seqmodels.describe", f"{EXP} --model.dim 30", ["model.pattern.0.mixer", "num_heads=2", "divisor"],
    ),
    "no run": ("-m seqmodels.generate", "--run olt --prompt x", ["'olt'", "did you mean 'old'"]),
    "run without checkpoint": ("-m seqmodels.generate", "--run old --prompt x", ["old", "no usable checkpoint"]),
    "not a run": ("-m seqmodels.generate", "--run other --prompt x", ["'other'", "config.json"]),
    "no prompt": ("-m seqmodels.generate", "--run old", ["--prompt", "--prompts-file"]),
    "empty line among the prompts": (
        "-m seqmodels.generate", "--run old --prompts-file prompts.txt",
        ["'prompts.txt' line 2", "''", "one character"],
    ),
    "prompts are not UTF-8": (
        "-m seqmodels.generate", "--run old --prompts-file latin.txt", ["'latin.txt'", "byte 3", "UTF-8"],
    ),
    "top-p out of range": (
        "-m seqmodels.generate", "--run old --prompt x --top-p 1.5", ["top_p=1.5", "at most 1", "--top-p"],
    ),
    "negative temperature": (
        "-m seqmodels.generate", "--run old --prompt x --temperature -1", ["temperature=-1", "at least 0"],
    ),
    "nothing to make": (
        "-m seqmodels.generate", "--run old --prompt x --max-new-tokens 0", ["--max-new-tokens 0", "at least 1"],
    ),
    "option of the wrong type": (
        "-m seqmodels.generate", "--run old --prompt x --seed one", ["--seed", "'one'", "--help"],
    ),
    "unknown option": ("-m seqmodels.generate", "--run old --promt x", ["--promt", "did you mean '--prompt'"]),
    "unknown platform": ("-m seqmodels.generate", "--run old --prompt x --platform cuba", ["--platform", "'cuba'"]),
    "unknown task": ("-m eval.run", "--run old --tasks perplexty", ["'perplexty'", "did you mean 'perplexity'"]),
    "no task": ("-m eval.run", "--run old --tasks ,", ["--tasks", "','", "perplexity"]),
    "unknown field of a task": (
        "-m eval.run", "--run old --perplexity.strid 3", ["--perplexity.strid", "did you mean '--perplexity.stride'"],
    ),
    "bad field of a task": ("-m eval.run", "--run old --perplexity.stride 0", ["perplexity.stride=0", "at least 1"]),
    "eval without a run": ("-m eval.run", "--tasks recall", ["--run", "runs/quickstart"]),
}  # fmt: skip


def check(code: int, stderr: str, expected: list[str]) -> None:
    """The line is alone, starts with ``error:``, and says everything."""
    assert code == 2, stderr
    assert stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ") and "Traceback" not in stderr
    for part in expected:
        assert part in stderr, f"{part!r} is not in {stderr!r}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, place, capfd):
    command, arguments, expected = MISTAKES[mistake]
    main: Callable[[list[str]], int] = COMMANDS[command]
    before = contents(place)
    capfd.readouterr()
    code = main(arguments.split())
    check(code, capfd.readouterr().err, expected)
    assert contents(place) == before


def test_empty_prompt(place, capfd):
    check(seqmodels.generate.main(["--run", "old", "--prompt", ""]), capfd.readouterr().err, ["--prompt", "''"])


@pytest.mark.parametrize("mistake", ["unknown field", "run without checkpoint", "vocabulary too small", "unknown task"])
def test_mistake_in_a_process(mistake, place):
    """The same through the real command line, so that nothing else is printed to stderr either."""
    command, arguments, expected = MISTAKES[mistake]
    words = [str(ROOT / word) if word == "train.py" else word for word in command.split()]
    before = contents(place)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "SEQMODELS_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, "-B", *words, *arguments.split()],
        cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    check(done.returncode, done.stderr, expected)
    assert contents(place) == before


def test_a_run_that_cannot_be_written(place, capfd):
    (place / "file").write_text("in the way")
    code = train.main([*EXP.split(), "--run-dir", "file/run"])
    check(code, capfd.readouterr().err, ["file/run", "--run-dir"])
    assert (place / "file").read_text() == "in the way"


def test_a_failed_start_can_be_repeated(place, capfd):
    """What it leaves behind does not pass for a run."""
    for _ in range(2):
        code = train.main([*EXP.split(), "--data.paths", "empty", "--run-dir", "new"])
        check(code, capfd.readouterr().err, ["paths", "empty"])


def test_bugs_keep_their_traceback():
    def broken(argv):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        seqmodels.cli.command(broken)([])


def test_fields_that_may_change_on_resume(place):
    train.check_same_model(place / "old", override(load("exp.py"), ["--model.remat", "full", "--train.steps", "99"]))


def test_help_exits_cleanly(place, capsys):
    for arguments in (["--help"], [*EXP.split(), "--help"]):
        with pytest.raises(SystemExit) as end:
            train.main(arguments)
        assert end.value.code in (0, None)
        shown = capsys.readouterr().out
        assert "--resume" in shown and ("--model.dim" in shown) == (len(arguments) > 1)

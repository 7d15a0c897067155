"""From a config file to a trained, resumed, sampled and evaluated model, through the command lines alone."""

import json
import lzma
import re
import zlib
from collections.abc import Callable

import pytest

import eval.run
import seqmodels.generate
import train
from seqmodels.data.text import TextFiles
from seqmodels.runs import load_experiment, load_run

EXPERIMENT = """
from seqmodels.data.text import TextFiles
from seqmodels.mixers.hgrn import HGRNConfig
from seqmodels.models import BlockConfig, LMConfig
from seqmodels.train.experiment import Experiment, OptimConfig, TrainConfig


def get_config():
    return Experiment(
        name="tiny",
        model=LMConfig(dim=16, depth=1, pattern=(BlockConfig(HGRNConfig(), mlp=None),)),
        data=TextFiles(paths=("texts",), seq_len=32),
        optim=OptimConfig(warmup_steps=1),
        train=TrainConfig(steps=4, batch_size=8, eval_batches=1, sample_tokens=8),
    )
"""
TEXT = "the quick brown fox jumps over the lazy dog\n" * 300


def call(main: Callable[[list[str]], int], words: str) -> int:
    return main(words.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "exp.py").write_text(EXPERIMENT)
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text(TEXT)
    return folder


@pytest.mark.slow
def test_train_resume_generate_evaluate(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    assert call(train.main, "--config exp.py --model.dim 32 --platform cpu") == 0
    shown = capfd.readouterr().out.splitlines()
    ours = re.fullmatch(r"held-out bits per byte: (\d+\.\d\d)", shown[-1])
    assert ours
    held_out = TextFiles(paths=("texts",), seq_len=32).bytes_of("test")
    for name, size in {"zlib": len(zlib.compress(held_out, 9)), "lzma": len(lzma.compress(held_out, preset=9))}.items():
        assert f"{name} on the same files: {8 * size / len(held_out):.2f} bits per byte" in shown
    assert any(line.startswith("--- sample") for line in shown)
    assert load_experiment("runs/tiny").model.dim == 32
    assert load_run("runs/tiny").step == 4

    # the run stays; --resume goes on where it stopped, from its own config.json
    assert call(train.main, "--config exp.py --model.dim 32") == 2
    assert "holds a run already" in capfd.readouterr().err
    assert call(train.main, "--resume runs/tiny --train.steps 6") == 0
    shown = capfd.readouterr().out
    assert "after step 4" in shown
    assert load_run("runs/tiny").step == 6 and load_experiment("runs/tiny").train.steps == 6
    final = float(shown.splitlines()[-1].rpartition(" ")[2])

    assert call(seqmodels.generate.main, "--run runs/tiny --prompt the --max-new-tokens 9 --greedy") == 0
    alone = capfd.readouterr().out
    assert alone.startswith("the")
    (folder / "prompts.txt").write_text("the\nquick brown\n")
    words = "--run runs/tiny --prompts-file prompts.txt --max-new-tokens 9 --greedy"
    assert call(seqmodels.generate.main, words) == 0
    first, second, _ = capfd.readouterr().out.split("\n---\n")
    assert first == alone.rstrip("\n") and second.startswith("quick brown")

    words = "--run runs/tiny --tasks perplexity,passkey --json all.json --passkey.lengths 128 --passkey.examples 5"
    assert call(eval.run.main, words) == 0
    assert "perplexity/bits_per_byte" in capfd.readouterr().out
    report = json.loads((folder / "all.json").read_text())
    assert report["perplexity"]["results"]["perplexity/bits_per_byte"] == pytest.approx(final, abs=0.006)
    assert report["passkey"]["task"]["lengths"] == [128] and report["passkey"]["step"] == 6
    for name in ("perplexity", "passkey"):
        assert json.loads((folder / f"runs/tiny/eval/{name}.json").read_text()) == report[name]
        assert (folder / f"runs/tiny/eval/{name}.png").read_bytes()[:4] == b"\x89PNG"

    # asked to, it starts again
    assert call(train.main, "--config exp.py --model.dim 32 --train.steps 2 --replace") == 0
    assert load_run("runs/tiny").step == 2 and not (folder / "runs/tiny/eval").exists()

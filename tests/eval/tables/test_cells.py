"""A sweep runs what is not finished, keeps what is, and continues what was stopped bit for bit."""

import dataclasses
import json
import signal
import subprocess
import sys

import pytest

from eval.tables.cells import DIVERGED, RESULT, Cell, Interrupted, Store, slug, sweep
from eval.tables.training import Training
from seqmodels.errors import UserError
from seqmodels.train.experiment import CheckpointConfig
from seqmodels.train.loop import Trainer
from tests.eval.tables.jobs import Square, cell
from tests.train.tiny import ParameterCount, tiny_experiment


def runs(store, name):
    return (store.cells / name / "runs.txt").read_text().count("run")


def test_a_finished_cell_is_not_run_again(tmp_path):
    store, said = Store(tmp_path), []
    sweep([cell(2)], store, say=said.append)
    sweep([cell(2), cell(3)], store, say=said.append)
    assert runs(store, "square_2") == runs(store, "square_3") == 1
    assert said[0] == "cell 1 of 1: square_2" and said[1] == "1 of 2 cells are finished already"
    assert said[2].startswith("cell 2 of 2, ETA 0:00: square_3")


def test_a_result_says_where_it_comes_from(tmp_path):
    store = Store(tmp_path)
    sweep([cell(2)], store, say=str)
    result = store.result(cell(2))
    assert result["metrics"] == {"square/value": 4.0, "valid/accuracy": 2.0}
    assert result["labels"] == {"number": 2, "seed": 0} and result["seed"] == 0 and not result["resumed"]
    assert len(result["digest"]) == 64 and result["seconds"] >= 0 and result["date"].startswith("20")
    assert {"device", "cores", "commit", "versions", "platform"} <= set(result["machine"])


def test_a_changed_config_is_an_error_until_it_is_replaced(tmp_path):
    store = Store(tmp_path)
    sweep([cell(2, name="a"), cell(3, name="b")], store, say=str)
    changed = [cell(2.5, name="a"), cell(3, name="b")]
    with pytest.raises(UserError, match=r"cell 'a' in .* another config \(number was 2, now 2.5\); add --replace") as e:
        sweep(changed, store, say=str)
    assert "\n" not in str(e.value)
    assert store.result(cell(2, name="a"))["metrics"]["square/value"] == 4.0, "nothing is lost before --replace"
    sweep(changed, store, replace=True, say=str)
    assert store.result(changed[0])["metrics"]["square/value"] == 6.25
    assert runs(store, "b") == 1, "a cell that did not change is kept"


def test_a_field_that_is_new_since_changes_nothing(tmp_path):
    store = Store(tmp_path)
    sweep([cell(2)], store, say=str)
    file = store.cells / "square_2" / "config.json"
    saved = json.loads(file.read_text())
    del saved["fails"]
    file.write_text(json.dumps(saved))
    assert store.change(cell(2)) is None
    file.write_text(json.dumps(saved | {"gone": 1}))
    assert "no field 'gone'" in (store.change(cell(2)) or "")


def test_a_damaged_result_of_a_kill_is_impossible(tmp_path):
    """Results appear whole: what a kill leaves behind has another name."""
    store = Store(tmp_path)
    sweep([cell(2)], store, say=str)
    assert sorted(path.name for path in (store.cells / "square_2").iterdir()) == ["config.json", RESULT, "runs.txt"]


def test_cells_that_another_process_runs_are_left_to_it(tmp_path):
    """The lock is one of the system, so that a killed process leaves nothing behind."""
    store = Store(tmp_path)
    hold = (
        "import pathlib, sys; from eval.tables.cells import Store; from tests.eval.tables.jobs import cell\n"
        "with Store(pathlib.Path(sys.argv[1])).hold(cell(2)) as held: print(held, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "True\n"
        assert sweep([cell(2), cell(3)], store, say=str) == ["square_2"]
        assert store.result(cell(2)) is None and store.result(cell(3)) is not None
        other.kill()
    assert sweep([cell(2), cell(3)], store, say=str) == []
    assert store.result(cell(2)) is not None and runs(store, "square_3") == 1


def test_a_cell_that_runs_is_not_replaced(tmp_path):
    store = Store(tmp_path)
    sweep([cell(2, name="a")], store, say=str)
    with store.hold(cell(2, name="a")) as held, pytest.raises(UserError, match="by a process that still runs; stop it"):
        assert held
        sweep([cell(3, name="a")], store, replace=True, say=str)
    assert store.result(cell(2, name="a")) is not None


def test_divergence_is_a_result(tmp_path):
    store = Store(tmp_path)
    sweep([cell(1, "diverges"), cell(2)], store, say=str)
    assert store.result(cell(1))["metrics"] == {DIVERGED: 1.0}
    assert store.result(cell(2)) is not None


def test_a_signal_stops_the_sweep_and_the_next_goes_on(tmp_path):
    store, cells = Store(tmp_path), [cell(1), cell(2, "signal"), cell(3)]
    with pytest.raises(Interrupted, match="SIGTERM"):
        sweep(cells, store, say=str)
    assert [store.result(c) is None for c in cells] == [False, True, True]
    sweep(cells, store, say=str)
    assert [runs(store, c.name) for c in cells] == [1, 2, 1]
    assert [store.result(c)["resumed"] for c in cells] == [False, True, False]


def test_stopped_training_continues_bit_for_bit(tmp_path, monkeypatch):
    experiment = tiny_experiment(checkpoint=CheckpointConfig(every=4, keep_last=1), eval=(ParameterCount(),))
    trained = Cell("trained", {"seed": 0}, Training(experiment))
    sweep([trained], Store(tmp_path / "whole"), say=str)
    whole = Store(tmp_path / "whole").result(trained)

    measure = Trainer.measure

    def stop_at_seven(self, batch, metrics):
        measure(self, batch, metrics)
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "measure", stop_at_seven)
    store = Store(tmp_path / "stopped")
    with pytest.raises(Interrupted, match="SIGTERM"):
        sweep([trained], store, say=str)
    assert store.begun(trained) and store.result(trained) is None
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "measure", lambda self, *a: (measure(self, *a), resumed.append(self.step))[0])
    resumed = []
    sweep([trained], store, say=str)
    assert resumed == [8, 9, 10, 11, 12], "the finished steps are not run again"
    result = store.result(trained)
    assert result["metrics"] == whole["metrics"] and result["digest"] == whole["digest"]
    assert {"valid/loss", "count/parameters", "model/parameters", "model/state_bytes"} <= set(result["metrics"])
    assert result["metrics"]["model/parameters"] == result["metrics"]["count/parameters"]
    assert not any("second" in name or "mfu" in name for name in result["metrics"])
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=13))
    with pytest.raises(UserError, match=r"experiment.train.steps was 12, now 13\); add --replace"):
        sweep([Cell("trained", {"seed": 0}, Training(longer))], store, say=str)


def test_names_and_labels():
    assert slug("mqar", "GatedDeltaNet", "3:1", 2e-3, "s0") == "mqar_gateddeltanet_3-1_0.002_s0"
    with pytest.raises(ValueError, match=r"name='a/b' is no file name"):
        Cell("a/b", {"seed": 0}, Square(1))
    with pytest.raises(ValueError, match="need 'seed'"):
        Cell("a", {"number": 1}, Square(1))
    with pytest.raises(ValueError, match="no slash"):
        Cell("a", {"seed": 0, "x/y": 1}, Square(1))

"""Command lines of tables: what they write, and how they exit."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from eval.tables import command, hybrid
from eval.tables.claims import Claim, Finding
from eval.tables.command import entry
from eval.tables.rows import from_csv
from tests.eval.tables.jobs import table


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "COMMITTED", tmp_path / "committed")
    return tmp_path


def test_a_sweep_writes_csv_markdown_and_figure(folder, capsys):
    assert entry(table())([]) == 0
    out = folder / "runs/tables/squares/laptop"
    assert [row["square/value"] for row in from_csv((out / "results.csv").read_text())] == [1.0, 4.0]
    text = (out / "table.md").read_text()
    assert "| 2 | 4.000 |" in text and "**holds**: Squares grow (Euclid). 1.000 and 4.000" in text
    assert "scale laptop; 2 of 2 cells; " in text and "jax=" in text
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert text in capsys.readouterr().out
    assert not (folder / "committed").exists(), "only --publish does that"


def test_publish_and_check(folder, capsys):
    assert entry(table())(["--publish"]) == 0
    where = folder / "committed/squares/laptop"
    assert sorted(path.name for path in where.iterdir()) == ["figure.png", "results.csv", "table.md"]
    capsys.readouterr()
    assert entry(table())(["--check"]) == 0
    assert "**holds**" in capsys.readouterr().out
    csv = where / "results.csv"
    csv.write_text(csv.read_text().replace("4.0", "0.5"))
    with pytest.raises(SystemExit) as exit:
        entry(table())(["--check"])
    assert exit.value.code == 1
    shown = capsys.readouterr().out
    assert "**fails**: Squares grow (Euclid). 1.000 and 0.500" in shown
    assert "of 1 asserted claims: holds 0, fails 1, not measured 0; 1 more are only reported" in shown
    assert "**reported**: Reported (ours). No: x" in shown, "what is only reported never fails"


def test_missing_cells_fail_a_check_unless_cells_were_chosen(folder, capsys):
    assert entry(table())(["--cells", "square_1"]) == 0
    assert "**not measured**: Squares grow (Euclid). Missing: number=2." in capsys.readouterr().out
    assert entry(table())(["--check", "--out", "runs/tables/squares/laptop", "--cells", "*"]) == 0
    with pytest.raises(SystemExit) as exit:
        entry(table())(["--check", "--out", "runs/tables/squares/laptop"])
    assert exit.value.code == 1


def test_steps_are_compiled_for_a_slice_and_nothing_runs(folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "compile_report", lambda experiment, topology: f"{experiment.name} on {topology}")
    found = hybrid.TABLE.cells("tiny")[:2]
    assert entry(dataclasses.replace(hybrid.TABLE, cells=lambda scale: found))(["--compile", "v5e:2x2"]) == 0
    assert capsys.readouterr().out == "".join(f"{cell.name} on v5e:2x2\n" for cell in found)
    assert not (folder / "runs").exists()
    assert entry(table())(["--compile", "v5e:2x2"]) == 2
    assert "no cell trains an experiment" in capsys.readouterr().err


def test_a_failed_claim_fails_the_sweep_too_but_all_is_written(folder):
    wrong = dataclasses.replace(table(), claims=(Claim("No", "nobody", lambda rows: Finding(False, "no")),))
    with pytest.raises(SystemExit) as exit:
        entry(wrong)(["--publish"])
    assert exit.value.code == 1
    assert (folder / "committed/squares/laptop/table.md").exists()


def test_a_signal_ends_with_130_and_the_same_command_goes_on(capsys):
    interrupted = table((1, 2), fails="signal")
    assert entry(interrupted)([]) == 130
    assert "stopped by SIGTERM; the same command goes on from here" in capsys.readouterr().out
    assert entry(interrupted)(["--list"]) == 0
    assert capsys.readouterr().out == "finished    square_1\nbegun       square_2\n"
    assert entry(interrupted)([]) == 0


def test_list_runs_nothing(folder, capsys):
    assert entry(table())(["--list", "--cells", "*2"]) == 0
    assert capsys.readouterr().out == "to do       square_2\n"
    assert not (folder / "runs").exists()
    entry(table())([])
    changed = table((1, 2), fails="diverges")
    capsys.readouterr()
    assert entry(changed)(["--list"]) == 0
    assert capsys.readouterr().out == "finished    square_1\noutdated    square_2\n"
    assert entry(changed)([]) == 2
    assert "cell 'square_2' in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "huge"], "--scale: invalid choice: 'huge'"),
        (["--cell", "a"], "argument '--cell' is not known; did you mean '--cells'?"),
        (["--cells", "nothing*"], "--cells 'nothing*' matches none of 2 cells"),
        (["--cells", "square_11"], "did you mean 'square_1'?"),
        (["--check"], "--check: no results in"),
        (["--check", "--replace"], "--check and --replace contradict each other"),
        (["--out", "file"], "--out 'file' is a file; give a directory"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, message):
    (folder / "file").touch()
    assert entry(table())(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")


def test_equal_names_are_a_mistake_of_the_table():
    with pytest.raises(ValueError, match="have one name"):
        entry(table((1, 1)))([])


def test_all_tables_are_listed():
    folder = Path(command.__file__).parent
    listing = [sys.executable, "-m", "eval.tables"]
    shown = subprocess.run(listing, capture_output=True, text=True, check=True, cwd=folder.parents[1]).stdout
    names = {file.stem for file in folder.glob("*.py") if "\nTABLE = " in file.read_text(encoding="utf-8")}
    assert {line.split()[2].removeprefix("eval.tables.") for line in shown.splitlines()} == names
    assert len(names) >= 11

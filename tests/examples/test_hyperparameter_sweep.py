"""The sweep example runs as its readers run it, only with fewer settings."""

import pytest

pytest.importorskip("sklearn")

from examples import hyperparameter_sweep


def test_settings_are_different_and_the_same_for_the_same_seed():
    drawn = hyperparameter_sweep.settings(20, seed=3)
    assert len({str(setting) for setting in drawn}) == 20
    assert drawn == hyperparameter_sweep.settings(20, seed=3)


def test_more_settings_than_the_grid_holds_means_the_whole_grid():
    assert len(hyperparameter_sweep.settings(1000)) == 96


def test_the_sweep_prints_the_settings_best_first(capsys):
    hyperparameter_sweep.main(["--settings", "3"])
    printed = capsys.readouterr().out
    accuracies = [float(line.split()[0]) for line in printed.splitlines() if " +- " in line]
    assert len(accuracies) == 3
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.85

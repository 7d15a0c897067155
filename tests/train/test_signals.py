"""A signal is noted until somebody agrees to it, and is never lost."""

import signal

import pytest

from seqmodels.train.signals import StopRequest


def test_a_signal_that_was_agreed_to_is_over():
    with StopRequest() as stop:
        assert not stop.agreed(1, every=1)
        signal.raise_signal(signal.SIGINT)
        assert stop.agreed(2, every=1) and stop.received == "SIGINT"


def test_a_signal_that_came_too_late_to_be_agreed_to_comes_again():
    """After the last step, during the last evaluation say."""
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert not stop.agreed(1, every=1)
        signal.raise_signal(signal.SIGINT)


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="mine"), StopRequest():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")

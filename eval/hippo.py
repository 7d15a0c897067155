"""The job of the HiPPO table: what a memory of one basis and step size knows of its past, without any training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float

from seqmodels.errors import UserError
from seqmodels.ops import hippo


@dataclasses.dataclass(frozen=True)
class Memory:
    """A HiPPO measure that runs over band-limited noise of unit power.

    Metrics, where 1 means that nothing is known: ``delay/error``, of the best linear read-out of the input `lag`
    samples ago; ``reconstruction/error``, the relative square error of the last `lag` samples as the basis decodes
    them. Both also as logarithms of base 10, ``delay/log_error`` and ``reconstruction/log_error``.
    """

    measure: str
    """See `ops.hippo.Measure`."""
    state_size: int
    lag: int
    """In samples."""
    step: float
    """Step size times `lag`: a window measure of half speed, such as LegT, remembers ``2 / step`` lags."""
    delay_band: float = 0.5
    """Share of the frequencies up to Nyquist's that the delayed input holds."""
    reconstruction_band: float = 0.1
    """The same of the reconstructed input."""
    signals: int = 16
    """Reconstructed signals."""

    def __post_init__(self) -> None:
        if self.lag < 1 or self.signals < 1 or not self.step > 0:
            raise UserError(
                f"lag={self.lag}, signals={self.signals}, step={self.step} of Memory must be positive; raise them"
            )

    def run(self, directory: Path) -> dict[str, float]:
        dt = self.step / self.lag
        errors = {
            "delay": hippo.delay_error(self.measure, self.state_size, self.lag, dt, band=self.delay_band),
            "reconstruction": self.reconstruction_error(dt),
        }
        found = {f"{name}/error": value for name, value in errors.items()}
        return found | {f"{name}/log_error": float(np.log10(value)) for name, value in errors.items()}

    def reconstruction_error(self, dt: float) -> float:
        """Of the last `lag` samples of signals that are eight times as long."""
        signal = band_limited(self.signals, 8 * self.lag, self.reconstruction_band)
        state = hippo.memory(self.measure, self.state_size, signal, dt)[:, -1]
        lags = hippo.sample_lags(self.lag, dt)
        found = hippo.reconstruct(state, self.measure, lags)
        return float(np.mean((found - signal[:, -self.lag :]) ** 2))


def band_limited(count: int, length: int, band: float, seed: int = 0) -> Float[np.ndarray, "count length"]:
    """Random signals of unit power with all frequencies up to a share `band` of Nyquist's."""
    random = np.random.default_rng(seed)
    size = length // 2 + 1
    spectrum = random.normal(size=(count, size)) + 1j * random.normal(size=(count, size))
    spectrum[:, int(band * (size - 1)) + 1 :] = 0
    signal = np.fft.irfft(spectrum, length)
    return signal / np.sqrt(np.mean(signal**2, axis=1, keepdims=True))

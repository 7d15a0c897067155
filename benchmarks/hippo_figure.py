"""Draw what each HiPPO basis remembers of a signal: ``python -m benchmarks.hippo_figure``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from seqmodels.ops import hippo

PANELS = (
    ("legs", "LegS: exponentially weighted past"),
    ("legt", "LegT: Legendre, last window"),
    ("lmu", "LMU: the same window in its own scaling"),
    ("fourier", "FouT: Fourier, last window"),
    ("fourier_decay", "Fourier decay: past wrapped on a period"),
    ("fourier_diag", "FouD: wrapped, weight exp(-s/2)"),
    ("tlagt", "LagT, tilted: weight exp(-s)"),
    ("lagt", "LagT: flat weight"),
)
OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "figures" / "hippo_reconstruction.png"


def signal_of(ages: np.ndarray) -> np.ndarray:
    """A smooth signal without symmetry or period; `ages` are in windows before now."""
    phase = 2 * np.pi * ages
    return np.sin(0.8 * phase + 0.4) + 0.45 * np.sin(2.3 * phase) + 0.25 * np.cos(4.1 * phase + 1.0)


def remembered(name: str, n: int, past: float, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ages, inputs and decoded values at `length` samples that cover `past` windows; 1 window is two time scales."""
    measure = hippo.Measure(name)
    window = measure.window if np.isfinite(measure.window) else 2.0
    dt = past * window / length
    lags = hippo.sample_lags(length, dt)
    signal = signal_of(lags / window)
    state = hippo.memory(measure, n, signal, dt)[-1]
    return lags / window, signal, hippo.reconstruct(state, measure, lags)


def remembered_scaled(n: int, past: float, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for LegS in its scale-invariant form."""
    ages = hippo.sample_lags(length, past / length)
    signal = signal_of(ages)
    state = hippo.scaled_memory(n, signal)[-1]
    return ages, signal, hippo.reconstruct(state, "legs", -np.log1p(-ages / past))


def draw(path: Path, n: int, past: float = 2.0, length: int = 1200) -> None:
    """Write the figure: one panel per basis, the input in grey and its decoding from `n` numbers in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = [("LegS, scaled: whole past alike", *remembered_scaled(n, past, length))]
    curves += [(title, *remembered(name, n, past, length)) for name, title in PANELS]
    figure, axes = plt.subplots(3, 3, figsize=(11, 6.4), sharex=True, sharey=True, constrained_layout=True)
    for axis, (title, ages, signal, decoded) in zip(axes.flat, curves):
        inside = decoded != 0
        axis.plot(-ages, signal, color="0.65", linewidth=2.5, label="input")
        axis.plot(-ages[inside], decoded[inside], color="tab:red", linewidth=1.2, label="remembered")
        axis.set_title(title, fontsize=9)
        axis.set_ylim(-2.4, 2.4)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("time in windows (0 is now)")
    axes[0, 0].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"What {n} numbers remember of the past")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write the PNG")
    parser.add_argument("--n", type=int, default=32, help="state size, even")
    options = parser.parse_args()
    draw(options.output, options.n)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()

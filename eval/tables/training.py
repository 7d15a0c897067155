"""The job of most cells: train an experiment, and measure what its evaluation tasks measure."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from eval.tables.cells import Cell, Interrupted, slug
from seqmodels.describe import Parameter, abstract_partitioner, parameters
from seqmodels.mixers.mixture_of_memories import MixtureOfMemoriesConfig
from seqmodels.models import LMConfig, ModelConfig
from seqmodels.sharding import MeshConfig
from seqmodels.train.experiment import Experiment
from seqmodels.train.loop import fit


@dataclasses.dataclass(frozen=True)
class Training:
    """Train `experiment`, whose ``eval`` tasks run at the end.

    Metrics: the held-out ones (``valid/…``), those of the tasks, the newest ``stat/…``, and `costs`. Nothing that
    depends on the clock: an interrupted and resumed job gives what an undisturbed one does, bit for bit.
    """

    experiment: Experiment

    def run(self, directory: Path) -> dict[str, float]:
        run_dir = directory / "run"
        result = fit(self.experiment, run_dir, resume=(run_dir / "config.json").is_file())
        if result.stopped_by is not None:
            raise Interrupted(result.stopped_by)
        kept = {k: v for k, v in result.metrics.items() if "/" in k and not k.startswith("slice/")}
        return costs(self.experiment.model, self.experiment.data.seq_len) | kept


def trainings(
    experiment: Callable[..., Experiment], rates: Sequence[float], seeds: int, **labels: Iterable[str]
) -> list[Cell]:
    """A cell for every combination of labels, learning rate and seed: ``experiment(*labels, rate, seed, name)``."""
    found = []
    for *chosen, rate, seed in itertools.product(*labels.values(), rates, range(seeds)):
        name = slug(*chosen, rate, f"s{seed}")
        job = Training(experiment(*chosen, rate, seed, name))
        found.append(Cell(name, dict(zip(labels, chosen)) | {"learning_rate": rate, "seed": seed}, job))
    return found


def costs(model: ModelConfig, length: int) -> dict[str, float]:
    """What a model costs at `length` tokens, without allocating it.

    ``model/parameters``; ``model/activated_parameters``, those that a token uses; ``model/flops_per_token`` (forward, a
    multiply-add counts two); ``model/state_bytes`` per sequence, of a language model.
    """
    arrays = parameters(model, abstract_partitioner(MeshConfig(data=1)))
    found = {
        "model/parameters": float(sum(array.size for array in arrays)),
        "model/activated_parameters": sum(array.size * used(model, array) for array in arrays),
        "model/flops_per_token": model.flops_per_token(length),
    }
    if isinstance(model, LMConfig):
        found["model/state_bytes"] = float(model.make().state_bytes(length))
    return found


def used(model: ModelConfig, array: Parameter) -> float:
    """The share of `array` that a token uses: one unless there is a part of it for every memory."""
    block = re.search(r"/block_(\d+)/", array.path)
    if "expert" not in array.axes or block is None:
        return 1.0
    mixer = model.pattern[int(block.group(1))].mixer
    return mixer.top_k / mixer.num_memories if isinstance(mixer, MixtureOfMemoriesConfig) else 1.0

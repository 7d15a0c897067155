"""Trains the tiny experiment: ``python -m tests.train.child RUN_DIR [--resume] [--train.steps 5 ...]``.

``--hybrid`` takes a model with both kinds of blocks, ``--slow-seal SECONDS`` keeps every checkpoint unfinished for
that long. Exit codes are those of the command lines.
"""

import argparse
import sys
import time

from seqmodels import cli
from seqmodels.config import override
from seqmodels.train import checkpoint
from seqmodels.train.loop import fit
from tests.train.tiny import HYBRID, tiny_experiment, tiny_model


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("run_dir")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--hybrid", action="store_true")
    parser.add_argument("--slow-seal", type=float, default=0.0)
    own, rest = parser.parse_known_args(argv)
    if own.slow_seal:
        seal = checkpoint.write_manifest
        checkpoint.write_manifest = lambda *args: (time.sleep(own.slow_seal), seal(*args))[1]
    experiment = tiny_experiment(model=tiny_model(pattern=HYBRID)) if own.hybrid else tiny_experiment()
    fit(override(experiment, rest), own.run_dir, resume=own.resume)


if __name__ == "__main__":
    sys.exit(cli.command(main)())

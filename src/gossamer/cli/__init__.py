"""The command line: each verb is a function, whose signature and docstring are the command's options and help.

A user's mistake, however it is noticed, becomes one line on standard error and exit status 2. Nothing heavy is imported
before it is known which verb runs, so that `gossamer --help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from gossamer.cli.chips import certify, doctor, plan
from gossamer.cli.command_line import run
from gossamer.cli.generation import chat, sample, serve
from gossamer.cli.runs import eval, export, report, train
from gossamer.cli.shared import Verb
from gossamer.cli.tune import tune

# Environment variables of the process, unless the user has set them. PyTorch reads them when it is imported.
ENVIRONMENT = {
    # On a machine that others use too, threads that spin for long while they wait for one another made a training step
    # ten times slower when it was measured; on an idle machine this costs a few percent.
    "GOMP_SPINCOUNT": "1000",
}

VERBS: dict[str, Verb] = {
    verb.__name__: verb for verb in (train, tune, sample, eval, report, export, serve, chat, plan, doctor, certify)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, the process's own if none is given, and return its exit status.

    Returns:
        0 for success, 1 for a device that is not certified or a model that tuning has made worse, 2 for a mistake, 130
        if interrupted, 141 for a closed pipe.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return run(VERBS, argv)

"""A program that saves checkpoints until it is killed; `commit_test` starts and kills it.

python -m tests.training.saving_child DIR

For each line of standard input it forks a process, which goes on from the newest checkpoint.
"""

import os
import sys
import warnings

from etils import epath

from linear_transformer.training.checkpoints import Checkpoints
from tests.training import checkpoints_test, runs

KEEP = 2


def save_for_ever(workdir: str) -> None:
    checkpoints = Checkpoints(epath.Path(workdir), KEEP)
    restored = checkpoints.restore(checkpoints_test.make_state(0))
    step = 0
    if restored is not None:
        state, progress = restored
        step = progress["step"]
        runs.assert_same_state(state, checkpoints_test.make_state(step))
    print(f"restored {step}", flush=True)
    while True:
        step += 1
        checkpoints.save(
            step, checkpoints_test.make_state(step), checkpoints_test.progress_of(step)
        )
        print(f"saved {step}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*os.fork.*")
    for _ in sys.stdin:
        if child := os.fork():
            print(f"started {child}", flush=True)
            os.waitpid(child, 0)
            print("ended", flush=True)
        else:
            save_for_ever(sys.argv[1])

"""What rounding alone does to the golden curves: where test_learning.py's bands come from.

    python tests/population.py [MEMBERS]           # 40; with DAMAGES=1 of each damaged stage, too

Another processor, torch or number of threads adds the same numbers in another order. Here every
stage of a member starts from weights changed by a millionth of themselves, once with one thread and
once with two. All have the test's own --seed 0: another seed is another experiment.
"""
import os
import statistics
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import village
from conftest import SIZE  # (which also finds the scripts)
from test_learning import BANDS, DAMAGES, figure, train
from test_sft import log_of

import model


def nudged(script, member):
    """Let a script's networks start a millionth away, each member's elsewhere."""
    honest = script.adam

    def adam(networks, *args, **more):
        draw = torch.Generator().manual_seed(member)
        with torch.no_grad():
            for p in (p for network in networks for p in network.parameters()):
                p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=draw))
        return honest(networks, *args, **more)
    return lambda patch: patch.setattr(script, "adam", adam)


def main(members):
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        town = village.settle(Path(folder) / "village")
        for member in range(members):
            torch.set_num_threads(1 + member % 2)
            home = Path(folder) / str(member)
            home.mkdir()
            (home / "village").symlink_to(town)
            runs = [("", stage, lambda patch: None) for stage in village.STAGES]
            if "DAMAGES" in os.environ:
                runs += [(name, stage, damage) for name, (stage, damage, _) in DAMAGES.items()]
            for name, stage, damage in runs:
                with pytest.MonkeyPatch.context() as patch:
                    nudged(village.STAGES[stage][0], member)(patch)
                    damage(patch)
                    log = log_of(train(stage, home, home / name.replace(" ", "-")))
                for s, key, when in BANDS:
                    if s == stage:
                        seen.setdefault((name, s, key, when), []).append(figure(log, key, when))
    for (name, *place), values in seen.items():
        print(f"{name:32} {str(tuple(place)):38} {min(values):.5g} .. {statistics.median(values):.5g}"
              f" .. {max(values):.5g}   band {BANDS[tuple(place)]}")


if __name__ == "__main__":
    model.SIZES["tiny"] = SIZE
    main(int(sys.argv[1]) if sys.argv[1:] else 40)

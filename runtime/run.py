"""A training run's folder: config.json, log.jsonl, state/ while training, model.pt at the end."""
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import time
import warnings

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from runtime.files import config_of, in_brief, read_log, save_tensors, sync, write, write_config
from runtime.flags import Diverged, Problem, spelled
from runtime.health import examine, stage_of
from runtime.world import bare, lock, whole

CLAIMED = {}       # folders that this process trains in: {(inode, device): open handle}


def claim(folder):
    """Lock a folder for this process: workers that outlive a killed torchrun may still write."""
    known = os.stat(folder)[1:3]
    if known in CLAIMED:
        return
    try:
        CLAIMED[known] = lock(folder)
    except (BlockingIOError, PermissionError):
        raise Problem(f"{folder}: another process still trains there: wait for it, or end it, "
                      "then give the same command again") from None
    except OSError as error:
        print(f"warning: {folder} cannot be locked ({error.strerror}): see to it that nothing else "
              "trains there", file=sys.stderr)


def check_sizes(folder):
    """Raise unless a state's files are as long as its done.json says."""
    for name, size in json.loads((folder / "done.json").read_text("utf-8")).items():
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} is not {size} bytes long")


# Flags that change how fast a run goes or where it lives, but not what it computes.
FREE = {"out", "resume", "device", "parallel", "compile", "checkpointing",
        "save_every", "micro_batch", "rollout_batch"}


class Run:
    """A training run's folder, its progress bar, and what Ctrl-C does; sft.py shows how to use it.

    The networks and their Adam are one state, saved and loaded together."""

    def __init__(self, cfg, world, modules, optimizer, **described):
        """Claims the folder. Raises: Problem if it holds a run, unless --resume and equal flags."""
        self.cfg, self.world, self.optimizer, self.described = cfg, world, optimizer, described
        self.modules = nn.ModuleDict({name: bare(network) for name, network in modules.items()})
        self.out = pathlib.Path(cfg.out)
        self.first, self.seconds, self.signal = 0, 0.0, 0
        self.lines, self.warned = [], set()
        started = bool(world.max(int((self.out / "config.json").exists())))
        if started and not cfg.resume:
            raise Problem(f"{self.out} already holds a run: add --resume to go on, or choose "
                          "another --out")
        if world.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            claim(self.out)
        if started:
            before = config_of(self.out)["flags"]
            for name, now in dataclasses.asdict(cfg).items():
                if name not in FREE and before.get(name, now) != now:
                    raise Problem(f"{self.out} was started with {spelled(name)} {before[name]}, "
                                  f"not {now}: type that, or choose another --out")
            if not self.finished:
                self._load()
            elif world.rank == 0:
                print(f"{self.out} is finished: nothing is left to do")
                shutil.rmtree(self.out / "state", ignore_errors=True)    # killed before tidying up
        elif world.rank == 0:
            write_config(self.out / "config.json", cfg, **self.described)

    @property
    def finished(self):
        """Whether an earlier call already wrote the final weights."""
        return (self.out / "model.pt").exists()

    def _state(self):
        """The weights of all networks and Adam's moments."""
        weights, moments = get_state_dict(self.modules, self.optimizer)
        return {"weights": weights, "adam": moments}

    def _check_finite(self, step):
        """Raises: Diverged, on every rank, when a weight of a network is no finite number."""
        for name, network in self.modules.items():
            parts = (p.to_local() if isinstance(p, DTensor) else p for p in network.parameters())
            if self.world.max(int(not all(bool(p.isfinite().all()) for p in parts))):
                raise Diverged(step, f"the weights of the {name} are not finite, and not saved")

    def _save_state(self, final):
        """Write a state as a folder that appears complete; the last two stay.

        done.json is its last file, and says how long the others are. The name that it has before
        says the step: a rank that outlives a killed run can only write there what it writes."""
        temporary, log = final.with_name(f"writing-{final.name[5:]}"), self.out / "log.jsonl"
        if self.world.rank == 0:
            for left in final.parent.glob("writing*"):           # by somebody who was killed
                shutil.rmtree(left, ignore_errors=True)
            if log.exists():                                     # a state needs the log before it
                sync(log)
        self.world.wait()
        try:
            with warnings.catch_warnings(action="ignore"):
                dcp.save(self._state(), checkpoint_id=temporary, no_dist=self.world.size == 1)
            if self.world.rank == 0:
                write(temporary / "done.json", {path.name: path.stat().st_size
                                                for path in temporary.iterdir()})
        except (OSError, RuntimeError, CheckpointException, Problem) as error:
            shutil.rmtree(temporary, ignore_errors=True)         # its half would keep the disk full
            raise Problem(f"{final} cannot be written ({in_brief(error)}); the state before it is "
                          "kept: make room, then --resume") from error
        if self.world.rank == 0:
            shutil.rmtree(final, ignore_errors=True)             # a damaged one of that name
            os.replace(temporary, final)
            sync(final.parent)
            sync(self.out)
            for old in sorted(final.parent.glob("step-*"))[:-2]:
                shutil.rmtree(old)
        self.world.wait()                              # nobody leaves before the state is in place

    def _load_state(self, folder):
        """Fill weights and Adam's moments, whatever number of processes wrote them."""
        state = self._state()
        with warnings.catch_warnings(action="ignore"):
            dcp.load(state, checkpoint_id=folder, no_dist=self.world.size == 1)
        set_state_dict(self.modules, self.optimizer, model_state_dict=state["weights"],
                       optim_state_dict=state["adam"])

    def _fault(self, act, folder):
        """What is wrong with a state, as act(folder) finds on this or another rank; "": nothing."""
        fault = ""
        try:
            act(folder)
        except (Exception, CheckpointException) as error:   # one of many kinds, for a damaged state
            fault = in_brief(error)
        found = self.world.max(int(bool(fault)))
        return (fault or "as another process finds") if found else ""

    def _load(self):
        """Go back to the newest undamaged state, and take later lines out of the log."""
        saved = sorted(path for path in self.out.glob("state/step-*") if path.name[5:].isdigit())
        for newest in reversed(saved):
            fault = self._fault(check_sizes, newest) or self._fault(self._load_state, newest)
            if not fault:
                self.first = int(newest.name[5:])
                break
            if newest == saved[0]:
                raise Problem(f"{newest} is damaged ({fault}), and there is no older one: start "
                              "again in another --out")
            if self.world.rank == 0:
                print(f"warning: {newest} is damaged ({fault}); going on from the state before it",
                      file=sys.stderr)
        log = self.out / "log.jsonl"
        if log.exists() and self.world.rank == 0:
            self.lines = [line for line in read_log(log)
                          if line["step"] < self.first and "event" not in line]
            self.seconds = float(self.lines[-1]["seconds"]) if self.lines else 0.0
            write(log, self.lines)

    def steps(self, total):
        """Yields the step numbers still to do, under a progress bar; Ctrl-C is noted, not obeyed
        yet: `save_if_due` obeys it, when the step is whole."""
        def note(number, frame):
            if self.signal and self.world.size == 1:   # a second Ctrl-C means now; but torchrun
                raise KeyboardInterrupt                # passes on what the terminal sent us already
            self.signal = self.signal or number
            if self.world.size == 1:
                self.bar.write("stopping when this step is done (again: at once)", file=sys.stderr)
        before = {s: signal.signal(s, note) for s in {           # not every system has SIGTERM
            signal.SIGINT, getattr(signal, "SIGTERM", signal.SIGINT)}}
        self.total, self.began = total, time.perf_counter() - self.seconds
        self.bar = self.world.bar(total, self.out.name, "step", leave=True, initial=self.first)
        try:
            for step in range(self.first, total):
                yield step
                self.bar.update()
        finally:
            self.bar.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def finite(self, step, name, numbers, advice):
        """Raises: Diverged when one of some numbers, which every rank has, is not finite."""
        if not numbers.isfinite().all():
            raise Diverged(step, f"{name} is not finite; nothing of this step was kept", advice)

    def log(self, step, **values):
        """One JSON line in log.jsonl, and the first few values after the progress bar."""
        self.seconds = time.perf_counter() - self.began
        if self.world.rank == 0:
            values = {k: v if math.isfinite(v) else None for k, v in values.items()}
            self.lines.append({"step": step, **values, "seconds": round(self.seconds, 3)})
            with open(self.out / "log.jsonl", "a", encoding="utf-8", newline="\n") as f:
                f.write(json.dumps(self.lines[-1]) + "\n")
            self._warn()
            shown = {k: f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}"
                     for k, v in list(values.items())[:6] if v is not None}
            self.bar.set_postfix(shown, refresh=False)

    def _warn(self):
        """Say once of each check that it fails on the log so far."""
        if len(self.lines) % (1 + len(self.lines) // 100):      # long logs: not after every line
            return
        flags = dataclasses.asdict(self.cfg)
        for finding in examine(stage_of(flags), self.lines, flags):
            if finding.check.name not in self.warned:
                self.warned.add(finding.check.name)
                self.bar.write(f"warning: {finding}; `python -m tools.doctor {self.out}` "
                               "says more", file=sys.stderr)

    def save_if_due(self, step):
        """Save weights, Adam and the step every `save_every` steps, and when asked to stop."""
        stop = self.world.max(self.signal)             # a signal to one rank is one to all
        if not stop and (step + 1) % self.cfg.save_every:
            return
        self._check_finite(step)
        self._save_state(self.out / "state" / f"step-{step + 1:08d}")
        if stop:
            self.bar.close()
            if self.world.rank == 0:
                print(f"stopped after step {step + 1} of {self.total}; the same command"
                      f"{'' if self.cfg.resume else ' with --resume'} goes on from there",
                      file=sys.stderr)
            raise SystemExit(128 + stop)

    def save(self, name, network):
        """Write a network's weights, gathered from all ranks, to `name`.pt in the run's folder."""
        weights = whole(bare(network), self.world)
        if self.world.rank == 0:
            save_tensors(self.out / f"{name}.pt", weights)

    def finish(self, **weights):
        """Write the final weights (name -> module; model.pt last: it marks the run as finished)."""
        self._check_finite(self.total - 1)
        if self.world.rank == 0:
            write_config(self.out / "config.json", self.cfg, **self.described,
                         seconds=round(self.seconds, 1), commit=config_of(self.out).get("commit"))
        for name, network in sorted(weights.items(), key=lambda item: item[0] == "model"):
            self.save(name, network)
        if self.world.rank == 0:
            shutil.rmtree(self.out / "state", ignore_errors=True)
        self.world.wait()

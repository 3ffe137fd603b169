"""The doctor: healthy runs stay unremarked, and damage done on purpose is called by its name.

The damaged runs are trained with SLOW=1 (three minutes); always, what they logged is examined from
tests/damaged_runs.json, which SLOW=1 RECORD=1 writes again.
"""
import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import village

import data
import ppo
import reward
from runtime import Problem, config_of
from tools import doctor

slow = pytest.mark.skipif("SLOW" not in os.environ, reason="three minutes: set SLOW=1")
RECORDS = Path(__file__).with_name("damaged_runs.json")


# ------------------------------------------------------------------ damage: monkeypatch -> patched

def rollouts(change):
    """Damage by replacing fields of every rollout: change(rollout, step, written) -> fields."""
    def damage(patch):
        honest = ppo.roll_out

        def roll_out(*args):
            rollout = honest(*args)
            return rollout._replace(**change(rollout, args[6], rollout.targets))
        patch.setattr(ppo, "roll_out", roll_out)
    return damage


def score(change):
    """Damage of the scores: change(rollout, lengths, written) -> what is added to them."""
    return rollouts(lambda r, step, written: {
        "score": r.score + change(r, r.is_response.sum(1).float(), written)})


def replaced(module, name, wrap):
    """Damage by putting wrap(function) in a function's place."""
    return lambda patch: patch.setattr(module, name, wrap(getattr(module, name)))


def loops(rollout, lengths, written):
    """How often each summary repeats a pair of tokens."""
    rows = [row[real].tolist() for row, real in zip(written, rollout.is_response, strict=True)]
    return torch.tensor([float(len(row) - 1 - len(set(zip(row, row[1:], strict=False))))
                         for row in rows])


def ended(rollout, lengths, written):
    """1 where a summary ended before it was cut off, and so can be told to be bad; else 0."""
    return (lengths < 16).float()


no_end = replaced(data, "encode_response", lambda honest: lambda *args: honest(*args)[:-1])

SABOTAGES = {      # name: (stage, flags, damage, the checks that must be among those that fail)
    "supervised: learning rate x 100": ("supervised", "--lr 1", None, {"loss spike"}),
    "reward: learning rate x 100": ("reward", "--lr 0.5", None,
                                    {"loss spike", "learning died out"}),
    "reward: labels shuffled": ("reward", "shuffled", None, {"reward model at chance"}),
    "reward: 40 epochs of 48 labels": ("reward", "few --batch 8",
                                       lambda patch: patch.setattr(reward, "EPOCHS", 40),
                                       {"over-fitting", "over-fitted reward model"}),
    "ppo: learning rate x 100": ("ppo", "--lr 0.15", None,
                                 {"steps too large", "exploding KL", "entropy collapse"}),
    "ppo: the penalty's sign turned": (
        "ppo", "", replaced(ppo, "token_rewards", lambda honest: lambda r, beta: honest(r, -beta)),
        {"exploding KL"}),
    "ppo: log-ratio upside down": (
        "ppo", "", rollouts(lambda r, step, _: {"ref_logp": 2 * r.old_logp - r.ref_logp}),
        {"negative KL"}),
    "ppo: beta 0": ("ppo", "--kl-coef 0", None, {"no price on KL"}),
    "ppo: the critic does not learn": ("ppo", "", replaced(ppo, "VF_COEF", lambda honest: 0),
                                       {"critic explains nothing"}),
    "ppo: advantages' sign turned": (
        "ppo", "", replaced(ppo, "whiten", lambda honest: lambda *args: -honest(*args)),
        {"score falls"}),
    "ppo: a policy that never saw an end": (
        "ppo", "endless --episodes 384", None, {"summaries never learned to end"}),
    "ppo: ending is punished": ("ppo", "", score(lambda *args: -8 * ended(*args)),
                                {"EOT rate falling", "never ending pays"}),
    "ppo: long summaries pay": ("ppo", "--response-length 24 --kl-coef 0.02 --lr 3e-3", score(lambda r, n, _: n), {"length drift"}),
    "ppo: short summaries pay": ("ppo", "--kl-coef 0.02 --lr 3e-3", score(lambda r, n, _: -n), {"length drift"}),
    "ppo: loops pay": ("ppo", "--kl-coef 0.02", score(lambda *args: 3 * loops(*args)),
                       {"repeated text"}),
    "ppo: the update forgets the temperature": (
        "ppo", "--temperature 0.7 --episodes 384",
        replaced(ppo, "minibatch_loss", lambda honest: lambda *args: honest(
            *args[:-1], dataclasses.replace(args[-1], temperature=1.0))),
        {"rollout and update disagree"}),
    "ppo: another reference": (
        "ppo", "--episodes 384", rollouts(lambda r, step, _: {
            "ref_logp": r.ref_logp - 0.5 * r.is_response}),
        {"reference differs at the start"}),
    "ppo: a value that is no number": (
        "ppo", "", rollouts(lambda r, step, _: {"value": r.value * (math.nan if step == 4 else 1)}),
        {"not a number"}),
}


def damaged(name, home, out, patch):
    """Run a sabotage. Returns: the stage's folder."""
    stage, flags, damage, _ = SABOTAGES[name]
    place, more = home / "village", {}
    kind, _, rest = flags.partition(" ")
    if kind == "shuffled":
        place, flags = village.settle(out / "village", wrong=0.5), rest
    elif kind == "few":
        place, flags = village.settle(out / "village", labels=60), rest
    elif kind == "endless":
        with pytest.MonkeyPatch.context() as other:
            no_end(other)
            more, flags = {"supervised": village.run("supervised", place, out)}, rest
    if damage:
        damage(patch)
    more = {"supervised": home / "supervised", "rewarded": home / "reward", **more}
    try:
        return village.run(stage, place, out, flags, **more)
    except Problem:                                     # NaN ends a run; its log says so
        return out / stage


def names(stage, log, flags):
    return {finding.check.name for finding in doctor.examine(stage, log, flags, doctor.CHECKS)}


# ---------------------------------------------------------------------- trained, and as recorded

def logged(folder):
    """What the doctor gets to see of a stage: (stage, lines, flags)."""
    flags = config_of(folder)["flags"]
    return doctor.stage_of(flags), doctor.read_log(folder / "log.jsonl"), flags


def remember(name, stage, lines, flags):
    """Into damaged_runs.json, when RECORD is set: four digits, column by column."""
    if "RECORD" not in os.environ:
        return
    kept = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    keys = sorted({key for line in lines for key in line} - {
        "rollout_seconds", "update_seconds", "rollout_tokens_per_second", "why", "tokens",
        "update_tokens_per_second", "episodes", "reward", "policy_loss", "return_mean"})
    short = {key: [v if isinstance(v := line.get(key, "-"), str | None) else float(f"{v:.4g}")
                   for line in lines] for key in keys}
    kept[name] = {"stage": stage, "flags": {k: flags[k] for k in ("kl_coef", "missing_eot")
                                            if k in flags}, "log": short}
    RECORDS.write_text("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
                                     for k, v in sorted(kept.items())) + "}\n")


def recorded():
    """{name: (stage, lines, flags)} of damaged_runs.json."""
    found = {}
    for name, known in (json.loads(RECORDS.read_text()) if RECORDS.exists() else {}).items():
        columns = known["log"]
        lines = [{key: values[i] for key, values in columns.items() if values[i] != "-"}
                 for i in range(len(columns["step"]))]
        found[name] = known["stage"], lines, known["flags"]
    return found


QUICK = {"supervised: learning rate x 100", "reward: labels shuffled", "ppo: another reference",
         "ppo: a value that is no number"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else slow)
                                  for name in SABOTAGES])
def test_a_sabotaged_run_is_diagnosed_by_name(name, home, tmp_path, monkeypatch):
    seen = logged(damaged(name, home, tmp_path, monkeypatch))
    remember(name, *seen)
    assert SABOTAGES[name][3] <= names(*seen)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=slow if seed else ())
                                  for seed in range(7)])
def test_a_healthy_run_is_called_healthy_from_its_first_line_to_its_last(seed, home, tmp_path):
    if seed:
        home = village.pipeline(village.settle(tmp_path / "village", seed), tmp_path, seed)
    for stage in village.STAGES:
        kind, lines, flags = logged(home / stage)
        remember(f"healthy: {stage}, seed {seed}", kind, lines, flags)
        for n in range(1, len(lines) + 1):
            assert not names(kind, lines[:n], flags)


@pytest.mark.parametrize("name", list(recorded()))
def test_a_recorded_log_is_diagnosed_like_the_run(name):
    stage, lines, flags = recorded()[name]
    if name.startswith("healthy"):
        assert not any(names(stage, lines[:n], flags) for n in range(1, len(lines) + 1))
    else:
        assert SABOTAGES[name][3] <= names(stage, lines, flags)


def test_every_sabotage_is_recorded_and_five_healthy_seeds_of_each_stage():
    known = list(recorded())
    assert set(SABOTAGES) <= set(known) and len(SABOTAGES) >= 10
    for stage in village.STAGES:
        assert sum(name.startswith(f"healthy: {stage}") for name in known) >= 5


# ------------------------------------------------------------------------- what no training shows

def report(**more):
    """A report as evaluate.py writes it: ten points more than imitation."""
    def row(method, n, step, rm, rate, predicted):
        return {"method": method, "n": n, "step": step, "rm": rm, "win_rate": rate,
                "predicted_win_rate": predicted, "gold": 3.0, "kl": 1.0, "beta": None}
    return {"against_supervised": {"human_feedback": {"win_rate": 0.6, "win_rate_95": [0.57, 0.63]}},
            "reward_model": {"accuracy": 0.7, "accuracy_95": [0.66, 0.74], "n": 400},
            "overoptimisation": [row("ppo", None, 6, 0.9, 0.48, 0.7),
                                 row("ppo", None, 12, 1.2, more.pop("final", 0.5), 0.8),
                                 row("best_of_n", 1, None, 0.0, 0.4, 0.5),
                                 row("best_of_n", 4, None, 0.9, 0.45, 0.7)], **more}


def test_a_reward_that_rises_while_the_judge_falls_is_over_optimisation():
    assert not names("report", report(), {})
    assert names("report", report(final=0.35), {}) == {"over-optimisation"}      # from snapshot 6
    worse = {"human_feedback": {"win_rate": 0.4, "win_rate_95": [0.37, 0.43]}}
    assert names("report", report(against_supervised=worse), {}) == {"over-optimisation"}
    chance = {"accuracy": 0.45, "accuracy_95": [0.41, 0.49], "n": 400}
    assert names("report", report(reward_model=chance), {}) == {"reward model at chance"}
    assert not names("report", report(overoptimisation=[], reward_model=None), {})


def steady(n=30, slow=(), **more):
    """A log of n steps of 2 s, but 60 s at some."""
    seconds, lines = 0.0, []
    for step in range(n):
        seconds += 60 if step in slow else 2
        lines.append({"step": step, "loss": 1.0, "seconds": seconds, **more})
    return lines


def test_a_machine_that_stalls_is_told_from_one_slow_step():
    assert not names("sft", steady(), {}) and not names("sft", steady(slow=[9, 20]), {})
    assert names("sft", steady(slow=range(20, 24)), {}) == {"stalled"}


def test_null_in_a_log_is_no_number():
    lines = steady()
    lines[7]["valid_loss"] = None
    found, = doctor.examine("sft", lines, {}, doctor.CHECKS)
    assert (found.check.name, found.step) == ("not a number", 7)


def test_each_check_fires_somewhere_and_says_what_to_read_and_to_try():
    fired = {"over-optimisation", "stalled", "KL humps",            # in tests of their own
             "summaries are cut", "pairs are equal once cut"}
    for stage, lines, flags in recorded().values():
        fired |= names(stage, lines, flags)
    assert fired == {check.name for check in doctor.CHECKS}
    for check in doctor.CHECKS:
        passage, remedy = doctor.ADVICE[check.name]
        assert len(passage) > 5 and len(remedy) > 10 and check.fails in ("above", "below")


# -------------------------------------------------------------------------------------- in words

def test_the_doctor_says_what_it_looked_at_and_leaves_with_0_or_1(home, tmp_path, capsys):
    assert doctor.main([str(home)]) is None
    said = capsys.readouterr().out
    assert said.count("healthy; looked for: ") == 3 and "exploding KL" in said
    assert doctor.main(["--run", str(home / "reward")]) is None      # one stage
    assert capsys.readouterr().out.startswith("reward (")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text(json.dumps(report(final=0.2)))
    (tmp_path / "ppo").symlink_to(home / "ppo")
    with pytest.raises(SystemExit) as left:
        doctor.main([str(tmp_path)])
    assert left.value.code == 1
    said = capsys.readouterr().out
    assert re.search(r"step 12: over-optimisation: .* = 0\.28 \(healthy: at most 0\.1\)", said)
    assert "paper: section 4.3, Figure 5" in said and "try: an earlier snapshot" in said
    assert "report (report.json): 1 of " in said and "N+ are the" in said


def test_the_doctor_tells_why_a_run_ended_itself(home, tmp_path, capsys):
    shutil.copytree(home / "ppo", tmp_path / "ppo")
    with open(tmp_path / "ppo/log.jsonl", "a") as f:
        f.write(json.dumps({"step": 9, "event": "stopped", "why": "step 9: the gradient is\n[nan]"}) + "\n")
    with pytest.raises(SystemExit):
        doctor.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "  training ended itself: 'step 9: the gradient is\\n[nan]'\n" in said
    assert "  step 9: not a number: figures that are no numbers = 1 (healthy: at most 0)\n" in said


def test_training_warns_once_above_its_bar_and_never_in_health(home, tmp_path, capfd, monkeypatch):
    village.run("reward", home / "village", tmp_path, supervised=home / "supervised")
    assert "warning" not in capfd.readouterr().err
    damaged("ppo: another reference", home, tmp_path, monkeypatch)
    said = capfd.readouterr().err
    assert said.count("reference differs at the start") == 1
    assert f"tools.doctor {tmp_path / 'ppo'}" in said


def test_what_cannot_be_examined_is_a_problem_of_one_line(home, tmp_path):
    def fails(folder, match):
        with pytest.raises(Problem, match=match) as caught:
            doctor.main([str(folder)])
        assert "\n" not in str(caught.value)

    with pytest.raises(Problem, match="which run"):
        doctor.main([])
    fails(tmp_path / "nowhere", "is no folder")
    fails(tmp_path, "holds no stage")
    stage = tmp_path / "reward"
    stage.mkdir()
    for name in ("config.json", "log.jsonl"):
        (stage / name).write_text((home / "reward" / name).read_text())
    with open(stage / "log.jsonl", "a") as f:
        f.write('{"step": 99, "lo')                    # still being written
    assert doctor.main([str(tmp_path)]) is None
    with open(stage / "log.jsonl", "a") as f:
        f.write('\n{"step": 100, "loss": 1}\n')
    fails(tmp_path, "log.jsonl, line [0-9]+: not a line of a training log")
    (stage / "log.jsonl").write_bytes(b'{"step": 1, "note": "caf\xe9"}\n{}\n')
    fails(tmp_path, "log.jsonl, line 1: not a line of a training log")


def test_the_records_hold_no_more_than_is_needed():
    assert RECORDS.stat().st_size < 150_000


@pytest.mark.parametrize("kl, entropy, found", [
    ([0, 1.3, 2.4, 15, 6.4, 4.1, 3.9, 3.8], [.6, .7, .8, 1.1, .9, .8, .7, .7], True),      # steps too large
    ([0, .4, .9, 1.6, 2.1, 2.3, 2.2, 2.2], [.6, .62, .64, .66, .65, .64, .62, .6], False),
    ([0, 1.3, 2.4, 15, 6.4, 4.1, 3.9, 3.8], [.6, .5, .4, .4, .3, .3, .3, .3], False),      # no noise
    ([0, 1, 2, 4, 6, 9, 12, 15], [.6, .7, .8, 1.1, 1.2, 1.2, 1.3, 1.3], False)])           # it goes on rising
def test_a_kl_that_is_given_back_after_entropy_rose_is_named(kl, entropy, found):
    log = [{"step": i, "kl": k, "entropy": e} for i, (k, e) in enumerate(zip(kl, entropy, strict=True))]
    assert [check for check in doctor.CHECKS if check.name == "KL humps"]
    names = {f.check.name for f in doctor.examine("ppo", log, {"kl_coef": .1, "missing_eot": -1},
                                                  [c for c in doctor.CHECKS if c.name == "KL humps"])}
    assert names == ({"KL humps"} if found else set())

"""tests/gpu_proof.py: that a check which fails is told, and hides none of the others."""
import json
from argparse import Namespace

import gpu_proof
import pytest

TINY = Namespace(device="cpu", size="toy")


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """steps(code): the entry of a step whose process runs this Python code instead."""
    def run(code, limit=20):
        script = tmp_path / "step.py"
        script.write_text(f"import json, time\nfrom gpu_proof import say\n{code}\n")
        monkeypatch.setattr(gpu_proof, "__file__", str(script))
        monkeypatch.setenv("PYTHONPATH", str(gpu_proof.HERE))
        monkeypatch.setitem(gpu_proof.LIMITS, "same", limit)
        return gpu_proof.watch("same", TINY, str(tmp_path))
    return run


def test_a_step_is_well_when_all_of_its_checks_are(steps, capsys):
    entry = steps("say('one', 1.5)\nsay('two', 2, True)")
    assert entry["ok"] and [c["check"] for c in entry["checks"]] == ["one", "two"]
    assert "ok   two" in capsys.readouterr().out


def test_a_check_that_fails_is_told_and_those_after_it_are_made(steps, capsys):
    entry = steps("say('one', 1, False)\nsay('two', 2, True)")
    assert not entry["ok"] and len(entry["checks"]) == 2
    assert "FAIL one" in capsys.readouterr().out


def test_a_step_that_breaks_keeps_its_checks_and_says_why(steps):
    entry = steps("say('one', 1, True)\nraise RuntimeError('no kernel image')")
    assert not entry["ok"] and "no kernel image" in entry["error"] and len(entry["checks"]) == 1


def test_a_step_that_is_too_slow_is_cut_off_and_keeps_its_checks(steps):
    entry = steps("say('one', 1, True)\ntime.sleep(60)", limit=3)
    assert entry["ok"] and "cut off after 3 s" in entry["error"] and entry["seconds"] < 10


def test_a_wrong_loss_on_the_device_is_seen(monkeypatch, capsys):
    right, exact = gpu_proof.step_of, []

    def wrong(world, *what):
        loss, norm, network = right(world, *what)
        if not world.bf16:
            exact.append(loss)                          # on the CPU, on the device, in turns
        return loss * (1.01 if not world.bf16 and len(exact) % 2 == 0 else 1), norm, network
    monkeypatch.setattr(gpu_proof, "step_of", wrong)
    gpu_proof.same(TINY)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [c["check"] for c in found if c["ok"] is False] == [
        "lm: loss on the device and on the CPU, fp32", "scalar: loss on the device and on the CPU, fp32"]

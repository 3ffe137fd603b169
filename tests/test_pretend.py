"""Without a GPU: nothing is left on the CPU, and how often the CPU waits (tests/pretend.py)."""
import ast
import contextlib
import importlib
import inspect
import json
import operator
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from mixups import CASES, FREE, REFUSED, WAITS
from pretend import Misplaced, Pretend
from test_sft import Killed, kill_at, log_of, weights_of

import model
import ppo
import reward
import runtime.world
import sample
import sft
from runtime.world import World
from tools import judges, overoptimisation, report

SHORT = "--query-length 80 --response-length 16 --batch 8"
QUERIES = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3], [5], [8, 9, 7, 9], [3, 2], [3, 8, 4, 6], [2, 6, 4]]


@contextlib.contextmanager
def pretending(precision="fp32"):
    """Within, every script computes on the pretend device, whatever its --device says."""
    with Pretend() as pretend, pytest.MonkeyPatch.context() as patch:
        alone = World(0, 1, pretend.device, bf16=precision == "bf16")
        patch.setattr(runtime.world, "join_world", lambda cfg: contextlib.nullcontext(alone))
        yield pretend


def run(script, flags):
    script.main(flags.split())


both = pytest.mark.parametrize("precision", ["fp32", "bf16"])


# ------------------------------------------------------------------ nothing is left on the CPU

@both
def test_pretraining_and_fine_tuning_keep_their_tensors_on_the_device(precision, data_dir, tmp_path):
    with pretending(precision) as pretend:
        run(sft, f"--data {data_dir} --size tiny {SHORT} --loss-on all --steps 2 --lr 1e-2 "
                 f"--micro-batch 3 --checkpointing --out {tmp_path}/pretrained")
        run(sft, f"--data {data_dir} --init {tmp_path}/pretrained {SHORT} --loss-on summary --steps 2 "
                 f"--micro-batch 3 --lr 1e-2 --out {tmp_path}/supervised")
    assert any(wait.why == ".cpu()" for wait in pretend.waits)           # it was on the device
    assert weights_of(tmp_path / "supervised")["wte.weight"].isfinite().all()


def test_a_resumed_run_keeps_them_there_and_ends_in_the_same_weights(data_dir, tmp_path, monkeypatch):
    flags = f"--data {data_dir} --size tiny {SHORT} --steps 3 --save-every 1 --lr 1e-2 --out {tmp_path}"
    with pretending():
        run(sft, f"{flags}/whole")
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, sft, at=3)
            run(sft, f"{flags}/broken")
        run(sft, f"{flags}/broken --resume")
    ours, theirs = weights_of(tmp_path / "broken"), weights_of(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["step"] for line in log_of(tmp_path / "broken")] == [0, 2]


@both
def test_a_reward_model_keeps_them_there(precision, supervised, comparisons, tmp_path):
    with pretending(precision):
        run(reward, f"--init {supervised} --comparisons {comparisons} --limit 16 {SHORT} "
                    f"--micro-batch 3 --lr 1e-2 --out {tmp_path}/reward")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def learned(request, tmp_path_factory, data_dir, supervised, reward_model, comparisons):
    """A run in whose ppo/ two iterations were done on the pretend device, and its precision."""
    home = tmp_path_factory.mktemp(f"pretend-{request.param}")
    (home / "supervised").symlink_to(supervised)
    (home / "reward").symlink_to(reward_model)
    (home / "comparisons.jsonl").write_text(comparisons.read_text().replace("valid1", "valid2"))
    flags = (f"--policy {supervised} --reward {reward_model} --data {data_dir} {SHORT} --episodes 16 "
             f"--epochs 1 --minibatches 2 --micro-batch 3 --rollout-batch 5 --save-every 1 "
             f"--snapshot-every 1 --lr 1e-3 --out {home}/ppo")
    with pretending(request.param), pytest.MonkeyPatch.context() as patch:
        kill_at(patch, ppo, at=3)                         # in the second iteration
        with pytest.raises(Killed):
            run(ppo, flags)
        patch.undo()
    with pretending(request.param):
        run(ppo, f"{flags} --resume")
    return home, request.param


def test_ppo_writes_learns_saves_and_resumes_there(learned):
    home, _ = learned
    assert [line["step"] for line in log_of(home / "ppo")] == [0, 1]
    before, after = (weights_of(home / name)["wte.weight"] for name in ("supervised", "ppo"))
    assert (before - after).abs().max() > 0


def test_an_evaluation_computes_there(learned, data_dir, monkeypatch):
    home, precision = learned
    monkeypatch.setattr(overoptimisation, "POOL", 2)
    with pretending(precision) as pretend:
        run(judges, f"--run {home} --data {data_dir} --judge rouge --posts 4 --out {home}/report")
        run(report, f"--run {home} --out {home}/report")
    assert json.loads((home / "report/report.json").read_text())["overoptimisation"]
    assert {"evaluate.py", "sample.py"} <= {wait.line.split(":")[0] for wait in pretend.waits}


def test_pretending_changes_no_number(data_dir, tmp_path):
    flags = f"--data {data_dir} --size tiny {SHORT} --steps 2 --lr 1e-2 --device cpu --out {tmp_path}"
    with pretending():
        run(sft, f"{flags}/there")
    run(sft, f"{flags}/here")
    here, there = weights_of(tmp_path / "here"), weights_of(tmp_path / "there")
    assert all(torch.equal(here[name], there[name]) for name in here)


# ------------------------------------------------------------------------ what is left is noticed

@pytest.mark.parametrize("what, line, act", CASES, ids=[f"{line} {what}" for what, line, _ in CASES])
def test_the_pretend_device_refuses_and_waits_as_a_card_does(what, line, act):
    try:
        with Pretend() as pretend:
            act(pretend.device)
        found = WAITS if pretend.waits else FREE
    except Misplaced:
        found = REFUSED
    assert found == what


def test_autocast_computes_in_fp32_what_a_card_does():
    with Pretend() as pretend, torch.autocast("cpu", torch.bfloat16):
        x = torch.ones(2, 3, device=pretend.device)
        assert (x @ x.mT).dtype == torch.bfloat16
        assert F.layer_norm((x @ x.mT), (2,)).dtype == torch.float32
        assert (x @ x.mT).sum().dtype == (x @ x.mT).softmax(-1).dtype == torch.float32


def test_what_somebody_caught_is_told_all_the_same():
    with pytest.raises(Misplaced, match="test_pretend.py:"), Pretend() as pretend:
        with contextlib.suppress(Exception):
            torch.ones(2, device=pretend.device) + torch.ones(2)


def net_on(pretend, head="lm", ending=0.0):
    """A small network of random weights, whose rows end soon or (ending < 0) never."""
    net = model.build(model.ModelConfig(40, 2, 16, 2, 48, head), 0, World(0, 1, pretend.device))
    with torch.no_grad():
        net.norm.bias += ending * net.wte.weight[39]
    return net


def use_model(pretend, *_):
    """Chapter 3, every way in."""
    q, net = torch.ones(2, 2, 3, 4, device=pretend.device), net_on(pretend, ending=3.0)
    model.attention(q, q, q)
    tokens = torch.tensor([[1, 2], [3, 4]], device=pretend.device)
    net(tokens)
    model.GPT(net.config).to(pretend.device).write(tokens, 2)
    said, _ = sample.generate(net, QUERIES, 12, 1.0, sample.uniforms(0, "pretend", 0, range(8), 12))
    assert 1 < (said == 39).any(1).sum() < 8
    for head in ("scalar", "sum"):
        model.score(net_on(pretend, head), QUERIES, [[1, 2]] * 8)


def use_evaluate(pretend, out, needs):
    """Chapters 5 and 9, in a run whose PPO learned nothing."""
    out.mkdir()
    for stage in ("supervised", "ppo"):
        (out / stage).symlink_to(needs[1])
    run(judges, f"--run {out} --data {needs[0]} --judge rouge --posts 4")


def use_sft(pretend, out, needs, steps=1, micro_batch=8):
    run(sft, f"--data {needs[0]} --size tiny {SHORT} --steps {steps} --micro-batch {micro_batch} "
             f"--out {out}")


def use_reward(pretend, out, needs, steps=1, micro_batch=8):
    run(reward, f"--init {needs[1]} --comparisons {needs[3]} --limit {8 * steps} {SHORT} "
                f"--micro-batch {micro_batch} --out {out}")


def use_ppo(pretend, out, needs, steps=1, micro_batch=8):
    run(ppo, f"--policy {needs[1]} --reward {needs[2]} --data {needs[0]} {SHORT} --episodes 8 "
             f"--epochs {steps} --micro-batch {micro_batch} --lr 1e-3 --out {out}")


USES = {"model": use_model, "sft": use_sft, "sample": use_evaluate, "reward": use_reward, "ppo": use_ppo,
        "evaluate": use_evaluate}


@pytest.fixture(scope="module")
def needs(data_dir, supervised, reward_model, comparisons):
    """What the chapters start from."""
    return data_dir, supervised, reward_model, comparisons


class Removal(ast.NodeTransformer):
    """Takes the n-th .to(device) or device= out of a chapter; finds them all when n is None."""

    def __init__(self, n=None):
        self.n, self.found = n, []

    def taken(self, node):
        self.found.append(node.lineno)
        return self.n == len(self.found) - 1

    def visit_Call(self, node):
        self.generic_visit(node)
        if (isinstance(node.func, ast.Attribute) and node.func.attr == "to"
                and any("device" in ast.unparse(x) for x in node.args)):
            return node.func.value if self.taken(node) else node
        for word in node.keywords:
            if word.arg == "device" and self.taken(node):
                node.keywords.remove(word)
                break
        return node


def places():
    """(chapter, n, line) of each .to(device) and device= of the chapters that compute."""
    for name in USES:
        everything = Removal()
        everything.visit(ast.parse((ROOT / f"{name}.py").read_text()))
        for n, line in enumerate(everything.found):
            yield pytest.param(name, n, line, id=f"{name}.py:{line}")


def code_in(code, line):
    """(qualified name, code) of the function at top, or of a class, that contains a line."""
    for inner in code.co_consts:
        if inspect.iscode(inner):
            if inner.co_flags & inspect.CO_NEWLOCALS and any(
                    at == line for *_, at in everything_in(inner)):
                return inner.co_qualname, inner
            if found := code_in(inner, line):
                return found
    return None


def everything_in(code):
    """co_lines of a function and of those inside of it."""
    yield from code.co_lines()
    for inner in code.co_consts:
        if inspect.iscode(inner):
            yield from everything_in(inner)


def rewrite(patch, name, tree, line):
    """Let a chapter's function that has this line be as `tree` says, wherever it is used."""
    code = compile(ast.fix_missing_locations(tree), ROOT / f"{name}.py", "exec")
    qualname, code = code_in(code, line)
    function = operator.attrgetter(qualname)(importlib.import_module(name))
    patch.setattr(inspect.unwrap(function), "__code__", code)


@pytest.fixture(scope="module")
def calm(tmp_path_factory, needs):
    """{chapter: how often the CPU waits in it as it stands}"""
    found = {}
    for name, use in USES.items():
        with pretending() as pretend:
            use(pretend, tmp_path_factory.mktemp(name) / "run", needs)
        found[name] = len(pretend.waits)
    return found


@pytest.mark.parametrize("name, n, line", list(places()))
def test_a_device_that_is_taken_out_is_noticed(name, n, line, needs, calm, tmp_path, monkeypatch):
    """What was on the device is then refused, or at least is sent there again and again."""
    removal = Removal(n)
    rewrite(monkeypatch, name, removal.visit(ast.parse((ROOT / f"{name}.py").read_text())), line)
    with pytest.raises(Misplaced, match=r"^[\w/]+\.py:\d+: "), pretending() as pretend:
        USES[name](pretend, tmp_path / "run", needs)
        if len(pretend.waits) > calm[name]:
            raise Misplaced(f"{pretend.waits[0].line}: the CPU waits more often")


def line_of(function, text):
    """file:line of some words in a function of ours."""
    lines, first = inspect.getsourcelines(function)
    n, = (n for n, line in enumerate(lines, first) if text in line)
    return f"{inspect.getsourcefile(function).removeprefix(f'{ROOT}/')}:{n}"


def numpy_for(old):
    """The same function, which returns a numpy array."""
    return lambda *args: old(*args).numpy()


def draw(logits, temperature=1.0, u=None):
    """Another way to choose tokens, with a generator of the wrong device."""
    logp = logits.log_softmax(-1)
    token = torch.multinomial(logp.exp(), 1, generator=torch.Generator())           # wrong
    return token[:, 0], logp.gather(-1, token)[:, 0]


def columns_on_the_cpu(old):
    def forward(block, x, at=None, *more):
        return old(block, x, at if at is None else at.cpu(), *more)
    return forward


def but_for_the_targets(old):
    """Rows.to that forgets one of four tensors."""
    return lambda rows, device: old(rows, device)._replace(targets=rows.targets)


def not_at_all(old):
    """Rows.to that does nothing."""
    return lambda rows, device: rows


@pytest.mark.parametrize("chapter, where, broken, at, message", [
    ("sft", (model.Rows, "to"), not_at_all, None, "embedding"),
    ("model", (model.FastBlock, "forward"), columns_on_the_cpu,
     (model.FastBlock.forward, "x.gather("), "gather"),
    ("sample", (sample, "choose"), lambda old: draw, (draw, "# wrong"), "generator of the other device"),
    ("reward", (model, "score"), numpy_for, (numpy_for, ".numpy()"), r"\.cpu\(\) first"),
    ("ppo", (model.Rows, "to"), but_for_the_targets, (model.token_logp, "F.cross_entropy"), "nll_loss"),
], ids=["a batch is left on the CPU", "indices are", "a generator is", "numpy reads the device",
        "one tensor of four is left"])
def test_a_mistake_is_told_with_its_line(chapter, where, broken, at, message, needs, tmp_path,
                                         monkeypatch):
    owner, name = where
    good = getattr(owner, name)
    for module in (owner, *map(importlib.import_module, USES)):          # also where it is imported
        if getattr(module, name, None) is good:
            monkeypatch.setattr(module, name, broken(good))
    with pytest.raises(Misplaced, match=message) as told, pretending() as pretend:
        USES[chapter](pretend, tmp_path / "run", needs)
    line = line_of(*at) if at else "model.py"
    assert str(told.value).startswith(f"{line}:")


# ------------------------------------------------------------------------- how often the CPU waits

# At most so often for each micro-batch, and for what else an optimizer step does.
MOST = {"sft": (1, 1), "reward": (1, 1), "ppo": (1, 1)}
MOST_A_TOKEN = 1 / 8                 # while generating, whatever the number of rows


def waits_of_a_step(use, micro_batch, folder, needs):
    """Counter of the waits of one optimizer step: what a run of 3 has more than a run of 2."""
    counts = []
    for steps in (3, 2):
        with pretending() as pretend:
            use(pretend, folder / f"{micro_batch}-{steps}", needs, steps, micro_batch)
        counts.append(Counter(map(str, pretend.waits)))
    return counts[0] - counts[1]


@pytest.mark.parametrize("name", MOST)
def test_the_cpu_seldom_waits_while_learning(name, needs, tmp_path):
    one, four = (waits_of_a_step(USES[name], rows, tmp_path, needs) for rows in (8, 2))
    micro = {line: n / 3 for line, n in (four - one).items()}
    step = {line: n - micro.get(line, 0) for line, n in one.items() if n > micro.get(line, 0)}
    print(f"{name}: each micro-batch {micro}, each step {step}")
    assert sum(micro.values()) <= MOST[name][0], micro
    assert sum(step.values()) <= MOST[name][1], step


def test_the_cpu_seldom_waits_while_generating():
    counts = []
    for length in (32, 16):
        with Pretend() as pretend:
            net = net_on(pretend, ending=-40.0)
            pretend.waits.clear()
            said, _ = sample.generate(net, QUERIES, length, 1.0,
                                     sample.uniforms(0, "pretend", 0, range(8), length))
        assert not (said >= 39).any()
        counts.append(Counter(map(str, pretend.waits)))
    more = counts[0] - counts[1]
    print(f"generate: every 16 tokens {dict(more)}")
    assert more.total() / 16 <= MOST_A_TOKEN, more

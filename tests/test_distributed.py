"""Two processes on this machine's CPU (gloo) compute what one computes."""
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import model
import ppo
import reward
import runtime
import sft
from runtime import Machine
from runtime.world import World, join_world

SCRIPTS = {"sft": sft, "reward": reward, "ppo": ppo}
PATIENCE = runtime.world.PATIENCE.total_seconds() / 4        # a slow machine is not a hanging one


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ranks(n, act, *args):
    """Run act(*args) in n forked processes that torchrun might have started; their exit codes."""
    port, children = free_port(), []
    for rank in range(n):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                runtime.flags.entry(lambda: act(*args))
                code = 0
            except SystemExit as left:
                code = left.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


@pytest.fixture
def line(data_dir, supervised, reward_model, comparisons, monkeypatch):
    """line(script, out, more): a short run's command line."""
    for script, constants in ((sft, dict(LOG_EVERY=1, EVAL_EVERY=2, EVAL_ROWS=7)),
                              (reward, dict(LOG_EVERY=1, EVAL_EVERY=2, EVAL_ROWS=11, ZERO_ROWS=13,
                                            WARMUP=0))):
        for name, value in constants.items():
            monkeypatch.setattr(script, name, value)

    def words(script, out, more=""):
        return (f"--device cpu --query-length 80 --response-length 16 --out {out} " + {
            "sft": f"--data {data_dir} --size tiny --batch 8 --steps 5 --lr 1e-3 "
                   "--weight-decay 0.1 ",
            "reward": f"--init {supervised} --comparisons {comparisons} --batch 8 --lr 1e-3 ",
            "ppo": f"--policy {supervised} --reward {reward_model} --data {data_dir} --batch 8 "
                   "--episodes 40 --minibatches 2 --lr 1e-3 ",
        }[script] + more).split()
    return words


def log_of(out):
    """The log's numbers, but for what a clock said and what rounding alone decides."""
    unlike = ("second", "rollout_mismatch", "kl_k3")
    return [{k: v for k, v in json.loads(text).items() if not any(u in k for u in unlike)}
            for text in (out / "log.jsonl").read_text().splitlines()]


def assert_alike(a, b, rel, names):
    """Two runs' logs and final weights agree to `rel`."""
    for ours, theirs in zip(log_of(a), log_of(b), strict=True):
        assert ours == pytest.approx(theirs, rel=rel, abs=rel)
    for name in names:
        ours, theirs = (torch.load(out / name, weights_only=True) for out in (a, b))
        for key in theirs:
            assert ours[key].dtype == theirs[key].dtype
            gap = (ours[key] - theirs[key]).abs().max() / (theirs[key].abs().max() + 1e-30)
            assert gap < rel or theirs[key].abs().max() < rel, key


# ----------------------------------------------------------------------------- the same numbers

@pytest.mark.parametrize("script, more", [*((script, "") for script in SCRIPTS), ("reward", "--head sum")])
def test_one_process_two_under_ddp_and_two_under_fsdp_end_alike(script, more, line, tmp_path, float64):
    main = SCRIPTS[script].main
    main(line(script, tmp_path / "alone", more))
    names = ["model.pt", "critic.pt"] if script == "ppo" else ["model.pt"]
    for how in ("ddp", "fsdp --micro-batch 3 --checkpointing"):
        out = tmp_path / how.split()[0]
        assert ranks(2, main, line(script, out, f"--parallel {how} {more}")) == [0, 0]
        assert_alike(out, tmp_path / "alone", 1e-9, names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_in_fp32_the_first_loss_and_gradient_agree(script, line, tmp_path, same_words):
    main, more = SCRIPTS[script].main, "--episodes 8" if script == "ppo" else ""
    main(line(script, tmp_path / "alone", more))
    first = log_of(tmp_path / "alone")[0]
    for how in ("ddp", "fsdp"):
        assert ranks(2, main, line(script, tmp_path / how, f"--parallel {how} {more}")) == [0, 0]
        found = log_of(tmp_path / how)[0]
        for key in first.keys() & {"loss", "grad_norm", "value_loss", "critic_grad_norm"}:
            assert found[key] == pytest.approx(first[key], rel=1e-5 if script != "ppo" else 1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpointing_changes_no_number(script, line, tmp_path, float64):
    main = SCRIPTS[script].main
    main(line(script, tmp_path / "kept"))
    main(line(script, tmp_path / "again", "--checkpointing"))
    assert_alike(tmp_path / "again", tmp_path / "kept", 1e-12, ["model.pt"])


def test_checkpointing_remembers_less(tiny):
    held = {}
    for on in (False, True):
        net, kept = tiny(), []
        if on:
            runtime.world.compute_again(net)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=kept: to.append(t) or t,
                                                      lambda t: t):
            net(torch.randint(40, (4, 30)))
        held[on] = sum({t.data_ptr(): t.numel() for t in kept}.values())
    assert held[True] < 0.5 * held[False]


@pytest.mark.parametrize("script, how", [("sft", "ddp"), ("ppo", "ddp"),
                                         *((name, "fsdp") for name in SCRIPTS)])
def test_a_run_goes_on_in_another_number_of_processes(script, how, line, tmp_path, float64,
                                                      monkeypatch):
    main = SCRIPTS[script].main
    main(line(script, tmp_path / "whole"))
    yields = runtime.Run.steps
    for n, until in ((2, 2), (1, 4), (2, 9)):          # processes, step before which it is stopped

        def steps(run, total, until=until):
            for step in yields(run, total):
                if step == until:
                    raise SystemExit(9)
                yield step
        monkeypatch.setattr(runtime.Run, "steps", steps)
        argv = line(script, tmp_path / "moved", f"--parallel {how} --resume --save-every 1")
        if n > 1:
            assert set(ranks(n, main, argv)) == {0 if until == 9 else 9}
        else:
            with pytest.raises(SystemExit):
                main(argv)
    monkeypatch.undo()
    assert_alike(tmp_path / "moved", tmp_path / "whole", 1e-9, ["model.pt"])


def test_twenty_iterations_of_ppo_leave_all_ranks_with_the_same_weights(line, tmp_path):
    """The trap: a forward through `.module` skips the averaging, and every rank goes its own way."""
    def act(argv):
        finish = runtime.Run.finish

        def spy(run, **weights):
            for name, net in weights.items():
                torch.save(net.module.state_dict(), tmp_path / f"{name}-{run.world.rank}")
            finish(run, **weights)
        runtime.Run.finish = spy
        ppo.main(argv)
    argv = line("ppo", tmp_path / "run", "--episodes 160")
    assert ranks(2, act, argv) == [0, 0]
    start = {"model": "--policy", "critic": "--reward"}
    for name in ("model", "critic"):
        zero, one = (torch.load(tmp_path / f"{name}-{rank}") for rank in (0, 1))
        assert all(torch.equal(zero[key], one[key]) for key in zero)
        before = torch.load(argv[argv.index(start[name]) + 1] + "/model.pt")
        moved = sum((zero[k] - before[k]).norm() ** 2 for k in zero) ** 0.5
        assert moved / sum(before[k].norm() ** 2 for k in zero) ** 0.5 > 1e-3


@pytest.fixture
def same_words(monkeypatch):
    """Whatever a run's policy writes, later runs write too: otherwise a rounding elsewhere chooses
    another token now and then, and what follows is another summary's."""
    written, honest = {}, ppo.generate

    def generate(policy, queries, length, temperature, u):
        pad, places = policy.config.n_vocab, [row.tobytes() for row in u]       # no two rows' alike
        if not written.keys() >= set(places):
            written.update(zip(places, honest(policy, queries, length, temperature, u)[0], strict=True))
        tokens = torch.stack([written[place] for place in places])
        said = [row[row != pad].tolist() for row in tokens]
        rows = model.lay_out(queries, said, pad, length)
        return tokens, model.token_logp(policy(rows.tokens, at=rows.columns), rows.targets, temperature)
    monkeypatch.setattr(ppo, "generate", generate)


@pytest.fixture
def bf16():
    """Attention step by step where ATEN_CPU_CAPABILITY imitates another processor: on one with AMX
    the fused kernel then refuses bf16 ("pack_vnni2 is only supported when avx512 is supported"),
    which no real processor does."""
    plain = "ATEN_CPU_CAPABILITY" in os.environ
    with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
        yield


def test_bf16_stays_near_fp32(line, tmp_path, same_words, bf16):
    for script, keys in (("sft", ("loss", "valid_loss")), ("reward", ("loss", "valid_loss")),
                         ("ppo", ("score", "kl", "entropy", "value_loss", "return_mean"))):
        full, half = tmp_path / script, tmp_path / f"{script}-bf16"
        SCRIPTS[script].main(line(script, full))
        SCRIPTS[script].main(line(script, half, "--precision bf16"))
        for key in keys:                       # three processors' kernels: .014 apart at most
            ours, theirs = (next(entry[key] for entry in log_of(out) if key in entry)
                            for out in (half, full))
            assert ours == pytest.approx(theirs, abs=0.05), (script, key)
        weights = torch.load(half / "model.pt")
        assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())


def test_bf16_also_works_sharded(line, tmp_path, bf16):
    argv = line("ppo", tmp_path / "run", "--precision bf16 --parallel fsdp --checkpointing --episodes 16")
    assert ranks(2, ppo.main, argv) == [0, 0]
    assert torch.load(tmp_path / "run/model.pt")["wte.weight"].dtype == torch.float32


# -------------------------------------------------------------------------------- the parts of it

def test_a_sharded_network_starts_out_like_a_whole_one(tmp_path):
    config = model.ModelConfig(40, 2, 16, 2, 48)

    def act():
        with join_world(Machine("cpu", parallel="fsdp")) as world:
            net = model.build(config, 3, world)
            local = sum(p.to_local().numel() for p in net.parameters())
            assert local < 0.6 * sum(p.numel() for p in net.parameters())
            whole = runtime.world.whole(net, world)
            assert bool(whole) == (world.rank == 0)
            twin = model.build(config, 3).state_dict()
            assert all(torch.equal(w, twin[name]) for name, w in whole.items())
    assert ranks(2, act) == [0, 0]


def test_gathered_networks_need_nobody_and_are_sharded_again_after(tmp_path):
    def act():
        with join_world(Machine("cpu", parallel="fsdp")) as world:
            net = model.build(model.ModelConfig(40, 2, 16, 2, 48), 3, world)
            tokens = torch.arange(12)[None]
            with torch.no_grad(), world.gathered(net):
                for _ in range(1 + 3 * world.rank):           # one rank does more than the other
                    net(tokens)
            before = net(tokens).detach()
            sft.nll(net, [([1, 2], [3, 4])]).backward()
            runtime.optimizer_step({"norm": net}, runtime.adam([net]), 0.1, 0)
            with torch.no_grad(), world.gathered(net):      # not what it was before the step
                assert (net(tokens) - before).abs().max() > 1e-3
            assert all(p.to_local().numel() < p.numel() for p in net.parameters() if p.numel() > 1)
    assert ranks(2, act) == [0, 0]


def test_weights_that_are_not_finite_in_one_ranks_share_are_saved_by_none(line, tmp_path):
    def act(argv):
        finish = runtime.Run.finish

        def poisoned(run, **weights):
            if run.world.rank == 1:
                with torch.no_grad():
                    run.modules["critic"].norm.bias.to_local()[-1] = torch.nan
            finish(run, **weights)
        runtime.Run.finish = poisoned
        ppo.main(argv)
    assert ranks(2, act, line("ppo", tmp_path / "run", "--parallel fsdp --episodes 8")) == [2, 2]
    assert "weights of the critic are not finite" in log_of(tmp_path / "run")[-1]["why"]
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_run_takes_networks_as_parallelize_gives_them(tiny, tmp_path):
    def act():
        with join_world(Machine("cpu")) as world:
            net = world.parallelize(tiny(), runtime.Common())
            assert net.config.n_vocab == 40 and isinstance(net, nn.parallel.DistributedDataParallel)
            cfg = runtime.Common(out=str(tmp_path / "run"), save_every=1)
            run = runtime.Run(cfg, world, {"model": net}, runtime.adam([net]), model={})
            for step in run.steps(1):
                run.save_if_due(step)
                weights = run._state()["weights"]
            assert weights.keys() == {f"model.{name}" for name in net.module.state_dict()}
            run.finish(model=net)
    assert ranks(2, act) == [0, 0]
    assert torch.load(tmp_path / "run/model.pt").keys() == tiny().state_dict().keys()


def test_share_and_gather_and_merge_are_inverses():
    def act():
        with join_world(Machine("cpu")) as world:
            rows = torch.arange(12).view(6, 2)
            assert torch.equal(world.gather(world.share(rows)), rows)
            assert world.merge({i: i * i for i in world.share(range(7))}) == {
                i: i * i for i in range(7)}
            assert world.max(world.rank) == 2 and world.sum(torch.ones(2)).tolist() == [3, 3]
    assert ranks(3, act) == [0, 0, 0]


def test_sample_and_evaluate_say_the_same_in_two_processes(world, supervised, data_dir, tmp_path,
                                                           tokenizer, float64):
    import data
    from sample import load_checkpoint, respond
    posts = data.read_posts(data_dir, "train")[:11]
    queries = [data.encode_query(tokenizer, p, 80) for p in posts]
    alone = respond(load_checkpoint(supervised), queries, 1.0, rows_at_once=4)

    def act(parallel):
        with join_world(Machine("cpu", parallel=parallel)) as both:
            policy = load_checkpoint(supervised, both)
            said = respond(policy, queries, 1.0, rows_at_once=4)
            assert said == alone
    assert ranks(2, act, "ddp") == ranks(2, act, "fsdp") == [0, 0]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_pairs_of_several_policies_are_the_same_in_two_processes(how, supervised, reward_model,
                                                                 data_dir, tmp_path, float64):
    from tools import pairs
    other = tmp_path / "other"
    shutil.copytree(supervised, other)
    weights = torch.load(other / "model.pt", weights_only=True)
    torch.save({name: 1.1 * w for name, w in weights.items()}, other / "model.pt")

    def words(out):
        return (f"--device cpu --policy {supervised} --others {other} --reward {reward_model} "
                f"--best-of 2 --by uncertainty --candidates 2 --data {data_dir} --pairs 13 "
                f"--rows-at-once 5 --out {out}").split()
    pairs.main(words(tmp_path / "alone/pairs.jsonl"))
    both = [*words(tmp_path / how / "pairs.jsonl"), "--parallel", how]
    assert ranks(2, pairs.main, both) == [0, 0]
    alone = (tmp_path / "alone/pairs.jsonl").read_text()
    assert alone.count("other_t1") > 3 and (tmp_path / how / "pairs.jsonl").read_text() == alone


@pytest.mark.parametrize("script, more", [("sft", "--batch 9"), ("reward", "--batch 9"),
                                          ("ppo", "--batch 10")])
def test_a_batch_that_cannot_be_shared_is_a_problem(script, more, line, tmp_path, monkeypatch):
    with pytest.raises(runtime.Problem, match="divide over 2 processes"):
        SCRIPTS[script].train(runtime.flags.parse(SCRIPTS[script].Config, SCRIPTS[script].PRESETS,
                                            line(script, tmp_path / "run", more), ""),
                              World(0, 2, torch.device("cpu")))


# -------------------------------------------------------------------------------- nobody hangs

def torchrun(tmp_path, argv, sabotage=""):
    """torchrun with 2 ranks on sft.py, after `sabotage` was run in each; a Popen."""
    (tmp_path / "start.py").write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "import os, time, signal, torch, model, sft, runtime\ntorch.set_num_threads(1)\n"
        "model.SIZES['tiny'] = model.Size(2, 16, 2, 160)\n"
        f"rank = int(os.environ['RANK'])\n{sabotage}\nruntime.flags.entry(sft.main)\n")
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
         f"--master_port={free_port()}", str(tmp_path / "start.py"), *argv], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("what, says", [
    (runtime.Problem("the disk is full"), "rank 1: error: the disk is full"),
    (ValueError("a bug"), "ValueError: a bug"),
    (float("nan"), "the gradient is"),
], ids=["problem", "bug", "nan"])
def test_one_rank_in_trouble_ends_both(what, says, how, line, tmp_path, capfd, monkeypatch):
    real, calls = sft.nll, []

    def nll(*args):
        calls.append(1)
        if os.environ.get("RANK") == "1" and len(calls) == 2:
            if isinstance(what, Exception):
                raise what
            return real(*args) * what
        return real(*args)
    monkeypatch.setattr(sft, "nll", nll)
    began = time.monotonic()
    codes = ranks(2, sft.main, line("sft", tmp_path / "run", f"--steps 500 --parallel {how}"))
    assert 0 not in codes and time.monotonic() - began < PATIENCE      # nobody waited for the other
    said = capfd.readouterr().err
    assert says in said
    if "another process is gone" in said:                              # the cause comes first
        assert said.index(says) < said.index("another process is gone")
    assert not (tmp_path / "run/model.pt").exists()


@pytest.mark.parametrize("more, reason", [
    ({}, "address already in use"), ({"MASTER_PORT": "x"}, "'x'"),
    ({"MASTER_ADDR": None}, "MASTER_ADDR expected, but not set"),
    ({"RANK": None}, "RANK expected, but not set")])
def test_where_the_processes_cannot_meet_the_port_is_named_and_the_whole_reason(
        more, reason, monkeypatch, capsys):
    def main():
        with join_world(Machine("cpu")):
            raise AssertionError
    with socket.create_server(("127.0.0.1", 0)) as other:
        known = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(other.getsockname()[1]), **more}
        for name, value in known.items():
            if value:
                monkeypatch.setenv(name, value)
            else:
                monkeypatch.delenv(name, raising=False)
        with pytest.raises(SystemExit):
            runtime.flags.entry(main)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"error: port {known['MASTER_PORT']}: the processes" in said
    assert reason in said and "name a free one (torchrun --master_port" in said


def test_under_torchrun_too_the_one_in_trouble_is_named(line, tmp_path):
    sabotage = "if rank == 1: sft.nll = lambda *args: 1 / 0"
    run = torchrun(tmp_path, line("sft", tmp_path / "run", "--steps 500"), sabotage)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode != 0 and "ZeroDivisionError" in said
    assert "another process is gone" not in said[:said.index("ZeroDivisionError")]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_torchrun_saves_and_never_ends_in_0(number, code, line, tmp_path):
    leave = f"""
sft.LOG_EVERY, sft.EVAL_EVERY = 1, 4000
def note(argv=None, main=sft.main):
    try:
        main(argv)
    except SystemExit as left:
        open({str(tmp_path)!r} + f"/code-{{rank}}", "w").write(str(left.code))
        raise
sft.main = note
"""
    argv = line("sft", tmp_path / "run", "--steps 4000 --parallel fsdp")
    run = torchrun(tmp_path, argv, leave)
    log = tmp_path / "run/log.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(number)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode != 0
    assert "--resume goes on from there" in said
    assert [(tmp_path / f"code-{rank}").read_text() for rank in (0, 1)] == [str(code)] * 2
    saved, = (tmp_path / "run/state").iterdir()
    assert int(saved.name[5:]) >= 5 and not (tmp_path / "run/model.pt").exists()


# ------------------------------------------------------------------------------------ the presets

def test_presets_carry_the_papers_hyper_parameters():
    """Appendix B.1 and Table 3 of the paper, by hand."""
    def of(script, preset, *flags, **by):
        cfg = runtime.flags.parse(SCRIPTS[script].Config, SCRIPTS[script].PRESETS,
                            ["--preset", preset, *(f"--{field.name}=x" for field in
                                                   dataclasses.fields(SCRIPTS[script].Config)
                                                   if field.default is ...)], "", **by)
        return tuple(getattr(cfg, flag) for flag in flags)
    for preset, sft_lr, reward_lr, ppo_lr, batch in (("1.3b", 6.35e-5, 1.5e-5, 1.5e-5, 512),
                                                     ("6.7b", 2.83e-5, 5e-6, 7e-6, 256)):
        assert of("sft", preset, "batch", "lr", "query_length", "response_length", "steps",
                  by="loss_on") == (128, sft_lr, 512, 48, 0)
        assert of("reward", preset, "batch", "lr", "query_length") == (64, reward_lr, 512)
        assert reward.EPOCHS == 1
        assert of("ppo", preset, "batch", "lr", "episodes", "epochs", "minibatches", "kl_coef",
                  "temperature", "response_length") == (
            batch, ppo_lr, 1_000_000, 4, 1, 0.05, 0.7, 48)
    assert (ppo.GAMMA, ppo.LAMBDA) == (1.0, 0.95)
    assert model.SIZES["1.3b"][:3] == (24, 2048, 16) and model.SIZES["6.7b"][:3] == (32, 4096, 32)


def test_ddp_wraps_only_what_is_trained(tiny):
    def act():
        with join_world(Machine("cpu")) as world:
            cfg = runtime.Common()
            assert isinstance(world.parallelize(tiny(), cfg),
                              nn.parallel.DistributedDataParallel)
            frozen = tiny().requires_grad_(False)
            assert world.parallelize(frozen, cfg) is frozen
            assert dist.get_world_size() == 2
    assert ranks(2, act) == [0, 0]

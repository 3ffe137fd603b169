"""What has to hold on a GPU, in seven minutes: a line a check, and all of them in one JSON.

    make gpu-proof                                     (tiny, here: make gpu-proof DEVICE=cpu SIZE=toy)
    python tests/gpu_proof.py --size gpt2 --out gpu.json

Six steps, each a process with its own time limit, so that no failure hides what comes after it:

    same     the device against the CPU: losses, gradients, text; which kernel runs; how often it waits
    check    tests/check_gpu.py, for two sizes
    demo     the toy pipeline from posts to report.json, in bf16
    speed    a training step and generation beside transformers and nanoGPT, in turns, median of 5
    ppo      an iteration for two sizes: writing, scoring, learning, memory
    group    one process in a group: DDP, FSDP2, a run that is killed and resumed

Needs torch, numpy, tiktoken and tqdm; transformers where it is installed, and nanoGPT's model.py where
NANOGPT names it. Exit code 1 when a check fails; what was too slow or is not here is no failure.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from argparse import Namespace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import bench  # noqa: E402

import ppo  # noqa: E402
import reward  # noqa: E402
import sft  # noqa: E402
from model import SIZES, ModelConfig, build, lay_out, token_logp  # noqa: E402
from runtime import adam, generator, optimizer_step  # noqa: E402
from runtime.world import Averaged, World  # noqa: E402
from sample import generate, uniforms  # noqa: E402

LIMITS = {"same": 40, "check": 70, "demo": 110, "speed": 110, "ppo": 45, "group": 45}    # seconds
TAIL = 12                           # lines of a failed step that are shown


def say(name, value, ok=None):
    """One check, told to the parent process. ok: None where a number is only to be known."""
    print(json.dumps({"check": name, "value": value, "ok": ok}), flush=True)


def world_of(a, bf16=None, device=None):
    bf16 = a.device == "cuda" if bf16 is None else bf16
    return World(0, 1, torch.device(device or a.device), bf16)


def rows_of(n, vocabulary, query, response, seed=0):
    """(query, response) token lists of nonsense, of several lengths."""
    draw = generator(seed, "proof")
    return [(draw.integers(vocabulary - 1, size=query - 3 * (i % 5)).tolist(),
             draw.integers(vocabulary - 1, size=response).tolist()) for i in range(n)]


# ------------------------------------------------------------------------------------ 1. the same?

def step_of(world, config, rows, head):
    """Loss and gradient norm of a step, and the weights after it: of a policy or a reward model."""
    network = build(ModelConfig(**{**vars(config), "head": head}), 0, world)
    optimizer = adam([network])
    with world.mixed():
        if head == "lm":
            loss = sft.nll(network, rows) / sum(len(r) for _, r in rows)
        else:
            pairs = [reward.Pair(query, chosen, chosen[::-1]) for query, chosen in rows]
            loss = reward.pairwise_loss(*reward.score_pairs(network, pairs))
    loss.backward()
    norm = optimizer_step({"norm": network}, optimizer, 1e-3, 0)["norm"]
    return loss.item(), norm, network


def same(a):
    torch.set_float32_matmul_precision("highest")         # no TF32: the CPU has none
    config = ModelConfig(1000, 4, 128, 4, 256)
    rows = rows_of(8, 1000, 100, 24)
    cpu, exact, half = world_of(a, False, "cpu"), world_of(a, False), world_of(a, True)
    for head in ("lm", "scalar"):
        one, other, rough = (step_of(w, config, rows, head)[:2] for w in (cpu, exact, half))
        for i, name in enumerate(("loss", "gradient norm")):
            say(f"{head}: {name} on the device and on the CPU, fp32", [other[i], one[i]],
                abs(other[i] / one[i] - 1) < 1e-4)
            say(f"{head}: {name} in bf16", rough[i], abs(rough[i] / one[i] - 1) < .05)
    texts(a, config, rows, exact, cpu, half)
    kernel(half)
    waits(a, config, half)


def texts(a, config, rows, exact, cpu, half):
    """What both write, and how probable both find it."""
    queries, u = [query for query, _ in rows], uniforms(0, "proof", 0, range(len(rows)), 32)
    ours, theirs = (build(config, 0, world) for world in (exact, cpu))
    said, logp = (x.cpu() for x in generate(ours, queries, 32, 1.0, u))
    written, _ = generate(theirs, queries, 32, 1.0, u)
    say("sampled tokens equal to the CPU's", (said == written).float().mean().item(),
        bool((said == written).float().mean() > .98))
    for name, network, world, limit in (("the CPU, fp32", theirs, cpu, 1e-4),
                                        ("the same device, bf16", ours, half, .1)):
        kept = [row[row < 1000].tolist() for row in said]
        batch = lay_out(queries, kept, 1000, 32).to(world.device)
        with torch.no_grad(), world.mixed():
            again = token_logp(network(batch.tokens, at=batch.columns), batch.targets).cpu()
        gap = (again - logp)[batch.is_response.cpu()].abs().max().item()
        say(f"log-probs of generation against a full forward on {name}, nats", gap, gap < limit)


def kernel(world):
    """The fused attention kernel is the one that runs: with every other switched off, it does."""
    network = build(ModelConfig(1000, 2, 128, 2, 256), 0, world)
    tokens = torch.zeros(2, 64, dtype=torch.long, device=world.device)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]), world.mixed():
        network(tokens).sum().backward()
    say("flash attention runs, forward and backward", True, True)


def waits(a, config, world):
    """How often the CPU waits for the device: a token written, a micro-batch learned from."""
    if a.device != "cuda":
        say("waits for the device", "not counted on a CPU (tests/test_pretend.py does)")
        return
    done = subprocess.run([sys.executable, HERE / "mixups.py"], capture_output=True, text=True)
    say("CUDA refuses and waits as the pretend device does", done.stdout[-2000:], not done.returncode)
    n, R = 16, 48
    queries = [query for query, _ in rows_of(n, 1000, 100, 1)]
    cfg = ppo.Config(response_length=R, batch=n, epochs=2, micro_batch=4, rollout_batch=n)
    policy, reference = build(config, 0, world), build(config, 0, world)
    critic, judge = (build(ModelConfig(**{**vars(config), "head": "scalar"}), 1, world)
                     for _ in range(2))
    optimizer = adam([policy, critic])
    batch = ppo.roll_out(policy, reference, critic, judge, queries, range(n), 0, cfg, world)
    advantage, returns = ppo.gae(ppo.token_rewards(batch, cfg.kl_coef), batch.value, 1., .95)
    batch = batch._replace(advantage=advantage, returns=returns)

    def counted(act):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            act()
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in found)
    with world.mixed():
        tokens = counted(lambda: generate(policy, queries, R, 1.0, uniforms(0, "w", 0, range(n), R)))
    say("waits a token written", tokens / R, tokens / R <= 1 / 8 + 4 / R)     # and four at the start
    steps = cfg.epochs * n // cfg.micro_batch
    found = counted(lambda: ppo.update(policy, critic, optimizer, batch, 1e-5, 0, cfg, world))
    say("waits a micro-batch learned from", found / steps, found / steps <= 2)


# ----------------------------------------------------------------------- 2. and 3. what others wrote

def python(words, limit, **more):
    """A command of this project, to its end. Returns: what it printed, seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=HERE.parent, timeout=limit,
                          capture_output=True, text=True, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout[-500:]}{done.stderr[-1500:]}")
    return done.stdout, time.perf_counter() - began


def check(a):
    for size in [a.size] if a.size == "toy" else [a.size, "1.3b"]:
        words = ["tests/check_gpu.py", "--device", a.device, "--size", size, "--twin", a.size]
        done = subprocess.run([sys.executable, *words], cwd=HERE.parent, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            say(f"{size}: {line[5:63].strip()}", line[63:].strip(),
                {"ok": True, "FAIL": False}.get(line[:5].strip()))
        if "most memory" not in done.stdout and "memory that" not in done.stdout:
            say(f"{size}: ended well", done.stderr[-1500:], False)


def demo(a):
    """Every stage of `make demo`; for the toy size with little of everything."""
    small = a.size == "toy"
    run, posts = Path(a.folder) / "demo", Path(a.folder) / "toy"
    on, preset = ["--device", a.device], ["--preset", "toy"]

    def few(*words):
        return words if small else ()
    stages = {
        "posts": ["toy.py", "--out", posts, *few("--posts", 1200)],
        "tokenizer": ["-m", "tools.tokenizer", "--data", posts, "--vocab", 1024],
        "pretrained": ["sft.py", *preset, *on, "--data", posts, "--loss-on", "all", "--out",
                       run / "pretrained", *few("--size", "toy-tiny", "--steps", 40)],
        "supervised": ["sft.py", *preset, *on, "--data", posts, "--init", run / "pretrained", "--out",
                       run / "supervised", *few("--steps", 60)],
        "pairs": ["sample.py", *on, "--policy", run / "supervised", "--pairs", 300 if small else 4000,
                  "--with-reference", .5, "--out", run / "pairs.jsonl"],
        "labels": ["label.py", "simulate", "--pairs", run / "pairs.jsonl", "--labels", 3, "--out",
                   run / "comparisons.jsonl"],
        "reward": ["reward.py", *preset, *on, "--init", run / "supervised", "--comparisons",
                   run / "comparisons.jsonl", "--out", run / "reward"],
        "ppo": ["ppo.py", *preset, *on, "--policy", run / "supervised", "--reward", run / "reward",
                "--data", posts, "--out", run / "ppo", *few("--episodes", 128, "--batch", 64)],
        "report": ["evaluate.py", *on, "--run", run, "--posts", 40 if small else 1000]}
    spent = {}
    for name, words in stages.items():
        _, spent[name] = python(words, None)
        say(f"seconds of {name}", round(spent[name], 1))
    training = sum(spent[name] for name in ("pretrained", "supervised", "reward", "ppo"))
    say("seconds of the training stages", round(training, 1), None if small else training < 90)
    found = json.loads((run / "report" / "report.json").read_text())["policies"]
    for name, least, most in (("supervised", 0, .45), ("human_feedback", .8, 1)):
        rate = found[name]["win_rate"]
        say(f"{name} preferred to the author", rate, None if small else least <= rate <= most)


# --------------------------------------------------------------------------------- 4. and 5. speeds

def shape(a, size, **more):
    """bench.py's numbers for a size of model.py's table."""
    layers, width, heads, _ = SIZES[size]
    small = a.size == "toy"
    given = dict(bench.NUMBERS, layers=layers, dim=width, heads=heads, lengths="", who="ours",
                 compile=False, vocab=2000 if small else 50257, device=a.device,
                 bf16=a.device == "cuda", threads=torch.get_num_threads())
    return Namespace(**given | more)


def in_turns(contenders, rounds, a):
    """{name: (step, tokens)} -> {name: tokens a second}, the median of some rounds."""
    took = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, (step, tokens) in contenders.items():
            began = bench.now(a)
            step(turn)
            if turn:                                   # the first one warms up
                took[name].append(tokens[turn] / (bench.now(a) - began))
    return {name: statistics.median(numbers) for name, numbers in took.items()}


def warmed(contenders, what, **how):
    """Add a contender that works here; say so of one that does not."""
    name = f"{how['who']}{', compiled' if how.get('compile') else ''}"
    try:
        settings = how.pop("settings")
        given = Namespace(**{**vars(settings), **how})
        began = bench.now(given)
        made = (bench.WORK if given.who == "ours" else bench.THEIRS)[what](given)
        for i in range(2):
            made[0](i)
        say(f"{what}: seconds until {name} is warm", round(bench.now(given) - began, 1))
        contenders[name] = made
    except Exception as error:           # not installed, no NANOGPT, or it does not work here
        if how["who"] == "ours":
            raise
        say(f"{what}: {name}", f"not here: {type(error).__name__}: {str(error)[:200]}")


def speed(a):
    small, peak = a.size == "toy", None
    work = {"lm": shape(a, a.size, rows=4 if small else 12, length=64 if small else 1024, steps=6),
            "gen": shape(a, a.size, rows=8 if small else 64, prompt=64 if small else 512, resp=48,
                         steps=6)}
    for what, given in work.items():
        contenders = {}
        for who in ("ours", "transformers", *(["nanogpt"] if what == "lm" else [])):
            warmed(contenders, what, who=who, settings=given)
        compiling = ("ours", "nanogpt", "transformers") if what == "lm" else ("transformers",)
        for who in compiling if a.device == "cuda" else ():
            warmed(contenders, what, who=who, compile=True, settings=given)
        found = in_turns(contenders, 5, given)
        for name, rate in found.items():
            say(f"{what}: tokens a second, {name}", round(rate))
        if what == "lm":
            with bench.FlopCounterMode(display=False) as counter:
                contenders["ours"][0](0)
            flops = counter.get_total_flops() / contenders["ours"][1][0]             # a token
            peak = bench.matmul_peak(given)
            say("peak of matrix products, TFLOP/s", round(peak / 1e12, 2))
            for name in found:
                if name.startswith("ours"):
                    share = found[name] * flops / peak
                    say(f"lm: share of that peak, {name}", round(share, 3),
                        None if small or name == "ours" else share >= .45)
    if not small:
        say("lm: nanoGPT's published step of 12 x 1,024 on one A100, compiled, ms", 135)


def ppo_iteration(a):
    small = a.size == "toy"
    for size in [a.size] if small else [a.size, "1.3b"]:
        given = shape(a, size, rows=8 if small else 64, prompt=32 if small else 512,
                      resp=16 if small else 48, micro=8, epochs=1, steps=2, warmup=1)
        if a.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = bench.measure("ppo", given)
        writing = bench.measure("gen", given)["s"]
        for name, value in (("writing", writing), ("scoring", found["rollout_s"] - writing),
                            ("learning, an epoch", found["update_s"])):
            say(f"{size}: seconds of {name}, {given.rows} summaries", round(value, 3))
        say(f"{size}: most memory, GB", round(found["peak_mb"] / 1e3, 2))
        say(f"{size}: share of the peak of matrix products", found["of_matmul_peak"])


# ------------------------------------------------------------------------------ 6. a group of one

class Group(World):
    """A World of one process that shards its networks all the same."""
    sharded = property(lambda self: self.parallel == "fsdp")


def group(a):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1",
                      LOCAL_RANK="0")
    device = torch.device("cuda:0" if a.device == "cuda" else "cpu")
    torch.set_float32_matmul_precision("highest")
    dist.init_process_group("nccl" if a.device == "cuda" else "gloo")
    config, rows, found = ModelConfig(1000, 3, 64, 2, 128), rows_of(8, 1000, 60, 12), {}
    for name in ("plain", "ddp", "fsdp"):
        for bf16 in (False, True):
            world = Group(0, 1, device, bf16, name)
            network = build(config, 0, world)
            trained = network
            if name == "ddp":
                trained = Averaged(network, gradient_as_bucket_view=True,
                                   device_ids=[device] if a.device == "cuda" else None)
            optimizer, losses = adam([network]), []
            for step in range(3):
                with world.mixed():
                    loss = sft.nll(trained, rows) / sum(len(r) for _, r in rows)
                loss.backward()
                optimizer_step({"norm": trained}, optimizer, 1e-3, step)
                losses.append(loss.item())
            with torch.no_grad(), world.mixed(), world.gathered(network):
                generate(network, [q for q, _ in rows], 8)
            found[name, bf16] = losses
    for name in ("ddp", "fsdp"):
        for bf16, limit in ((False, 1e-4), (True, .02)):
            ours, plain = found[name, bf16], found["plain", bf16]
            say(f"{name}: losses of three steps as without it, {'bf16' if bf16 else 'fp32'}", ours,
                max(abs(x / y - 1) for x, y in zip(ours, plain, strict=True)) < limit)
    dist.destroy_process_group()
    kill_and_resume(a)


def kill_and_resume(a):
    """A run in a process group of one is killed once a state is there, then resumed to its end."""
    posts, out = Path(a.folder) / "few", Path(a.folder) / "killed"
    python(["toy.py", "--out", posts, "--posts", 200], None)
    python(["-m", "tools.tokenizer", "--data", posts, "--vocab", 400], None)
    words = [sys.executable, "sft.py", "--preset", "toy", "--size", "toy-tiny", "--device", a.device,
             "--data", str(posts), "--loss-on", "all", "--steps", "400", "--save-every", "20", "--out",
             str(out), "--resume"]
    going = subprocess.Popen(words, cwd=HERE.parent, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    until = time.perf_counter() + 40
    while time.perf_counter() < until and going.poll() is None and not [*out.glob("state/step-*/done.json")]:
        time.sleep(.02)
    going.send_signal(signal.SIGKILL)
    going.wait()
    killed = not (out / "model.pt").exists() and any(out.glob("state/step-*"))
    python(words[1:], None)
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    say("killed after a state was there, then resumed to the end", [killed, steps[-1]],
        killed and steps == sorted(set(steps)) and steps[-1] == 399)


STEPS = {"same": same, "check": check, "demo": demo, "speed": speed, "ppo": ppo_iteration,
         "group": group}


# -------------------------------------------------------------------------------------- the parent

def watch(name, a, folder):
    """Run a step in a process of its own; show its checks as they come. Returns: its entry."""
    words = [sys.executable, __file__, "--step", name, "--device", a.device, "--size", a.size,
             "--folder", folder]
    entry, began = {"checks": [], "limit": LIMITS[name]}, time.perf_counter()
    noise = tempfile.TemporaryFile("w+")
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=noise, text=True, cwd=HERE.parent,
                             start_new_session=True)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
    signal.alarm(LIMITS[name])
    for line in child.stdout:
        if line.startswith('{"check"'):
            found = json.loads(line)
            entry["checks"].append(found)
            mark = {None: "     ", True: "ok   ", False: "FAIL "}[found["ok"]]
            print(f"{mark}{found['check']:66} {str(found['value'])[:90]}", flush=True)
    code = child.wait()
    signal.alarm(0)
    entry["seconds"] = round(time.perf_counter() - began, 1)
    if code:
        noise.seek(0)
        entry["error"] = (f"cut off after {LIMITS[name]} s" if code == -signal.SIGKILL else
                          "\n".join(noise.read().splitlines()[-TAIL:]))
    entry["ok"] = (not code or code == -signal.SIGKILL) and all(
        c["ok"] is not False for c in entry["checks"])
    print(f"{'ok   ' if entry['ok'] else 'FAIL '}step {name}, {entry['seconds']} s"
          f"{': ' + entry['error'] if code else ''}\n", flush=True)
    return entry


def about(a):
    """What this is measured on."""
    words = "git describe --always --dirty --abbrev=40 --exclude=*".split()
    commit = subprocess.run(words, cwd=HERE.parent, capture_output=True,
                            text=True).stdout.strip() if shutil.which("git") else ""
    card = torch.cuda.get_device_name() if a.device == "cuda" else f"{os.cpu_count()} cores"
    return {"device": a.device, "card": card, "size": a.size, "torch": torch.__version__,
            "python": sys.version.split()[0], "commit": commit or None}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--size", default="gpt2", help="gpt2, or toy: tiny shapes, on any machine")
    parser.add_argument("--out", default="gpu.json", help="the JSON")
    parser.add_argument("--only", default=",".join(STEPS), help="steps, with commas between")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.step:
        try:
            STEPS[a.step](a)
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None
        return
    if a.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here: make gpu-proof DEVICE=cpu SIZE=toy")
    found = about(a) | {"steps": {}}
    print(json.dumps(found)[:-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in a.only.split(","):
            found["steps"][name] = watch(name, a, folder)
            Path(a.out).write_text(json.dumps(found, indent=1) + "\n")
    found["seconds"] = round(sum(entry["seconds"] for entry in found["steps"].values()), 1)
    Path(a.out).write_text(json.dumps(found, indent=1) + "\n")
    failed = [name for name, entry in found["steps"].items() if not entry["ok"]]
    print(f"{found['seconds']} s; {a.out}; " + (f"failed: {', '.join(failed)}" if failed else "all well"))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()

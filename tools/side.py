r"""Appendix to Chapter 9. One post, every policy's summary side by side, with its numbers.

    score       the reward model's
    tokens      its length
    log-ratio   log pi(text) - log pi_sft(text), nats. pi: human feedback, pi_sft: supervised; above
                0, PPO has made this text more probable. Of human feedback's own samples the mean is
                its KL from the supervised policy

The policies write greedily. The best of n is the supervised policy's: of n samples at temperature
0.7, as sample.py draws them, the one with the highest score. It pleases the reward model without
any training, but costs n summaries each time.

    python -m tools.side --run runs/demo                                  # 4 s on one core
    python -m tools.side --run runs/demo --post "My sister sold my bike. Should I move out?"

Read after: sample.py and evaluate.py, whose functions these numbers come from.
"""
import textwrap
from dataclasses import dataclass
from pathlib import Path

import data
from evaluate import FOLDERS, log_prob
from runtime import Machine, Problem, flag, launch
from sample import load_checkpoint, post_of, score_texts, summarise, worked_examples


@dataclass(frozen=True)
class Config(Machine):
    run: str = flag(..., "a run such as runs/demo, finished or half done", what="DIR")
    post: str = flag(None, "the post to summarise; none: a random held-out one", what="TEXT")
    post_file: str = flag(None, "file that holds it; - is standard input", what="TEXT FILE")
    best_of: int = flag(16, "samples of the supervised policy, of which the best is shown; 1: none",
                        least=1)
    data: str = flag("", "folder of posts; none: those that the supervised policy learned from",
                     what="DIR")
    seed: int = flag(0, "which post is shown, and every random number")


BEST_TEMPERATURE = 0.7             # of sample.py --best-of


def load_run(folder, world):
    """A run's networks: {name: Checkpoint} of its policies, in order, and its reward model. What is
    not trained yet is left out, or None. Raises: Problem when there is no supervised policy."""
    run = Path(folder)
    if (run / "model.pt").exists():
        raise Problem(f"--run {run} is one stage of a run: did you mean {run.parent}?")
    supervised, reward = load_checkpoint(run / "supervised", world), None
    policies = {name: supervised if name == "supervised" else
                load_checkpoint(run / stage, world, like=supervised)
                for name, stage in FOLDERS.items() if (run / stage / "model.pt").exists()}
    if (run / "reward" / "model.pt").exists():
        reward = load_checkpoint(run / "reward", world, "scalar", like=supervised)
    return policies, reward


def log_ratio(policies, post, texts):
    """log pi - log pi_sft of each text as a summary of the post, nats; None without human feedback.

    At the temperature at which PPO samples, as its KL is measured.
    """
    if "human_feedback" not in policies:
        return [None] * len(texts)
    ppo, supervised = policies["human_feedback"], policies["supervised"]
    posts, temperature = [post] * len(texts), ppo.flags.get("temperature", 1.0)
    ours, theirs = (log_prob(who, who.queries(posts), ppo.responses(texts), temperature)
                    for who in (ppo, supervised))
    return (ours - theirs).tolist()


def summaries(cfg, policies, reward, folder, post):
    """{who: text} of one post: the author's, if known, each policy's, the best of n."""
    found = {"the author's": post["summary"].strip()} if post.get("summary") else {}
    for name, policy in policies.items():
        examples = worked_examples(folder, cfg.seed) if name == "pretrained" else ()
        found[name.replace("_", " ")], = summarise(policy, [post], examples, bar=name)
    if cfg.best_of > 1 and reward:
        posts = [post] * cfg.best_of
        texts = summarise(policies["supervised"], posts, seed=cfg.seed,
                          temperature=BEST_TEMPERATURE, bar="best of n")
        scores = score_texts(reward, posts, texts)
        found[f"best of {cfg.best_of}"] = texts[scores.index(max(scores))]
    return found


def side(cfg, world):
    """Print the post and its summaries with their numbers."""
    with world.mixed():
        policies, reward = load_run(cfg.run, world)
        encode = policies["supervised"].tokenizer.encode_ordinary
        folder = cfg.data or policies["supervised"].flags.get("data") or "--data"   # named: missing
        post = post_of(cfg, folder)
        texts = summaries(cfg, policies, reward, folder, post)
        said = list(texts.values())
        scores = score_texts(reward, [post] * len(said), said) if reward else [None] * len(said)
        ratios = log_ratio(policies, post, said)
    if post["id"] != "typed":
        print(f"post {post['id']} of {folder}, held out: nobody was trained on it; --seed "
              f'{cfg.seed + 1} takes another, --post "..." your own\n')
    print(data.query_text(post).removesuffix("TL;DR:").strip())
    for (who, text), points, ratio in zip(texts.items(), scores, ratios, strict=True):
        number = "{:+.2f}".format
        print(f"\n{who:16} score {'-' if points is None else number(points):>6}   "
              f"{len(encode(' ' + text)):3} tokens   "
              f"log-ratio {'-' if ratio is None else number(ratio):>7}")
        print(textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="  "))
    print("\nscore: the reward model's; authors' summaries have 0 on average.  log-ratio: human "
          "feedback\nwrites this text e^(log-ratio) times as often as the supervised policy.  "
          f"Policies write greedily;\nbest of n: of its samples at temperature {BEST_TEMPERATURE}, "
          "by score.")


def main(argv=None):
    """The command line."""
    launch(side, Config, argv, __doc__)


if __name__ == "__main__":
    main()

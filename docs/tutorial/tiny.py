"""The whole method in one file: learn from feedback to write what people want.

A *post* is twelve words: two to five things to buy, and chatter. We know its best *summary*:
    post    um milk so so eggs well er rice like um hmm so
    best    milk eggs rice                               all things, in order, and nothing else

Nobody shows us that. Authors write *examples*: most forget the last thing, add chatter or say a
thing twice. And people *compare*: "the second is better", which is often wrong. So, in four steps:
    1. imitate       a network learns to write as the authors do: the *supervised policy*
    2. compare       it writes two summaries of a post, and a person picks one; 32,000 times
    3. reward model  a second network learns from the picks to give any summary a *score*
    4. PPO           the policy writes, the reward model scores, the policy learns to score higher

A *policy* gives each possible next word a probability, pi(word); the unit of log pi is the *nat*.
Shapes: B rows, T columns, R of them a summary's, C channels, H heads, D = C / H, V words. Run it:
    python docs/tutorial/tiny.py              one to two minutes; for another seed, add a number
"""
import copy
import random
import sys

import torch
from torch import nn

THINGS = "milk eggs rice tea jam figs peas corn beans salt".split()
CHATTER = "um er well so like hmm".split()
WORDS = [*THINGS, *CHATTER, "<end>"]
V, END, PAD = len(WORDS), len(WORDS) - 1, len(WORDS)    # PAD fills rows up; nobody can write it
P, R = 12, 8              # words of a post; of a summary with its <end>, at most
C, H, LAYERS = 64, 4, 2   # the size of every network: 100,000 weights

# ------------------------------------------------------------ the world: posts, authors, the truth
def write_post():
    words = random.sample(THINGS, random.randint(2, 5))
    words += random.choices(CHATTER, k=P - len(words))
    return random.sample(words, P)                                      # in any order

def best_summary(post):
    return [word for word in post if word in THINGS]

def author_summary(post):
    things, summary = best_summary(post), []
    if random.random() < .7:                                            # forgets the last thing
        things.pop()
    for thing in things:
        twice, chatter = random.random() < .15, random.random() < .35
        summary += [thing] + [thing] * twice + random.sample(CHATTER, chatter)
    return summary[:R - 1]

def points(post, summary):
    """The truth, which no network sees: each thing, in order, is a point; any other word costs one.
    Of the post above "milk eggs rice" gets 3 points, "milk um eggs eggs" 2 - 2 = 0."""
    left, right = best_summary(post), 0
    for word in summary:
        if word in left:
            left, right = left[left.index(word) + 1:], right + 1
    return right - (len(summary) - right)

# ------------------------------------------------------------------------------------------- a GPT
def attention(q, k, v):
    """softmax(q k' / sqrt(D)) v: each column takes over what fits, of itself and those before."""
    T, D = q.shape[2:]                                                  # q, k, v: (B, H, T, D)
    fit = q @ k.mT / D ** .5 + torch.full((T, T), -torch.inf).triu(1)   # (B, H, T, T)
    return fit.softmax(-1) @ v                                          # (B, H, T, D)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
    def forward(self, x):                                               # (B, T, C) -> (B, T, C)
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (3 * H, C // H))   # (B, T, 3H, D)
        q, k, v = qkv.transpose(1, 2).chunk(3, 1)                       # (B, H, T, D) each
        x = x + self.out(attention(q, k, v).transpose(1, 2).flatten(2))         # between columns
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))       # within a column

class GPT(nn.Module):
    """outputs = V: a policy; a number (logit) for each next word. outputs = 1: a score or value."""
    def __init__(self, outputs):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V + 1, C), nn.Embedding(P + R, C)     # words, positions
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, outputs, bias=False)
        nn.init.normal_(self.wte.weight, std=C ** -.5)
        nn.init.normal_(self.wpe.weight, std=.1 * C ** -.5)             # small: first see words
    def forward(self, tokens):                                          # (B, T) -> (B, T, outputs)
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))  # (B, T, C)
        return self.head(self.norm(self.blocks(x)))

# A row is  post | summary <end> | PAD ...  Word t of the summary stands in column P + t and is
# predicted in the column before. No column sees what stands to its right: PAD changes nothing.
def encode(rows):
    rows = [torch.tensor([WORDS.index(word) for word in row]) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)         # (B, T)

def decode(tokens):
    return [[WORDS[i] for i in row if i < END] for row in tokens[:, P:].tolist()]

def log_probs(policy, tokens):
    """log pi(word t | all words before it), of the summary's words; past <end> anything. (B, R)"""
    logits, words = policy(tokens)[:, P - 1:-1], tokens[:, P:].clamp(max=END)    # (B, R, V), (B, R)
    return logits.log_softmax(-1).gather(-1, words[..., None])[..., 0]

@torch.no_grad()
def write(policy, posts):
    """A summary of each post: word after word is drawn by its probability. (B, P + R)"""
    tokens = encode(posts)                                              # (B, P)
    for _ in range(R):
        token = torch.multinomial(policy(tokens)[:, -1].softmax(-1), 1)         # (B, 1)
        has_ended = (tokens == END).any(1, keepdim=True)                        # (B, 1) bool
        tokens = torch.cat([tokens, token.masked_fill(has_ended, PAD)], 1)
    return tokens

def learn(adam, loss, progress):
    """One step down the gradient. While progress goes from 0 to 1, steps grow, then shrink to 0."""
    adam.param_groups[0]["lr"] = adam.defaults["lr"] * min(.1 + 20 * progress, 1 - progress)
    adam.zero_grad()
    loss.backward()
    adam.step()

# ------------------------------------- 1. imitate:  loss = - mean of log pi(the author's next word)
def imitate(steps=1000, batch=64):
    policy = GPT(V)
    adam = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for step in range(steps):
        posts = [write_post() for _ in range(batch)]
        tokens = encode([[*post, *author_summary(post), "<end>"] for post in posts])    # (B, T)
        loss = -log_probs(policy, tokens)[tokens[:, P:] != PAD].mean()
        learn(adam, loss, step / steps)
        if step % 200 == 0:
            print(f"imitate            step {step:3}   loss {loss.item():.2f} nats a word")
    return policy

# ---------------------------------------------------------------------- 2. compare, 3. reward model
def compare(policy, count):
    """P(A is picked) = sigmoid(2 * (points of A - points of B)): Bradley and Terry (1952). So one
    point more is picked in 88 of 100 cases, and with equal points a coin decides."""
    posts = [write_post() for _ in range(count)]
    a, b = write(policy, posts), write(policy, posts)                           # (B, P + R) each
    of_a, of_b = (torch.tensor([*map(points, posts, decode(x))]) for x in (a, b))   # (B,) each
    picks_a = torch.rand(count, 1) < (2 * (of_a - of_b))[:, None].sigmoid()     # (B, 1) bool
    return torch.where(picks_a, a, b), torch.where(picks_a, b, a)               # chosen, rejected

def pairwise_loss(chosen, rejected):
    """-log P(what was picked) = -log sigmoid(difference); a coin toss: log 2 = .69. (B,) -> ()"""
    return -nn.functional.logsigmoid(chosen - rejected).mean()

def score(network, tokens):
    """The number at the last word, the first from where all of the summary is seen. (B,)"""
    return network(tokens)[torch.arange(len(tokens)), (tokens != PAD).sum(1) - 1, 0]

def train_reward_model(policy, steps=500, batch=64):
    network = copy.deepcopy(policy)                     # it can read posts already,
    network.head = nn.Linear(C, 1, bias=False)          # and now gives one number
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        chosen, rejected = (score(network, tokens) for tokens in compare(policy, batch))    # (B,)
        loss = pairwise_loss(chosen, rejected)
        learn(adam, loss, step / steps)
        if step % 100 == 0:
            print(f"reward model       step {step:3}   loss {loss.item():.2f}")
    return network

# ----------- 4. PPO:  raise the mean of  score - beta * log[ pi(summary) / pi_reference(summary) ]
# The reference is the supervised policy. The mean of that log is the KL divergence, how far the
# policy has moved; too far, and it finds summaries that fool the reward model. The score tells how
# good a summary is, but not which words made it good. So a *critic* learns what to expect before
# each word. A word's *advantage* A is how much better it went: by this it becomes more probable.
def token_rewards(old_logp, ref_logp, score, is_response, beta):
    """What each word earns: minus beta times its log ratio; the last one also the score. (B, R)"""
    reward = -beta * (old_logp - ref_logp)                                      # (B, R)
    end = is_response.sum(1, keepdim=True) - 1                                  # (B, 1)
    return reward.scatter_add(1, end, score[:, None])

def gae(reward, value, lam=.95):
    """delta[t] = reward[t] + value[t+1] - value[t]: what word t brought, beyond the expected.
    advantage[t] = delta[t] + lam * advantage[t+1]: this, and what followed from it. (B, R)
    return[t] = advantage[t] + value[t]: what the critic should have said. (B, R)"""
    advantage = reward + nn.functional.pad(value[:, 1:], (0, 1)) - value        # (B, R) delta
    for t in reversed(range(reward.shape[1] - 1)):
        advantage[:, t] += lam * advantage[:, t + 1]
    return advantage, advantage + value

def whiten(advantage, is_response):
    """Mean 0 and variance 1 over the N real words: the scores' unit does not matter. (B, R)"""
    real = advantage[is_response]                                               # (N,)
    scaled = (real - real.mean()) / (real.var(unbiased=False) + 1e-8).sqrt()
    return torch.zeros_like(advantage).masked_scatter(is_response, scaled)

def policy_loss(logp, old_logp, advantage, clip=.2):
    """max(-A * ratio, -A * clamp(ratio, 1 - clip, 1 + clip)),   ratio = pi(word) / pi_old(word)
    Descent makes good words (A > 0) more probable, bad ones less. When the probability has changed
    by 20 % since the summaries were written, the loss is flat: enough for these. (B, R)"""
    ratio = (logp - old_logp).exp()                                             # (B, R)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))

def value_loss(value, returns):
    return .5 * (value - returns) ** 2                      # (B, R). The chapter clips this, too.

def ppo(reference, reward_model, iterations=50, batch=128, beta=.2):
    """Write, score, learn; again and again. Returns: the policy, and its KL in nats."""
    policy, critic = copy.deepcopy(reference), copy.deepcopy(reward_model)      # these two learn
    adam = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=4e-4)
    for iteration in range(iterations):
        tokens = write(policy, [write_post() for _ in range(batch)])            # (B, P + R)
        is_response = tokens[:, P:] != PAD                                      # (B, R) bool
        with torch.no_grad():
            scores = score(reward_model, tokens)                                # (B,)
            old_logp, ref_logp, value = (                                       # (B, R) each
                x.masked_fill(~is_response, 0) for x in (log_probs(policy, tokens),
                log_probs(reference, tokens), critic(tokens)[:, P - 1:-1, 0]))
        reward = token_rewards(old_logp, ref_logp, scores, is_response, beta)   # (B, R)
        advantage, returns = gae(reward, value)                                 # (B, R) each
        advantage = whiten(advantage, is_response)                              # (B, R)
        for some in [half for _ in range(4) for half in torch.randperm(batch).chunk(2)]:
            logp = log_probs(policy, tokens[some])                              # (B / 2, R)
            expected = critic(tokens[some])[:, P - 1:-1, 0]                     # (B / 2, R)
            loss = (policy_loss(logp, old_logp[some], advantage[some])          # (B / 2, R)
                    + .1 * value_loss(expected, returns[some]))
            learn(adam, loss[is_response[some]].mean(), iteration / iterations)
        kl = (old_logp - ref_logp).sum(1).mean()
        if iteration % 10 == 0:
            print(f"PPO           iteration {iteration:3}   score {scores.mean():.2f}, KL {kl:.2f}")
    return policy, kl

# ------------------------------------------------------------------------------- before and after
def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    random.seed(seed)
    torch.manual_seed(seed)
    supervised = imitate()
    reward_model = train_reward_model(supervised)
    policy, kl = ppo(supervised, reward_model)
    posts = [write_post() for _ in range(300)]               # new ones
    tries = torch.stack([write(supervised, posts) for _ in range(16)])          # (16, B, P + R)
    scores = torch.stack([score(reward_model, tokens) for tokens in tries])     # (16, B)
    written = {"authors": [author_summary(post) for post in posts],
               "supervised": decode(tries[0]),
               "best of 16": decode(tries[scores.argmax(0), torch.arange(len(posts))]),
               "PPO": decode(write(policy, posts)),
               "best": [best_summary(post) for post in posts]}
    print("\nthree posts:", *(" ".join(post) for post in posts[:3]), sep="\n    ")
    print(f"\nshare of all points, three summaries  (KL, nats: best of 16 1.8, PPO {kl:.1f})")
    for name, summaries in written.items():
        earned = sum(map(points, posts, summaries)) / sum(map(points, posts, written["best"]))
        print(f"    {name:10}{earned:5.0%}  ", *(f"{' '.join(s):24}" for s in summaries[:3]))

if __name__ == "__main__":
    main()

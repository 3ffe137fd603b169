"""Appendix. The exercises of chapters 1 to 5: tokens, rows, a network, and what it is trained on.

Each class is one exercise (tools/exercises_check.py says what that is). No chapter is imported
here: an oracle that used the book's own functions could not find fault with them.

    python -m tools.exercises check

Read after: data.py, model.py, sft.py.
"""
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import torch

from tools.exercises_check import ByHand, Exercise, mistake


class Merge(Exercise):
    chapter, function = "tools/tokenizer", "merge"
    question = "How does a word become tokens?"
    hints = (
        "Look at all pairs of neighbours. Joined, a + b is in `ranks` or not; a low rank is early.",
        "`pairwise(parts)` gives the neighbours, `ranks.get(a + b, len(ranks))` their rank; min() "
        "of (rank, i) finds the earliest, of equals the leftmost.",
        "Repeat: find that pair; when it is in no rank, return; else parts[i:i + 2] = [a + b]. "
        "`parts` is changed in place, and nothing is returned.")

    def cases():
        """Pieces as single bytes, and the tokens' ranks."""
        low = {b"lo": 0, b"low": 1, b"we": 2}                # (real ranks start with the bytes')
        lists = [(b"lo", low), (b"low", low), (b"abc", {b"bc": 0, b"ab": 1}),
                 (b"aaa", {b"aa": 0}), (b"lowlow", low), (b"lowe", low), (b"xyz", low)]
        return [([bytes([byte]) for byte in piece], ranks) for piece, ranks in lists]

    def run(function, parts, ranks):
        """`merge` changes its first argument."""
        function(parts, ranks)
        return parts

    def oracle(parts, ranks):
        """In the order in which the tokens were learned: join each wherever it stands."""
        for token in sorted(ranks, key=ranks.get):
            i = 0
            while i + 1 < len(parts):
                if parts[i] + parts[i + 1] == token:
                    parts[i:i + 2] = [token]
                i += 1

    @mistake
    def leftmost(parts, ranks):
        """leftmost first: the leftmost pair that is a token is joined, not the earliest token."""
        i = 0
        while i + 1 < len(parts):
            if parts[i] + parts[i + 1] in ranks:
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
                i = 0
            else:
                i += 1

    @mistake
    def once(parts, ranks):
        """only once: one pair is joined, then it stops."""
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts))
                 if a + b in ranks]
        if found:
            i = min(found)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]


class LongestCommonSubsequence(Exercise):
    chapter, function = "tools/rouge", "longest_common_subsequence"
    question = "How much do two texts share, in the same order?"
    hints = (
        "Let L[i][j] be the answer for the first i words of a and the first j of b. L[0][j] is 0.",
        "If word i of a equals word j of b, L[i][j] = L[i-1][j-1] + 1. If not, one of the two "
        "words is not needed: the larger of L[i-1][j] and L[i][j-1].",
        "Two rows are enough: `above` (i - 1) and `row` (i), both of len(b) + 1 numbers that start "
        "with 0.")

    def cases():
        """Lists of words."""
        texts = [("a", "a"), ("a", "b"), ("", "a"), ("a b", "b a"), ("a b c", "a x b c"),
                 ("a x b y c", "a b c"), ("b a c b", "a b c b a")]
        return [(a.split(), b.split()) for a, b in texts]

    def oracle(a, b):
        """Try every choice of words of a, the longest first."""
        for n in range(len(a), 0, -1):
            for words in itertools.combinations(a, n):
                rest = iter(b)
                if all(word in rest for word in words):
                    return n
        return 0

    @mistake
    def in_any_order(a, b):
        """order forgotten: words are counted wherever they stand, as in ROUGE-1."""
        return (Counter(a) & Counter(b)).total()

    @mistake
    def without_gaps(a, b):
        """no gaps allowed: this is the longest run of words that both have."""
        runs = {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
        return max((len(run) for run in runs for i in range(len(b))
                    if tuple(b[i:i + len(run)]) == run), default=0)


def draw(*shape, seed=0):
    """Some numbers from a normal distribution, always the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Attention(Exercise):
    chapter, function = "model", "attention"
    question = "What does a token find in those before it?"
    hints = (
        "q @ k.mT gives, for each column (row of the table), how well each other column fits.",
        "Divide by sqrt(D). A column may look at itself and those before it: put -inf where the "
        "looked-at column is later. softmax makes 0 of it.",
        "torch.ones(T, T, dtype=torch.bool).tril() is True where looking is allowed: masked_fill "
        "the opposite with -math.inf, softmax over the last dimension, times v.")

    def cases():
        """q, k, v: (B, H, T, D)."""
        q, k, v = torch.tensor([[1., 0], [2, 1]]), torch.tensor([[1., 1], [0, 1]]), torch.eye(2)
        return [tuple(x[None, None] for x in (q, k, v)),
                tuple(draw(2, 2, 4, 3, seed=seed) for seed in range(3))]

    def oracle(q, k, v):
        """One output at a time."""
        found = torch.zeros_like(v)
        for b, h, t in itertools.product(*map(range, q.shape[:3])):
            fits = [math.exp(float(q[b, h, t] @ k[b, h, s]) / math.sqrt(q.shape[3]))
                    for s in range(t + 1)]
            found[b, h, t] = sum(fit / sum(fits) * v[b, h, s] for s, fit in enumerate(fits))
        return found

    @mistake
    def of_the_future(q, k, v):
        """sees the future: each column also looks at those after it, which it has to predict."""
        return (q @ k.mT / math.sqrt(q.shape[3])).softmax(-1) @ v

    @mistake
    def unscaled(q, k, v):
        """not divided by sqrt(D): with many channels, one column gets all of the weight."""
        seen = torch.ones(q.shape[2], q.shape[2]).tril() > 0
        return (q @ k.mT).masked_fill(~seen, -math.inf).softmax(-1) @ v

    @mistake
    def masked_late(q, k, v):
        """mask after softmax: what is left no longer adds up to 1."""
        return (q @ k.mT / math.sqrt(q.shape[3])).softmax(-1).tril() @ v

    @mistake
    def over_queries(q, k, v):
        """softmax over the wrong dimension: the weights of one column have to add up to 1."""
        seen = torch.ones(q.shape[2], q.shape[2]).tril() > 0
        return (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~seen, -math.inf).softmax(-2) @ v


ROWS = "tokens", "columns", "targets", "is_response"       # the four fields of Rows


def laid_out(queries, responses, pad, length=None, shift=-1, ends_early=0, all_real=False):
    """The fields of Rows, number by number, as the docstring of Rows draws them; and variants."""
    T = max(len(q) + len(r) for q, r in zip(queries, responses, strict=True))
    R = length or max(map(len, responses))
    rows = {name: [] for name in ROWS}
    for q, r in zip(queries, responses, strict=True):
        n, last = len(q), len(q) + len(r) - 1
        rows["tokens"].append(q + r + [pad] * (T - n - len(r)))
        rows["columns"].append([min(n + shift + t, last) for t in range(R)])
        rows["targets"].append(r + [pad] * (R - len(r)))
        rows["is_response"].append([all_real or t < len(r) - ends_early for t in range(R)])
    return tuple(torch.tensor(rows[name]) for name in ROWS)


class LayOut(Exercise):
    chapter, function = "model", "lay_out"
    question = "Which columns predict the response, and which count?"
    hints = (
        "Draw one row with a query of 2 and a response of 2 tokens. In which column is the first "
        "response token, and in which one is it predicted?",
        "`stack` makes one tensor of lists. A query of n tokens ends in column n - 1: there "
        "response token 0 is predicted, so token t in n - 1 + t.",
        "n and r as (B, 1), t = torch.arange(R)[None]: columns = minimum(n - 1 + t, n + r - 1), "
        "is_response = t < r. With `length`, pad the targets to that width first.")

    def cases():
        """queries, responses, pad, length."""
        return [([[5, 6]], [[7, 9]], 10, None),
                ([[5, 6, 4], [5]], [[7, 9], [7, 8, 9]], 10, None),
                ([[5, 6], [5, 6, 7]], [[9], [7, 9]], 10, 4)]

    def run(function, *args):
        """By name, as a dict."""
        return dict(zip(ROWS, function(*args), strict=True))

    def oracle(queries, responses, pad, length):
        return laid_out(queries, responses, pad, length)

    @mistake
    def off_by_one(queries, responses, pad, length):
        """logits off by one: a token is predicted in the column before it, not in its own."""
        return laid_out(queries, responses, pad, length, shift=0)

    @mistake
    def too_early(queries, responses, pad, length):
        """one column too early: the query's last column already predicts the response's first."""
        return laid_out(queries, responses, pad, length, shift=-2)

    @mistake
    def padding(queries, responses, pad, length):
        """padding learned from: is_response is True past the end."""
        return laid_out(queries, responses, pad, length, all_real=True)

    @mistake
    def no_end(queries, responses, pad, length):
        """end left out: <|endoftext|>, too, is a response token; a policy has to learn to stop."""
        return laid_out(queries, responses, pad, length, ends_early=1)


class Last(Exercise):
    chapter, function = "model", "Rows.last"
    question = "In which column is a whole summary read?"
    told = "The column of the last real token, (B, 1) long: there the reward model's score is read."
    hints = (
        "columns[:, 0] is the query's last column. How many tokens follow it that are not padding?",
        "is_response is True once for each of them.",
        "self.columns[:, :1] + self.is_response.sum(1, keepdim=True)")

    def cases():
        """Rows, of which one is shorter than the other."""
        texts = [([[5, 6]], [[7, 9]], 10),
                 ([[5, 6, 4], [5]], [[7, 9], [7, 9]], 10, 4),
                 ([[5, 6, 4], [5]], [[9], [7, 8, 8, 9]], 10)]
        return [(SimpleNamespace(**dict(zip(ROWS, laid_out(*some), strict=True))),)
                for some in texts]

    def run(function, rows):
        """`last` is a property."""
        return getattr(function, "fget", function)(rows)

    def oracle(rows):
        """Walk from the left to the last token that is not padding."""
        real = rows.is_response.tolist()
        return torch.tensor([[first + sum(1 for each in row if each)]
                             for (first, *_), row in zip(rows.columns.tolist(), real, strict=True)])

    @mistake
    def truncated(rows):
        """score of the truncated row: one column too early, before the last token is seen."""
        return rows.columns[:, :1] + rows.is_response.sum(1, keepdim=True) - 1

    @mistake
    def at_padding(rows):
        """score at padding: the last column of the table is padding in all but the longest row."""
        return torch.full_like(rows.columns[:, :1], rows.tokens.shape[1] - 1)

    @mistake
    def behind(rows):
        """one column too late: the column after the last token is padding, or outside the row."""
        return rows.columns[:, :1] + rows.is_response.sum(1, keepdim=True) + 1


def log_prob(logits, token, temperature=1.0):
    """log softmax(logits / temperature)[token], with math alone. logits: a list."""
    scaled = [x / temperature for x in logits]
    return scaled[token] - max(scaled) - math.log(sum(math.exp(x - max(scaled)) for x in scaled))


class TokenLogp(Exercise):
    chapter, function = "model", "token_logp"
    question = "How probable was the token that stands there?"
    hints = (
        "The log-probabilities of all tokens are log_softmax(logits / temperature, -1).",
        "Of each place take the entry of its token: gather along the last dimension. Padding has "
        "the id V, which is outside: make it 0 first; nobody reads that number.",
        "tokens = tokens.masked_fill(tokens >= V, 0); (logits / temperature).log_softmax(-1)"
        ".gather(-1, tokens[..., None])[..., 0]. (Ours asks F.cross_entropy, which needs less "
        "memory.)")

    def cases():
        """logits (B, R, V), tokens (B, R), temperature."""
        return [(torch.tensor([[[1.0, 2.0, 0.0]]]), torch.tensor([[1]]), 1.0),
                (draw(2, 3, 4), torch.tensor([[1, 3, 4], [2, 0, 1]]), 0.5),
                (draw(1, 2, 3) * 100, torch.tensor([[0, 2]]), 1.0)]

    def run(function, logits, tokens, temperature):
        """Without what stands at padding, which nobody reads."""
        found = function(logits, tokens, temperature)
        real = tokens < logits.shape[-1]
        return torch.where(real, found, 0.0) if found.shape == tokens.shape else found

    def oracle(logits, tokens, temperature):
        """One token at a time."""
        V = logits.shape[-1]
        return torch.tensor([[log_prob(at.tolist(), int(token) if token < V else 0, temperature)
                              for at, token in zip(*row, strict=True)]
                             for row in zip(logits, tokens, strict=True)])

    def right(logits, tokens, temperature=1.0):
        """What the mistakes start from."""
        tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
        return (logits / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    @mistake
    def off_by_one(logits, tokens, temperature):
        """logits off by one: these are aligned already, logits[:, t] belongs to tokens[:, t]."""
        return TokenLogp.right(logits[:, :-1], tokens[:, 1:], temperature)

    @mistake
    def rolled(logits, tokens, temperature):
        """logits off by one: these are aligned already, logits[:, t] belongs to tokens[:, t]."""
        return TokenLogp.right(logits.roll(1, 1), tokens, temperature)

    @mistake
    def in_bits(logits, tokens, temperature):
        """log base: nats are wanted, natural logarithms, not bits."""
        return TokenLogp.right(logits, tokens, temperature) / math.log(2)

    @mistake
    def in_bits_of_0(logits, tokens, temperature):
        """log base: nats are wanted, natural logarithms, not bits. (And the log of a probability
        that is rounded to 0 is -inf: log_softmax knows better.)"""
        return (TokenLogp.right(logits, tokens, temperature).exp()).log2()

    @mistake
    def of_0(logits, tokens, temperature):
        """log of 0: a small probability is rounded to 0, and its log is -inf; use log_softmax."""
        return TokenLogp.right(logits, tokens, temperature).exp().log()

    @mistake
    def loss(logits, tokens, temperature):
        """wrong sign: this is the loss, minus the log-probability."""
        return -TokenLogp.right(logits, tokens, temperature)

    @mistake
    def probability(logits, tokens, temperature):
        """log forgotten: this is the probability."""
        return TokenLogp.right(logits, tokens, temperature).exp()

    @mistake
    def cold(logits, tokens, temperature):
        """temperature forgotten: the policy sampled from softmax(logits / temperature)."""
        return TokenLogp.right(logits, tokens)

    @mistake
    def times(logits, tokens, temperature):
        """temperature multiplied: it divides the logits."""
        return TokenLogp.right(logits, tokens, 1 / temperature)


class Choose(Exercise):
    chapter, function = "model", "choose"
    question = "How is a token drawn from logits and one random number?"
    hints = (
        "Probabilities, then their running sum: .5 .3 .2 becomes .5 .8 1. Where in it is u?",
        "The first place whose running sum is *above* u: count how many sums are <= u. Without u: "
        "argmax.",
        "logp = (logits / temperature).log_softmax(-1); sums = logp.exp().cumsum(-1); token = "
        "(sums <= u[:, None]).sum(-1), at most V - 1; gather its logp.")

    def cases():
        """logits (B, V), temperature, u (B,)."""
        p = torch.tensor([[0.5, 0.3, 0.2]]).log()
        return [(p, 1.0, torch.tensor([0.6]).double()), (p, 1.0, None),
                (torch.tensor([[-math.inf, 0.0, 0.0]]), 1.0, torch.zeros(1).double()),
                (torch.cat([p, p, p.flip(1)]), 0.5, torch.tensor([0.6, 0.9, 0.1]).double())]

    def run(function, logits, temperature, u):
        """By name."""
        return dict(zip(("token", "logp"), function(logits, temperature, u), strict=True))

    def oracle(logits, temperature, u):
        """Walk along the probabilities until they add up to more than u."""
        tokens, logps = [], []
        for i, row in enumerate(logits.tolist()):
            logp = [log_prob(row, token, temperature) for token in range(len(row))]
            token, total = 0, math.exp(logp[0])
            while u is not None and total <= u[i]:
                token += 1
                total += math.exp(logp[token])
            tokens.append(token if u is not None else logp.index(max(logp)))
            logps.append(logp[tokens[-1]])
        return torch.tensor(tokens), torch.tensor(logps)

    def right(logits, temperature, u, border=0, report=None):
        """What the mistakes start from."""
        logp = (logits / temperature).log_softmax(-1)
        if u is None:
            token = logp.argmax(-1)
        else:
            sums = logp.exp().double().cumsum(-1)
            token = ((sums < u[:, None]) if border else (sums <= u[:, None])).sum(-1)
        logp = logp if report is None else (logits / report).log_softmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]

    @mistake
    def at_the_border(logits, temperature, u):
        """border: at u = 0 the first token would be chosen even if its probability is 0."""
        return Choose.right(logits, temperature, u, border=1)

    @mistake
    def cold(logits, temperature, u):
        """temperature forgotten: it divides the logits before softmax."""
        return Choose.right(logits, 1.0, u)

    @mistake
    def times(logits, temperature, u):
        """temperature multiplied: it divides the logits."""
        return Choose.right(logits, 1 / temperature, u)

    @mistake
    def reported(logits, temperature, u):
        """log-prob at another temperature: PPO needs that of the distribution it was drawn from."""
        return Choose.right(logits, temperature, u, report=1.0)

    @mistake
    def greedy(logits, temperature, u):
        """always the most probable: u has no effect."""
        return Choose.right(logits, temperature, None)


class Score(Exercise):
    chapter, function = "model", "score"
    question = "What does a reward model say of a whole summary?"
    hints = (
        "One row for each query and response together; the network gives a number in each column.",
        "Only the number at the last real token has seen the whole summary: `last` of Rows says "
        "where that is.",
        "rows = lay_out(queries, responses, model.config.n_vocab), moved to the device of "
        "model.wte.weight; model(rows.tokens, at=rows.last)[:, 0]")

    def cases():
        """A network, queries, responses."""
        return [(ByHand(6, "scalar"), [[1, 2]], [[3, 5]]),
                (ByHand(6, "scalar"), [[1, 2], [4]], [[3, 4, 4, 5], [3, 5]])]

    def oracle(model, queries, responses):
        """Each row alone: then there is no padding, and its last column is the last."""
        return torch.stack([model(torch.tensor([q + r]))[0, -1]
                            for q, r in zip(queries, responses, strict=True)]).detach()

    @mistake
    def truncated(model, queries, responses):
        """score of the truncated row: read one column too early, before the last token is seen."""
        return Score.oracle(model, queries, [r[:-1] for r in responses])

    @mistake
    def at_padding(model, queries, responses):
        """score at padding: read in the table's last column, which in shorter rows is padding."""
        T = max(len(q + r) for q, r in zip(queries, responses, strict=True))
        return Score.oracle(model, [(q + r + [6] * T)[:T] for q, r in
                                    zip(queries, responses, strict=True)], [[]] * len(queries))

    @mistake
    def no_query(model, queries, responses):
        """query left out: the reward model has to see the post, too."""
        return Score.oracle(model, [[]] * len(queries), responses)


def nats(network, rows, shift=-1, query=False, padding=False):
    """-log pi summed over the responses, one token at a time; and variants."""
    total, R = 0.0, max(len(r) for _, r in rows)
    for q, r in rows:
        logits = network(torch.tensor([q + r]))[0].tolist()                          # (T, V)
        first = 1 if query else len(q)
        for column in range(first, len(q + r)):
            total -= log_prob(logits[min(column + shift, len(logits) - 1)], (q + r)[column])
        if padding:                                # past the end: id 0, read in the last column
            total -= (R - len(r)) * log_prob(logits[-1], 0)
    return torch.tensor(total)


class Nll(Exercise):
    chapter, function = "sft", "nll"
    question = "What is learned from, and how is it added up?"
    hints = (
        "Lay the rows out, ask the network for logits in rows.columns only, take the log-prob of "
        "rows.targets there.",
        "Padding must add nothing: set its log-probs to 0 where is_response is False. (Do not "
        "multiply by the mask: NaN * 0 is NaN.)",
        "The sum, not the mean: `train` divides by the number of tokens of all micro-batches and "
        "processes. -logp.masked_fill(~rows.is_response, 0).sum()")

    def cases():
        """A network, (query, response) pairs."""
        return [(ByHand(6), [([1, 2], [3, 5])]),
                (ByHand(6), [([1, 2], [3, 4, 4, 5]), ([4, 3, 1], [5])])]

    def run(function, network, rows):
        """Without its gradient."""
        return function(network, rows).detach()

    def oracle(network, rows):
        return nats(network, rows)

    @mistake
    def off_by_one(network, rows):
        """logits off by one: each token is predicted in the column before it, not in its own."""
        return nats(network, rows, shift=0)

    @mistake
    def everything(network, rows):
        """query learned from: only the response counts here."""
        return nats(network, rows, query=True)

    @mistake
    def padding(network, rows):
        """padding learned from: what stands past a row's end must add nothing."""
        return nats(network, rows, padding=True)

    @mistake
    def padding_in_the_mean(network, rows):
        """mean over padding: the sum is wanted; and a mean over (B, R) also counts padding."""
        return nats(network, rows) / (len(rows) * max(len(r) for _, r in rows))

    @mistake
    def padding_in_both(network, rows):
        """mean over padding: the sum is wanted; and a mean over (B, R) also counts padding."""
        return nats(network, rows, padding=True) / (len(rows) * max(len(r) for _, r in rows))

    @mistake
    def mean(network, rows):
        """mean for sum: divided here, every micro-batch counts the same, however long it is."""
        return nats(network, rows) / sum(len(r) for _, r in rows)

    @mistake
    def gain(network, rows):
        """wrong sign: this one is to be minimised, so minus the log-probability."""
        return -nats(network, rows)


EXERCISES = [Merge, LongestCommonSubsequence, Attention, LayOut, Last, TokenLogp, Choose, Score,
             Nll]

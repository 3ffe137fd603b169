"""Appendix. The real thing: fetch the paper's data and models, verify them, look at them.

    what                 from                       becomes, in --out (data/WHAT when not given)
    tldr                 OpenAI, tldr_3_filtered    train, valid, test: posts and their summaries
    queries              OpenAI, ..._queries        the 287,790 posts PPO saw, without summaries
    comparisons          OpenAI, 23 files           comparisons.jsonl (batches 3-10: the paper's
                                                    64,832), later.jsonl, cnndm.jsonl, edits.jsonl
    axis                 OpenAI, 5 files            axis.jsonl: grades from 1 to 7
    cnndm                OpenAI, Hugging Face       transfer/ and supervised/, one article two ways
    gpt2 ... gpt2-xl     Hugging Face               a checkpoint folder of ours, for sft.py --init
    sup4, rm4, sup4_ppo_rm4; openai-models: all     OpenAI's 1.3B networks, for convert.py

    python -m tools.download tldr
    python -m tools.download describe data/tldr

What arrives is kept in NAME.part: a dropped line, or a killed process, costs nothing, for the next
try asks for the rest only (a range). A file takes its name when its size is right and its checksum
is the published one, or the one that the server states; SHA256SUMS remembers it for the next time.

Before: data.py (the formats).    After: convert.py (released weights as ours), sft.py.
"""
import argparse
import base64
import errno
import gzip
import hashlib
import http.client
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import COMPARISON, POST, fields_of, find, load_tokenizer, query_text, read_posts
from runtime import ALONE, Problem, generator, write
from runtime.files import (
    LINE,
    check_shape,
    json_lines,
    json_of,
    read_jsonl,
    read_text,
    replacing,
)
from runtime.flags import Parser, entry
from tools.convert import import_hugging_face

OPENAI = "https://openaipublic.blob.core.windows.net/summarize-from-feedback"
HUB = "https://huggingface.co"
STORIES = "datasets/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data"
SPLITS = ("train", "valid", "test")
MODELS = ("sup4", "rm4", "sup4_ppo_rm4")
GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GROUPS = {"comparisons": [f"batch{i}" for i in range(3, 11)],            # the paper's training data
          "later": [f"batch{i}" for i in (*range(11, 21), 22)],          # there is no batch21
          "cnndm": ["batch0_cnndm", "cnndm0", "cnndm2"], "edits": ["edit_b2_eval_test"]}
AXIS = ("cnndm1", "cnndm3", "cnndm4", "tldraxis1", "tldraxis2")
TARGETS = ("tldr", "queries", "comparisons", "axis", "cnndm", *GPT2, "openai-models", *MODELS)
PUBLISHED = {                    # sha256; tiktoken pins the same two for the tokenizer
    "openai-community/gpt2/resolve/main/model.safetensors":
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "openai-community/gpt2/resolve/main/vocab.json":
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "openai-community/gpt2/resolve/main/merges.txt":
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}


class File(NamedTuple):
    """One file to fetch."""
    base: str        # the server, which --base-url replaces
    path: str        # below it
    to: str          # below --out


def wanted(what, out):
    """The files of a target, one by one; later ones may depend on what the first ones say."""
    if what in ("tldr", "queries"):
        name, to = {"tldr": ("", ""), "queries": ("_queries", "raw/")}[what]
        for s in SPLITS:
            yield File(OPENAI, f"datasets/tldr_3_filtered{name}/{s}.jsonl", f"{to}{s}.jsonl")
    elif what == "comparisons":
        for name in sum(GROUPS.values(), []):
            yield File(OPENAI, f"dataset/comparisons/{name}.json", f"raw/{name}.json")
    elif what == "axis":
        for name in AXIS:
            yield File(OPENAI, f"dataset/axis_evals/{name}.json", f"raw/{name}.json")
    elif what == "cnndm":
        for name in ("titles.json", *(f"url_lists/all_{s}.txt" for s in ("train", "val", "test"))):
            yield File(OPENAI, f"datasets/cnndm/{name}", f"raw/{Path(name).name}")
        for name in ("cnn_stories.tgz", "dailymail_stories.tgz"):
            yield File(HUB, f"{STORIES}/{name}", f"raw/{name}")
    elif what in GPT2:
        for owner, names in ((what, ("config.json", "model.safetensors")),
                             ("gpt2", ("vocab.json", "merges.txt"))):          # all four share it
            for name in names:
                yield File(HUB, f"openai-community/{owner}/resolve/main/{name}", f"raw/{name}")
    elif what in MODELS:
        yield File(OPENAI, f"models/{what}/info.json", "info.json")
        known = read_json(out / "info.json").get("model_hparams")
        known = known if isinstance(known, dict) else {}
        layers, shards = known.get("n_layer", 0), known.get("n_shards", 1)
        if not (type(layers) is type(shards) is int and 0 <= layers <= 128 and 1 <= shards <= 64):
            raise Problem(f"{out / 'info.json'} speaks of {layers!r:.40} layers in {shards!r:.40} "
                          "parts: delete it, and give the same command again")
        head = "output_head_reward" if what == "rm4" else "output_unembeddings"
        for piece in ("input_embeddings", "position_embedding", "final_layer_norm", head,
                      *(f"resblock_{i:04}" for i in range(layers))):
            for s in range(shards):
                name = f"checkpoint/{piece}_shard_{s:03}.pkl"
                yield File(OPENAI, f"models/{what}/{name}", name)


def download(what, out=None, base_url=None):
    """Fetch all files of a target into `out`, and write those that the other scripts read.

    base_url: a mirror, which has the same paths as the servers that it stands for.
    Raises: Problem naming the file to fetch by hand, and where to put it, when one does not come.
    """
    if what not in TARGETS:
        raise Problem(f"download {what}: unknown; one of {', '.join(TARGETS)}")
    if what == "openai-models":
        for model in MODELS:
            download(model, Path(out or f"data/{what}") / model, base_url)
        return
    out = Path(out or (f"data/openai-models/{what}" if what in MODELS else f"data/{what}"))
    files = wanted(what, out)
    for file in files:
        try:
            fetch(url_of(file, base_url), out / file.to, PUBLISHED.get(file.path))
        except Unreachable:
            later = () if file.to == "info.json" else files        # it says which files follow
            print_missing([file, *later], out, base_url)
            raise
    finish = {"queries": bare_posts, "comparisons": sort_comparisons, "axis": gather_axes,
              "cnndm": write_articles, **dict.fromkeys(GPT2, import_gpt2)}
    if what in finish:
        finish[what](out)
    then = (f"python -m tools.convert import-openai {out} --out runs/openai/{what}"
            if what in MODELS else
            f"python sft.py --preset gpt2 --init {out} --data data/tldr --out runs/real/supervised"
            if what in GPT2 else f"python -m tools.download describe {out}"
            + "/transfer" * (what == "cnndm"))
    print(f"{out}: complete. Next: {then}")


def url_of(file, base_url):
    """Where a File is."""
    return f"{(base_url or file.base).rstrip('/')}/{file.path}"


def print_missing(files, out, base_url):
    """What to fetch by hand, and where to put it: those of some Files that are not there yet."""
    missing = [file for file in files if not (out / file.to).exists()]
    print(f"{out}: {len(missing)} files are missing. What you put there by hand counts:")
    for file in missing:
        print(f"  {url_of(file, base_url)} -> {out / file.to}")


# ------------------------------------------------------------------------------------- one file

WAITS = (1, 2, 4, 8, 16)           # seconds before each further try, when nothing came


class Unreachable(Problem):
    """A file that does not come, or not as it should be."""


class Fault(Exception):
    """What went wrong with a transfer, and whether trying again can help."""

    def __init__(self, why, again=True, wait=0.0):
        super().__init__(why)
        self.again, self.wait = again, wait


class Follow(urllib.request.HTTPRedirectHandler):
    """Follow redirections, and note the sha256 that Hugging Face states on the way."""
    stated = None

    def redirect_request(self, request, answer, code, message, headers, url):
        self.stated = self.stated or headers.get("X-Linked-ETag")
        return super().redirect_request(request, answer, code, message, headers, url)


def checksum(path, kind="sha256"):
    """A file's digest, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, kind).hexdigest()


def recorded(folder):
    """What SHA256SUMS says: {file name: sha256}."""
    path = Path(folder) / "SHA256SUMS"
    try:
        lines = read_text(path).splitlines() if path.exists() else []
    except ValueError as error:
        raise Problem(f"{path} cannot be read ({error}): delete it, and give the same command "
                      "again") from None
    return {line[66:]: line[:64] for line in lines}


def fetch(url, path, sha256=None):
    """Bring `url` to `path`, going on where an earlier call stopped. What is there already stays.

    sha256: the published checksum, when there is one.
    Raises: Problem when it cannot be had, or is not what it should be.
    """
    path, part = Path(path), Path(f"{path}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"{path.parent} cannot be made: {error.strerror}") from None
    if path.exists():                                # fetched before, or put there by hand
        known = sha256 or recorded(path.parent).get(path.name)
        if known and checksum(path) != known:
            raise Problem(f"{path} is not the file that was published, or fetched earlier (sha256 "
                          f"{known}): delete it, and give the same command again")
        return settle(path, path)
    tries = again = 0
    while True:
        before = size_of(part)
        try:
            stated = receive(url, part) | ({"sha256": sha256} if sha256 else {})
            wrong = [kind for kind, value in stated.items() if checksum(part, kind) != value]
            if not wrong:
                return settle(part, path)
            forget(part)                             # perhaps pieces of two versions: once more
            again += 1
            raise Fault(f"what came has not the {wrong[0]} {stated[wrong[0]]}", again=again < 2)
        except Fault as fault:
            tries = 0 if size_of(part) > before else tries + 1
            if not fault.again or tries > len(WAITS):
                raise Unreachable(f"{url}: {fault}. Fetch it by hand, put it at {path}, and give "
                                  "the same command again: what is already there is kept") from None
            time.sleep(max(fault.wait, WAITS[tries - 1] if tries else 0))


def read_json(path):
    """One JSON object. Raises: Problem when the file holds anything else."""
    try:
        known = json_of(read_text(path))
    except (ValueError, RecursionError) as error:
        known = error
    if not isinstance(known, dict):
        raise Problem(f"{path} is no JSON object ({known!r:.60}): delete it and fetch it again")
    return known


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def forget(part):
    """Start over: nothing of a file is there, nor which version it was."""
    part.unlink(missing_ok=True)
    Path(f"{part}.etag").unlink(missing_ok=True)


def receive(url, part):
    """Append what `part` lacks of a file, over one connection.

    The last byte that is there is asked for again, so that there is always something to ask for.
    Returns: checksums that the server states, {"md5" or "sha256": hexadecimal}. Raises: Fault.
    """
    have, mark = max(0, size_of(part) - 1), Path(f"{part}.etag")
    headers = {"User-Agent": "python"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if mark.exists():                            # the rest of that same version, or all of it
            headers["If-Range"] = mark.read_text("utf-8")
    follow = Follow()
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.build_opener(follow).open(request, timeout=60) as answer:
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise Fault("a web page came instead of the file", again=False)
            stated = stated_checksums(answer, follow.stated)
            spot = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if answer.status != 206:
                have = 0                             # all of it comes: a new version, or no ranges
            elif spot is None or int(spot[1]) != have:
                forget(part)
                raise Fault(f"asked for bytes from {have}, got {answer.headers['Content-Range']}")
            length = answer.headers.get("Content-Length")
            total = (int(spot[2]) if have else
                     int(length) if length and length.isdecimal() else None)
            if (tag := answer.headers.get("ETag", "W/")).startswith('"'):
                mark.write_text(tag, "utf-8")
            save(answer, part, have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:                        # there is more here than there is to be had
            forget(part)
        wait = error.headers.get("Retry-After", "")
        raise Fault(f"the server says {error.code} {error.reason}",
                    error.code >= 500 or error.code in (408, 416, 429),
                    min(60, int(wait)) if wait.isdecimal() else 0) from None
    except ValueError as error:                      # no such thing as this address
        raise Fault(f"not an address ({error})", again=False) from None
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise Problem(f"{part} cannot be written: {error.strerror}") from None
        raise Fault(f"{getattr(error, 'reason', None) or error or type(error).__name__}") from None
    return stated


def stated_checksums(answer, linked):
    """Azure states the md5 of the whole file, Hugging Face the sha256 of a large one."""
    md5 = answer.headers.get("x-ms-blob-content-md5")
    md5 = md5 or (answer.headers.get("Content-MD5") if answer.status == 200 else None)
    md5 = md5 if re.fullmatch("[A-Za-z0-9+/]{22}==", md5 or "") else None
    sha256 = re.fullmatch('"?([0-9a-f]{64})"?', linked or answer.headers.get("X-Linked-ETag", ""))
    return ({"md5": base64.b64decode(md5).hex()} if md5 else {}) | (
        {"sha256": sha256[1]} if sha256 else {})


def save(answer, part, have, total):
    """Write an answer's bytes from byte `have` on. Raises: Fault when some are missing."""
    with open(part, "r+b" if have else "wb") as f, ALONE.bar(
            total, part.name.removesuffix(".part"), "B", leave=True, initial=have,
            unit_scale=True) as bar:
        f.seek(have)
        f.truncate()
        while chunk := answer.read(1 << 18):
            f.write(chunk)
            bar.update(len(chunk))
        f.flush()
        os.fsync(f.fileno())
        if total is not None and f.tell() != total:
            raise Fault(f"the connection ended after {f.tell():,} of {total:,} bytes")


def settle(part, path):
    """Give a complete file its name, and note its checksum in SHA256SUMS beside it."""
    with open(part, "rb") as f:
        head = f.read(512)                           # Windows deletes and renames closed files only
    if re.match(rb"\s*<(!doctype|html)", head, re.IGNORECASE):
        forget(part)
        raise Problem(f"{path} was a web page (a login, an error?), and is deleted: fetch the "
                      "file by hand, put it there, and give the same command again")
    known, found = recorded(path.parent), checksum(part)
    if known.get(path.name) != found:
        known[path.name] = found
        write(path.parent / "SHA256SUMS",
                         "".join(f"{value}  {name}\n" for name, value in sorted(known.items())))
    os.replace(part, path)
    forget(Path(f"{path}.part"))


# --------------------------------------------------------------------- what the other scripts read

@contextmanager
def writing(path):
    """A function that writes a record to path, .jsonl or .jsonl.gz, which appears when all are."""
    with replacing(path) as raw:
        with (gzip.GzipFile("", "wb", 3, raw) if path.suffix == ".gz" else nullcontext(raw)) as f:
            yield lambda record: f.write(json_lines([record]))


def import_gpt2(out):
    """The network and its tokenizer as a folder of ours. (raw/ may be deleted afterwards.)"""
    if not ((out / "config.json").exists() and (out / "model.pt").exists()):
        import_hugging_face(out / "raw", out)


def check_comparison(where, record):
    """Raise a Problem unless `record` tells which of two different summaries a human preferred."""
    check_shape(where, record, COMPARISON)
    if len({summary["text"].strip() for summary in record["summaries"]}) == 1:
        raise Problem(f"{where}: field 'summaries' holds one text twice")
    if record.get("extra"):
        check_shape(where, record, {"extra": {"confidence": (None, *range(1, 10))}})


def bare_posts(out):
    """The posts that PPO learned from. Their summaries passed no filter: none to imitate."""
    for split in SPLITS:
        with writing(out / f"{split}.jsonl") as write:
            for _, record in read_jsonl(out / "raw" / f"{split}.jsonl"):
                write({name: record.get(name) or "" for name in POST})


def sort_comparisons(out):
    """The paper's 64,832 comparisons (batches 3-10) apart from what came later; nothing is lost but
    lines that say nothing, such as a choice between equals, and those are counted."""
    for group, names in GROUPS.items():
        kept, faults = 0, Counter()
        with writing(out / f"{group}.jsonl") as write:
            for name in names:
                for _, record in read_jsonl(out / "raw" / f"{name}.json"):
                    if isinstance(info := record.get("info"), dict):
                        record["info"] = {k: info.get(k) or "" for k in fields_of(info)}
                    try:
                        check_comparison("", record)
                    except Problem as fault:
                        faults[str(fault).removeprefix(": ")] += 1
                        continue
                    write(record)
                    kept += 1
        left = "".join(f"\n    left out {n:,}: {why}" for why, n in faults.items())
        paper = " (the paper: 64,832)" if group == "comparisons" else ""
        print(f"{out / group}.jsonl: {kept:,} comparisons{paper}{left}")


def read_axes(path):
    """Grades in OpenAI's format, checked: whole numbers from 1 to 7, any axis may be missing.

        {"info": post or article, "split", "summary": {"text", "policy", "note", "axes": {"overall",
         "accuracy", "coverage", "coherence", "compatible": bool}}, "worker", "batch"}

    Returns: the records; an axis that is null is left out. Raises: Problem naming the line.
    """
    records = []
    for number, record in read_jsonl(path):
        summary = record.get("summary")
        axes = summary.get("axes") if isinstance(summary, dict) else None
        if not isinstance(axes, dict) or not isinstance(record.get("info"), dict):
            raise Problem(f"{path}, line {number}: not grades: 'summary' without 'axes', or no "
                          "'info'")
        summary["axes"] = {name: grade for name, grade in axes.items() if grade is not None}
        for name, grade in summary["axes"].items():
            if type(grade) is not bool if name == "compatible" else (
                    type(grade) is not int or not 1 <= grade <= 7):
                raise Problem(f"{path}, line {number}: {name!r:.40} is {grade!r:.40}, not 1 to 7")
        records.append(record)
    return records


def gather_axes(out):
    """All grades in one file; each record says which batch it was in."""
    with writing(out / "axis.jsonl") as write:
        for name in AXIS:
            for record in read_axes(out / "raw" / f"{name}.json"):
                write({"batch": name, **record})


def article_of(story):
    """(article, summary) of a .story file: paragraphs, then highlights, each after "@highlight".

    Paragraphs stay apart by a blank line, the place where a long article is cut; highlights become
    one paragraph of sentences. DIFFERS: the paper's code also repairs broken characters (ftfy) and
    takes more boilerplate out.
    """
    body, *highlights = story.replace("\xa0", " ").split("@highlight")
    paragraphs = [line.strip() for line in body.splitlines() if line.strip()]
    article = re.sub(r"^.{0,90}?\(CNN\)\s*(--)?\s*", "", "\n\n".join(paragraphs))
    article = article.replace("\u2019", "'").replace("\u2018", "'")
    sentences = []
    for text in (" ".join(h.split()).removeprefix("NEW: ") for h in highlights):
        text = re.split(r"C(?:LICK|lick) (?:HERE|here) ", text)[0].strip()
        if text and not text.startswith(("READ: ", "for all the latest ")):
            sentences.append(text if re.search(r"[.!?'`\"\u2019\u201d)]$", text) else text + ".")
    return article, " ".join(sentences)


def write_articles(out):
    """CNN/DM in both of the paper's formats: `transfer` asks for a summary as of a post (section
    4.2), `supervised` is how a policy learns from news (PAPER's cnndm_task)."""
    raw, split_of, left_out = out / "raw", {}, 0
    for theirs, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        path = raw / f"all_{theirs}.txt"
        try:
            urls = read_text(path).split()
        except ValueError as error:
            raise Problem(f"{path} is damaged ({error}): delete it and fetch it again") from None
        split_of |= {hashlib.sha1(url.encode()).hexdigest(): split for url in urls}
    titles = read_json(raw / "titles.json")
    with ExitStack() as files:
        writers = {(kind, s): files.enter_context(writing(out / kind / f"{s}.jsonl.gz"))
                   for kind in ("transfer", "supervised") for s in SPLITS}
        bar = files.enter_context(ALONE.bar(len(split_of), "articles", "article", leave=True))
        for site in ("cnn", "dailymail"):
            for name, story in stories_of(raw / f"{site}_stories.tgz"):
                if (split := split_of.pop(name, None)) is None:
                    continue
                article, summary = article_of(story)
                bar.update()
                if not (article and summary):
                    left_out += 1
                    continue
                record = {"id": name, "site": site, "title": str(titles.get(name) or ""),
                          "article": article, "summary": summary}
                writers["transfer", split](record)
                writers["supervised", split]({**record, "format": "supervised"})
    print(f"{out}: {left_out:,} articles without text or highlights are left out; "
          f"{len(split_of):,} of the lists' are in no archive")


def stories_of(path):
    """Yield (name, text) of each story in an archive, which is read, never unpacked."""
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".story"):
                    if member.size > LINE:
                        raise Problem(f"{path}: {member.name!r:.80} has {member.size:,} bytes, and "
                                      "is no news story: delete it and fetch it again")
                    text = archive.extractfile(member).read()
                    yield Path(member.name).stem, text.decode("utf-8-sig", "replace")
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise Problem(f"{path} is damaged ({error}): delete it and fetch it again") from None


# ------------------------------------------------------------------------------------- describe

PAPER_COUNT = {"train": 116_722, "valid": 6_447, "test": 6_553}         # of tldr_3_filtered
PAPER_SHARE = {"relationships": 54.25, "AskReddit": 13.23, "relationship_advice": 7.45,
               "tifu": 6.58, "dating_advice": 2.44, "personalfinance": 1.98}       # Table 2


def describe(folder):
    """Print what a folder holds: posts or articles by split, comparisons, grades.

    Raises: Problem when it holds none of them.
    """
    splits = {s: read_posts(folder, s, need_summary=False) for s in SPLITS if find(folder, s)}
    others = [path for path in sorted(Path(folder).glob("*.jsonl*"))
              if path.name.split(".")[0] not in (*SPLITS, "pretrain") and path.suffix != ".part"]
    if not splits and not others:
        raise Problem(f"{folder} holds no .jsonl: no posts, comparisons or grades to describe")
    if splits:
        describe_posts(splits, *counter(folder))
    for path in others:
        _, first = next(read_jsonl(path), (0, {}))
        if "summaries" in first:
            describe_comparisons(path)
        elif isinstance(first.get("summary"), dict):
            describe_axes(path)


def counter(folder):
    """What lengths are counted in, and a function texts -> lengths: the folder's tokens, or else
    GPT-2's, or else words."""
    try:
        own = (Path(folder) / "tokenizer.tiktoken").exists()
        tokenizer = load_tokenizer(folder if own else "gpt2")
    except Problem:
        return "words", lambda texts: [len(text.split()) for text in texts]

    def lengths(texts):
        return [len(tokens) for i in range(0, len(texts), 1000)
                for tokens in tokenizer.encode_ordinary_batch(texts[i:i + 1000], num_threads=2)]
    return f"tokens of {'the folder' if own else 'GPT-2'}", lengths


def spread(lengths):
    """Median, 95 % and maximum, as text."""
    if not lengths:
        return "-"
    return " / ".join(f"{int(x)}" for x in (*np.quantile(lengths, (0.5, 0.95)), max(lengths)))


def describe_posts(splits, unit, measure):
    """Counts and lengths, of posts from Reddit (ids t3_...) beside the paper's; subreddits, what
    splits share, three samples."""
    first = next(post for posts in splits.values() for post in posts)
    reddit = first["id"].startswith("t3_")
    counts = PAPER_COUNT if reddit else {}

    def beside(count):
        return f"{count:11,}" if reddit else ""
    title = f"{'the paper':>11}" if reddit else ""
    print(f"{'split':8}{'records':>10}{title}{'no summary':>12}   "
          f"{unit}: median / 95 % / most\n{'':{33 + len(title)}}{'prompts':20}summaries")
    for name, posts in splits.items():
        summaries = [" " + (p.get("summary") or "").strip() for p in posts]
        blank = sum(not text.strip() for text in summaries)
        print(f"{name:8}{len(posts):10,}{beside(counts.get(name))}{blank:12,}   "
              f"{spread(measure([query_text(p) for p in posts])):20}"
              f"{spread(measure([text for text in summaries if text.strip()]))}")
    same = {name: len(posts) for name, posts in splits.items()} == counts
    compared = f"{'exactly' if same else 'not'} the paper's splits (its PPO saw 287,790 posts)"
    print(f"{'all':8}{sum(map(len, splits.values())):10,}{beside(sum(counts.values()))}"
          + f"   {compared}" * reddit)
    for what, key in (("ids", lambda p: p["id"]),
                      ("texts", lambda p: p.get("article", p.get("post")))):
        seen = {name: Counter(hash(key(p)) for p in posts) for name, posts in splits.items()}
        inside = sum(n - 1 for counts in seen.values() for n in counts.values())
        across = sum(n > 1 for n in Counter(k for counts in seen.values() for k in counts).values())
        print(f"{what} that occur again in their split: {inside:,}; in two splits: {across:,}")
    name, posts = next(iter(splits.items()))
    where = Counter(p.get("subreddit", p.get("site")) for p in posts)
    print(f"{name} is from: " + ", ".join(
        f"{place} {n / len(posts):.1%}" + (f" (the paper {share} %)" if share and reddit else "")
        for place, n in where.most_common(8) for share in [PAPER_SHARE.get(place)]))
    for i in generator(0, "describe").permutation(len(posts))[:3]:
        text = query_text(posts[i])
        print(f"\n--- {posts[i]['id']}\n{text if len(text) < 700 else text[:600] + ' [...]'}"
              f" {posts[i].get('summary') or '(no summary)'}")


def describe_comparisons(path):
    """Comparisons by split and batch, how sure labellers were, and who was compared with whom."""
    split, batch, sure, pairs, first = Counter(), Counter(), Counter(), Counter(), 0
    for number, record in read_jsonl(path):
        check_comparison(f"{path}, line {number}", record)
        split[str(record.get("split"))] += 1
        batch[str(record.get("batch"))] += 1
        sure[(record.get("extra") or {}).get("confidence")] += 1
        pairs[" - ".join(sorted(str(s.get("policy")) for s in record["summaries"]))] += 1
        first += record["choice"] == 0
    total = split.total()
    print(f"\n{path}: {total:,} comparisons; the first was preferred in {first / total:.1%}")
    for title, counts in (("splits", split), ("batches", batch), ("confidence, 1 to 9", sure),
                          ("most frequent pairs", Counter(dict(pairs.most_common(5))))):
        print(f"  {title}: " + ", ".join(f"{key} {n:,}" for key, n in
                                         sorted(counts.items(), key=lambda item: str(item[0]))))


def describe_axes(path):
    """Mean grades of each policy."""
    grades = defaultdict(lambda: defaultdict(list))
    for record in read_axes(path):
        for axis, grade in record["summary"]["axes"].items():
            grades[str(record["summary"].get("policy"))][axis].append(grade)
    print(f"\n{path}: mean grade of each policy, 1 to 7")
    for policy, axes in sorted(grades.items()):
        print(f"  {policy}: " + ", ".join(f"{axis} {np.mean(axes[axis]):.2f}" for axis in axes)
              + f" ({max(map(len, axes.values())):,})")


def main(argv=None):
    """python -m tools.download WHAT, or: describe DIR."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", help=f"{', '.join(TARGETS)}; or describe")
    parser.add_argument("data", nargs="?", metavar="DIR", help="for describe: a folder of posts, "
                        "articles or comparisons to count and measure")
    parser.add_argument("--base-url", help="a mirror, which has the same paths below it")
    parser.add_argument("--out", metavar="DIR", help="where to put it (data/WHAT)")
    args = parser.parse_args(argv)
    if args.what is None:
        raise Problem("what is to be fetched? python -m tools.download " + " | ".join(TARGETS)
                      + "; or, to look at a folder: python -m tools.download describe DIR")
    if (args.what == "describe") != (args.data is not None):
        raise Problem("describe needs a folder, and no other word takes one: python -m "
                      "tools.download describe DIR")
    if args.what == "describe":
        describe(args.data)
    else:
        download(args.what, args.out, args.base_url)


if __name__ == "__main__":
    entry(main)

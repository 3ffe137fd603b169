"""Chapter 1: what the readers accept, what a row holds, and in which order rows come."""
import base64
import gzip
import io
import json
import os
import random
import re
import string
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import torch

import data
import sample
from data import Batches, encode_query, encode_response, read_comparisons, read_posts
from runtime import Problem
from runtime import write as write_records
from runtime.files import read_jsonl, texts_from_outside
from runtime.flags import entry
from tools import download
from tools import tokenizer as tokenizer_of
from tools.rouge import longest_common_subsequence, rouge
from tools.rouge import words as words_of
from tools.tokenizer import merge, train_tokenizer

ROOT = Path(data.__file__).parent
SAVED = ROOT.parent / "shared" / "tiktoken_cache"        # GPT-2's files, where a checkout has them
POST = {"id": "t3_1", "subreddit": "cats", "title": "My cat {left}",
        "post": "It left.\nIt came back.", "summary": "Cat left, cat came back."}
NEWS = {"id": "n1", "site": "bbc", "title": "Cat",
        "article": "A cat left.\nIt came back.", "summary": "Cat back."}
TEXTS = 2 * ["the cat sat on the mat, the cats' mat", "aaaa aaaaaaa abab ababab",
             "The theme: a thesis on cats!\n\n  It's  here ...", "naïve café 猫猫 😀😀 1234 12",
             "    \n\n\n--------==== end"]


def comparison(**changes):
    """A sound comparison in OpenAI's format, but for the changes."""
    summaries = [{"text": " It left.", "policy": "sup1", "note": None},
                 {"text": " It came back.", "policy": "ref", "note": "It returned."}]
    info = {name: POST[name] for name in data.POST}
    return {"info": info, "summaries": summaries, "choice": 1, "worker": "w", "batch": "b",
            "split": "train", "extra": {"confidence": 8}} | changes


def random_text(rng, size):
    """Text with everything that BPE and the split pattern treat differently."""
    alphabet = ["cat", "the", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "'s", "'ll",
                "'", "a", "aa", "é", "猫", "😀", "\u0301", "12", "-", "--", "!", "x", "TL;DR:",
                "<|endoftext|>"]
    some = rng.sample(alphabet, rng.randint(1, len(alphabet)))
    return "".join(rng.choice(some) for _ in range(rng.randint(0, size)))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="module")
def gpt2():
    if not SAVED.is_dir():
        pytest.skip("no cached copy of GPT-2's tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(SAVED))
        return data.load_tokenizer("gpt2")


def problem_of(call, *args, **options):
    """The one line that the user sees."""
    with pytest.raises(Problem) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path, *lines):
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


# -------------------------------------------------------------------------------- printed examples

def test_the_printed_row_is_what_the_code_makes(gpt2):
    lines = re.findall(r"^    (encode_query|encode_response|stack) +([\s\S]*?) +(?:\d+ ids|\(1, 39\))",
                       data.__doc__, re.MULTILINE)
    shown = {name: [int(n) for n in re.findall(r"\d+", text)] for name, text in lines}
    record = {"subreddit": "pets", "title": "My cat left", "post": "He is gone.",
              "summary": "My cat is gone."}
    query = encode_query(gpt2, record, 512)
    response = encode_response(gpt2, record["summary"], 48)
    assert shown["encode_query"] == query and len(query) == 31
    assert shown["encode_response"] == response and len(response) == 6
    row = data.stack([query + response, [0] * 39], gpt2.n_vocab)[0].tolist()
    assert shown["stack"] == row[:2] + row[29:] and len(row) == 39
    printed = data.query_text(record).replace("\n", "\\n") + " | " + record["summary"]
    assert printed in data.__doc__


def test_the_printed_records_are_read(tmp_path):
    comments = re.findall(r"^((?:# +[{\"].*\n)+)", Path(data.__file__).read_text(), re.MULTILINE)
    post, compared = (json.loads(re.sub(r"^#", "", text, flags=re.MULTILINE)) for text in comments)
    write(tmp_path / "train.jsonl", post)
    assert read_posts(tmp_path, "train") == [post]
    assert read_comparisons(write(tmp_path / "c.jsonl", compared), "train") == [compared]


def test_the_six_merges_of_the_example_are_those_that_are_learned():
    tokens = list(train_tokenizer(["low lower lowest"], 263)._mergeable_ranks)[256:]
    assert tokens == [b"lo", b"low", b" low", b" lowe", b" lower", b" lowes"]
    shown = re.search(r"-> ([^;]*);", train_tokenizer.__doc__)[1]
    assert re.sub(r'"| \(\d.*?\)', "", shown).split(", ") == [
        "lo", "low", " low", " lowe", " lower", " lowes"]


def test_the_windows_of_the_example_are_sorted_and_their_batches_shuffled():
    rows = re.findall(r"   ((?:\d[ |]+){11}\d)$", data.Batches.__doc__, re.MULTILINE)
    drawn, ordered, shuffled = ([re.findall(r"\d", part) for part in row.split("|")] for row in rows)
    for some, in_order, batches in zip(drawn, ordered, shuffled, strict=True):
        assert in_order == sorted(some)
        pairs = [[part[i:i + 2] for i in range(0, 6, 2)] for part in (in_order, batches)]
        assert sorted(pairs[1]) == pairs[0] != pairs[1]


# -------------------------------------------------------------------------------------------- files

def test_posts_and_articles_come_back_with_every_key(tmp_path):
    write(tmp_path / "train.jsonl", POST | {"score": 3}, "", NEWS)
    assert read_posts(tmp_path, "train") == [POST | {"score": 3}, NEWS]


def test_what_is_written_is_read_again(tmp_path):
    records = [POST | {"post": "a\u2028b\r\nc 😀 <|endoftext|>"}, NEWS]
    write_records(tmp_path / "train.jsonl", records)
    assert read_posts(tmp_path, "train") == records


def test_gzip_is_read_too_but_the_plain_file_first(tmp_path):
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write(json.dumps(POST) + "\n")
    assert read_posts(tmp_path, "train") == [POST]
    write(tmp_path / "train.jsonl", NEWS)
    assert read_posts(tmp_path, "train") == [NEWS]


def test_a_gzip_cut_short_is_a_problem(tmp_path):
    lines = (json.dumps(POST | {"id": str(i)}) + "\n" for i in range(999))
    whole = gzip.compress("".join(lines).encode())
    for name, content in (("cut", whole[:len(whole) // 2]), ("not", b"plain text")):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        assert f"{name}.jsonl.gz: cannot be read" in problem_of(read_posts, tmp_path, name)


def test_broken_json_is_named_by_file_and_line(tmp_path):
    for broken in ('{"id": "x",', "{'id': 1}", "nonsense", "[" * 100_000):
        path = write(tmp_path / "train.jsonl", POST, broken, POST)
        assert f"{path}, line 2: broken JSON" in problem_of(read_posts, tmp_path, "train")
    path.write_bytes(json.dumps(POST).encode() + b'\n{"id": "\xff"}\n')
    assert f"{path}, line 2: broken JSON" in problem_of(read_posts, tmp_path, "train")


def test_a_line_that_holds_no_object_is_named(tmp_path):
    path = write(tmp_path / "train.jsonl", POST, '["a list"]')
    assert f"{path}, line 2: not an object" in problem_of(read_posts, tmp_path, "train")


@pytest.mark.parametrize("record", (POST, NEWS))
def test_every_missing_or_mistyped_field_is_named_by_line(tmp_path, record):
    for field in set(record) - {"article"}:           # without "article" it would be a post
        without = {name: value for name, value in record.items() if name != field}
        path = write(tmp_path / "valid.jsonl", record, without)
        told = problem_of(read_posts, tmp_path, "valid")
        assert f"{path}, line 2: field '{field}' is missing" in told
    for field in set(record) - {"article"}:
        for value, kind in ((None, "NoneType"), (5, "int"), (["a"], "list")):
            path = write(tmp_path / "valid.jsonl", record, record, record | {field: value})
            told = problem_of(read_posts, tmp_path, "valid")
            assert f"{path}, line 3: field '{field}' is {kind}, not text" in told
    write(tmp_path / "valid.jsonl", NEWS | {"article": None})
    assert "'subreddit' is missing" in problem_of(read_posts, tmp_path, "valid")


def test_only_prompts_may_lack_a_summary(tmp_path):
    prompt = {name: POST[name] for name in data.POST}
    write(tmp_path / "train.jsonl", prompt)
    assert read_posts(tmp_path, "train", need_summary=False) == [prompt]
    assert "'summary' is missing" in problem_of(read_posts, tmp_path, "train")
    write(tmp_path / "train.jsonl", POST | {"summary": " \n"})
    assert "line 1: field 'summary' is blank" in problem_of(read_posts, tmp_path, "train")
    write(tmp_path / "train.jsonl", prompt | {"summary": 5})
    assert "'summary' is int" in problem_of(read_posts, tmp_path, "train", need_summary=False)


def test_what_a_file_says_a_post_is_not_is_left_out(tmp_path):
    prompt = {name: POST[name] for name in data.POST}
    write(tmp_path / "train.jsonl", prompt | {"summary": None, "article": None})
    assert read_posts(tmp_path, "train", need_summary=False) == [prompt]
    told = comparison(info=prompt | {"article": None, "site": None})
    (kept,) = read_comparisons(write(tmp_path / "c.jsonl", told))
    assert data.fields_of(kept["info"]) is data.POST
    assert data.query_text(kept["info"]) == data.query_text(prompt)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_split_names_both_files_and_a_command(tmp_path, split):
    for _ in range(2):                           # an empty folder, then one with test.jsonl alone
        told = problem_of(read_posts, tmp_path, split)
        for word in (str(tmp_path), f"{split}.jsonl ", f"{split}.jsonl.gz", "python toy.py"):
            assert word in told
        write(tmp_path / "test.jsonl", POST)
    assert "train.jsonl" in problem_of(tokenizer_of.main, ["--data", str(tmp_path)])
    download.main(["describe", str(tmp_path)])


def test_a_name_no_disk_takes_is_a_folder_without_posts(tmp_path):
    assert data.find(tmp_path / ("x" * 3000), "train") is None


def test_an_empty_split_is_a_problem(tmp_path):
    write(tmp_path / "train.jsonl", "", "  ")
    told = problem_of(read_posts, tmp_path, "train")
    assert f"{tmp_path}: train.jsonl" in told and "empty" in told


def test_files_are_read_one_line_at_a_time(tmp_path):
    path = write(tmp_path / "x.jsonl", {"a": 1}, "broken")
    records = read_jsonl(path)
    assert next(records) == (1, {"a": 1})
    assert "line 2" in problem_of(next, records)


def test_half_an_emoji_is_replaced_and_a_whole_one_stays(tmp_path):
    write(tmp_path / "train.jsonl", POST | {"post": "\ud83d!"}, POST | {"post": "😀 \\ud83d"})
    assert [post["post"] for post in read_posts(tmp_path, "train")] == ["?!", "😀 \\ud83d"]


SPELLED = {              # bytes of a post: how they are read; None: refused in one line
    "UTF-8": (b"caf\xc3\xa9 \xf0\x9f\x98\x80", "café 😀"), "half an emoji": (b"a\xed\xa0\xbd!", "a?!"),
    "both halves apart": (b"a \xed\xa0\xbd\xed\xb8\x80", "a 😀"), "overlong": (b"a\xc0\x80b", None),
    "overlong slash": (b"a\xe0\x80\xaf", None), "cut short": (b"a \xf0\x9f\x98", None),
    "Latin-1": (b"caf\xe9 au lait", None), "NUL": (b"a\0b", "a\0b")}
FRAMED = {"bare": lambda text: text, "BOM": lambda text: b"\xef\xbb\xbf" + text,
          "blank first": lambda text: b"\n \n" + text, "CRLF": lambda text: b"\r\n" + text + b"\r\n",
          "BOM, blank first": lambda text: b"\xef\xbb\xbf\r\n" + text}


def read_through(way, post, frame, folder, monkeypatch):
    """A post of these bytes as it comes in by one of the ways that there are."""
    kind, _, zipped = way.partition(".")
    if kind in ("lines", "array"):
        line = json.dumps(POST | {"post": "HERE"}).encode().replace(b"HERE", post)
        content = frame(line + b"\n" + line if kind == "lines" else b"[" + line + b",\n" + line + b"]")
        path = folder / ("train.jsonl" + ".gz" * bool(zipped))
        path.write_bytes(gzip.compress(content) if zipped else content)
        first, second = read_posts(folder, "train")
        assert first == second
        return first["post"]
    given = {"post": os.fsdecode(frame(post))} if kind == "flag" else {
        "post_file": "-" if kind == "stdin" else str(folder / "post.txt")}
    (folder / "post.txt").write_bytes(frame(post))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(frame(post)), "ascii"))
    return sample.post_of(texts_from_outside(sample.Config(policy="", **given)), "")["post"]


@pytest.mark.parametrize("way", ["lines", "lines.gz", "array", "array.gz", "text file", "stdin", "flag"])
@pytest.mark.parametrize("framed", FRAMED)
@pytest.mark.parametrize("spelled", SPELLED)
def test_text_from_outside_is_read_by_one_rule_whichever_way_it_comes(
        way, framed, spelled, tmp_path, monkeypatch):
    post, text = SPELLED[spelled]
    if spelled == "NUL" and way.startswith(("lines", "array")):
        text = None                                        # JSON writes it as \u0000 alone
    where = {"flag": "--post cannot", "stdin": "--post-file - cannot", "text file": "post.txt cannot"}
    read = read_through, way, post, FRAMED[framed], tmp_path, monkeypatch
    if text is None:
        assert where.get(way, "train.jsonl") in (told := problem_of(*read))
        assert way in where or "line " in told
    else:
        assert read[0](*read[1:]) == text


@pytest.mark.parametrize("field", ["subreddit", "title", "summary"])
def test_half_an_emoji_in_raw_bytes_reaches_no_tokenizer(tmp_path, field):
    line = json.dumps(POST | {field: "HERE it is"}).encode().replace(b"HERE", b"\xed\xa0\xbd")
    (tmp_path / "train.jsonl").write_bytes(line)
    tokenizer_of.main(["--data", str(tmp_path), "--vocab", "258"])
    assert read_posts(tmp_path, "train")[0][field] == "? it is"


# -------------------------------------------------------------------------------------- comparisons

def test_comparisons_need_neither_confidence_nor_note(tmp_path):
    article = {name: NEWS[name] for name in data.ARTICLE}
    records = [comparison(), comparison(extra={}), comparison(info=article, choice=0)]
    del records[1]["summaries"][0]["note"], records[2]["extra"]
    assert read_comparisons(write(tmp_path / "c.jsonl", *records)) == records


def test_a_split_of_comparisons_is_picked_by_name(tmp_path):
    records = [comparison(split=split, worker=split) for split in ("train", "valid1", "train")]
    path = write(tmp_path / "c.json", *records)
    assert [c["worker"] for c in read_comparisons(path, "valid1")] == ["valid1"]
    assert len(read_comparisons(path)) == 3
    assert "'valid2', only of ['train', 'valid1']" in problem_of(read_comparisons, path, "valid2")


@pytest.mark.parametrize("changes, told", [
    ({"choice": 2}, "'choice'"), ({"choice": None}, "'choice'"), ({"choice": True}, "'choice'"),
    ({"info": None}, "'info'"), ({"info": {}}, "'info.id' is missing"),
    ({"info": {"id": "1", "article": "", "site": "s", "title": 5}}, "'info.title' is int"),
    ({"summaries": [{"text": " a"}]}, "'summaries' holds 1"),
    ({"summaries": [{"text": t} for t in "abc"]}, "'summaries' holds 3"),
    ({"summaries": "ab"}, "'summaries' holds str"), ({"summaries": ["a", "b"]}, "'summaries[0]'"),
    ({"summaries": [{"text": " a"}, {"policy": "ref"}]}, "'summaries[1].text' is missing"),
    ({"summaries": [{"text": " a"}, {"text": "a "}]}, "'summaries' holds one text twice"),
    ({"split": 1}, "field 'split' is int")])
def test_a_faulty_comparison_is_named_by_file_line_and_field(tmp_path, changes, told):
    path = write(tmp_path / "c.jsonl", comparison(), comparison(**changes))
    line = problem_of(read_comparisons, path, "train")
    assert line.startswith(f"{path}, line 2") and told in line


def test_several_files_of_comparisons_are_read_one_after_the_other(tmp_path):
    one, two = (write(tmp_path / f"{i}.jsonl", comparison(worker=str(i), split=split))
                for i, split in enumerate(("train", "valid2")))
    assert [c["worker"] for c in read_comparisons(f"{one}, {two}")] == ["0", "1"]
    assert [c["worker"] for c in read_comparisons(f"{one},{two}", "valid2")] == ["1"]
    assert "nowhere" in problem_of(read_comparisons, f"{one},{tmp_path / 'nowhere'}")


def test_missing_comparisons_are_named_and_empty_ones_say_how_to_collect_some(tmp_path):
    assert "none.jsonl: cannot be read" in problem_of(read_comparisons, tmp_path / "none.jsonl")
    assert "python label.py" in problem_of(read_comparisons, write(tmp_path / "c.jsonl"))


# ---------------------------------------------------------------------------------------- tokenizer

def naive_bpe(texts, vocab):
    """The definition: split every text, encode it with what is there, add the commonest pair."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    pieces = [piece for text in texts for piece in regex.findall(data.PATTERN, text)]
    while len(ranks) < vocab - 1:
        so_far, counts = data.build_tokenizer(ranks), Counter()
        for piece in pieces:
            parts = so_far.decode_tokens_bytes(so_far.encode_ordinary(piece))
            counts.update(a + b for a, b in pairwise(parts))
        ranks[min(counts, key=lambda pair: (-counts[pair], pair))] = len(ranks)
    return data.build_tokenizer(ranks)


def test_training_agrees_with_the_definition_of_bpe():
    rng = random.Random(0)
    for _ in range(20):
        texts = TEXTS + [random_text(rng, 60) for _ in range(5)]
        assert data.same_tokenizer(train_tokenizer(texts, 300), naive_bpe(texts, 300))


def test_training_depends_on_no_order_and_no_chance():
    mine = train_tokenizer(TEXTS, 300)
    assert data.same_tokenizer(mine, train_tokenizer(TEXTS[::-1], 300))
    code = f"from tools.tokenizer import train_tokenizer; print(list(train_tokenizer({TEXTS!r}, 300)._mergeable_ranks))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True,
                          env=os.environ | {"PYTHONHASHSEED": "1"}, text=True)   # another set order
    assert told.stdout.strip() == str(list(mine._mergeable_ranks))


def test_our_merge_encodes_as_tiktoken_does(tokenizer):
    rng = random.Random(1)
    for _ in range(200):
        for piece in regex.findall(data.PATTERN, random_text(rng, 20)):
            parts = [bytes([byte]) for byte in piece.encode()]
            merge(parts, tokenizer._mergeable_ranks)
            tokens = tokenizer.encode_ordinary(piece)
            assert parts == tokenizer.decode_tokens_bytes(tokens)


def test_the_vocabulary_is_as_large_as_asked_and_ends_with_endoftext(tokenizer):
    assert tokenizer.n_vocab == 320 and tokenizer.eot_token == 319
    assert tokenizer.decode([319]) == data.ENDOFTEXT
    assert train_tokenizer([], 257).n_vocab == 257


def test_any_text_survives_encoding(tokenizer):
    rng = random.Random(2)
    for text in [random_text(rng, 100) for _ in range(100)] + ["\x00\x7f", "ﷺ 𝔘 ё"]:
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_a_vocabulary_that_cannot_be_is_a_problem():
    assert "257" in problem_of(tokenizer_of.main, ["--data", "d", "--vocab", "256"])
    assert "ask for 259 at most" in problem_of(train_tokenizer, ["abc"], 300)
    assert train_tokenizer(["abc"], 259).n_vocab == 259


def test_endless_runs_do_not_stall_training():
    start = time.process_time()                # its own time: what else runs here does not count
    train_tokenizer(["-" * 200_000 + "x" * 200_000, "ab" * 200_000], 270)
    assert time.process_time() - start < 5                                         # 0.01 s


def test_a_saved_tokenizer_is_the_same_tokenizer(tmp_path, tokenizer):
    data.save_tokenizer(tokenizer, tmp_path / "new" / "folder")
    for where in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "tokenizer.tiktoken"):
        assert data.same_tokenizer(data.load_tokenizer(where), tokenizer)
    assert not data.same_tokenizer(train_tokenizer(TEXTS, 319), tokenizer)


def test_the_file_is_one_that_tiktoken_reads(tmp_path, tokenizer):
    from tiktoken.load import load_tiktoken_bpe
    data.save_tokenizer(tokenizer, tmp_path)
    assert load_tiktoken_bpe(str(tmp_path / "tokenizer.tiktoken")) == tokenizer._mergeable_ranks


@pytest.mark.parametrize("text", ["!!! 2", "YQ==", "YQ== two", "", "YWFhYWFh 7", "YWFhYWFh 1",
                                  "AA== 2"])
def test_a_tokenizer_file_with_one_faulty_line_is_a_problem(tmp_path, tokenizer, text):
    data.save_tokenizer(tokenizer, tmp_path)
    path = tmp_path / "tokenizer.tiktoken"
    lines = path.read_text().splitlines()
    write(path, *lines[:2], text, *lines[3:])
    told = problem_of(data.load_tokenizer, path)
    assert told.startswith(f"{path}: no such tokenizer, or a damaged one (is the path right?): `python -m tools.tokenizer")


def test_a_tokenizer_without_every_byte_is_a_problem(tmp_path, tokenizer):
    tokens = [token for token in tokenizer._mergeable_ranks if token != b"z"]
    path = tmp_path / "tokenizer.tiktoken"
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    write(path, *lines)
    assert f"{path}: no such tokenizer, or a damaged one" in problem_of(data.load_tokenizer, path)


def test_a_missing_tokenizer_says_how_to_train_one(tmp_path):
    told = problem_of(data.load_tokenizer, tmp_path)
    assert "python -m tools.tokenizer" in told and "python -m tools.convert import" in told


def test_gpt2_is_loaded_saved_and_loaded_again(tmp_path, gpt2):
    data.save_tokenizer(gpt2, tmp_path)
    again = data.load_tokenizer(tmp_path)
    assert data.same_tokenizer(gpt2, again) and again.eot_token == 50256 and again.n_vocab == 50257
    for text in TEXTS:
        assert gpt2.encode_ordinary(text) == again.encode_ordinary(text)


def test_gpt2_without_network_or_cache_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "TIKTOKEN_CACHE_DIR" in problem_of(data.load_tokenizer, "gpt2")


# ------------------------------------------------------------------------------------------ queries

def naive_query(tokenizer, record, limit):
    """The paper's loop, a re-encoding for every cut; None when nothing is left to cut."""
    name = "article" if "article" in record else "post"
    record = dict(record)
    while len(tokens := tokenizer.encode_ordinary(data.query_text(record))) > limit:
        if not record[name]:
            return None
        cut = record[name].rfind("\n") if "\n" in record[name] else -1
        record[name] = record[name][:cut]
    return tokens


def check_against_the_naive_loop(tokenizer, rng, rounds, size):
    for _ in range(rounds):
        text = random_text(rng, size)
        post = POST | {"post": text, "title": random_text(rng, 4)}
        record = rng.choice((post, NEWS | {"article": text}))
        limit = rng.randint(1, max(2, 3 * size))
        expected = naive_query(tokenizer, record, limit)
        if expected is None:
            assert repr(record["id"]) in problem_of(encode_query, tokenizer, record, limit)
        else:
            assert encode_query(tokenizer, record, limit) == expected, (record, limit)


def test_truncation_agrees_with_the_papers_loop(tokenizer):
    check_against_the_naive_loop(tokenizer, random.Random(3), 2000, 30)
    check_against_the_naive_loop(tokenizer, random.Random(4), 50, 300)


def test_truncation_agrees_with_the_papers_loop_for_gpt2(gpt2):
    check_against_the_naive_loop(gpt2, random.Random(5), 1000, 40)


@pytest.mark.parametrize("piece", ["a", "-", "aab", "猫", "\n", " "])
def test_a_post_with_an_endless_word_is_cut_to_the_limit_and_hardly_more(tokenizer, piece):
    rng = random.Random(7)
    for _ in range(20):
        text = random_text(rng, 30) + piece * rng.randint(130, 900) + random_text(rng, 30)
        post, limit = POST | {"post": text}, rng.randint(60, 300)
        ours, theirs = encode_query(tokenizer, post, limit), naive_query(tokenizer, post, limit)
        assert len(theirs) - 8 <= len(ours) <= limit
        start, end = data.query_text(post, "CUT").split("CUT")
        kept = tokenizer.decode(ours).removeprefix(start).removesuffix(end)
        assert text.startswith(kept)


def test_the_template_is_the_papers(tokenizer):
    tokens = encode_query(tokenizer, POST, 500)
    assert tokenizer.decode(tokens) == (
        "SUBREDDIT: r/cats\n\nTITLE: My cat {left}\n\nPOST: It left.\nIt came back.\n\nTL;DR:")
    assert tokenizer.decode(encode_query(tokenizer, NEWS, 500)) == NEWS["article"] + "\n\nTL;DR:"


def test_a_post_is_cut_at_its_last_newline(tokenizer):
    whole = encode_query(tokenizer, POST, 500)
    cut = encode_query(tokenizer, POST, len(whole) - 1)
    assert tokenizer.decode(cut).endswith("POST: It left.\n\nTL;DR:")


def test_a_title_that_is_too_long_is_a_problem(tokenizer):
    told = problem_of(encode_query, tokenizer, POST | {"title": "long " * 200_000}, 512)
    assert "'t3_1'" in told and "512" in told


@pytest.mark.parametrize("text", ["a", "word ", "a\n", "\n", " ", "😀", "0123456789", "qxjzkvw"])
def test_a_megabyte_is_cut_in_no_time(tokenizer, text):
    record = POST | {"post": text * (1_000_000 // len(text))}
    start = time.process_time()
    assert 300 < len(encode_query(tokenizer, record, 512)) <= 512
    assert time.process_time() - start < 0.5           # 0.003 s, with room for a slow processor


def test_a_post_containing_endoftext_stays_text(tokenizer):
    post = POST | {"post": "<|endoftext|>" * 3}
    assert tokenizer.eot_token not in encode_query(tokenizer, post, 500)
    assert encode_response(tokenizer, "<|endoftext|>", 50).index(tokenizer.eot_token) > 1


# ----------------------------------------------------------------------------- responses and stacks

def test_a_response_has_one_leading_space_however_stored(tokenizer):
    expected = tokenizer.encode_ordinary(" the cat") + [tokenizer.eot_token]
    for text in ("the cat", " the cat", "\n the cat \n"):
        assert encode_response(tokenizer, text, 48) == expected


def test_a_long_response_gives_up_text_for_endoftext(tokenizer):
    row = encode_response(tokenizer, "cat " * 100, 48)
    assert len(row) == 48 and row[-1] == tokenizer.eot_token and row.count(tokenizer.eot_token) == 1
    assert encode_response(tokenizer, "cat", 1) == [tokenizer.eot_token]


def test_decoding_stops_at_the_first_endoftext_or_padding(tokenizer):
    cat = tokenizer.encode_ordinary(" the cat")
    for row in (cat, cat + [319] + cat, cat + [320, 320], torch.tensor(cat + [319, 320])):
        assert data.decode_response(tokenizer, row) == "the cat"
    assert data.decode_response(tokenizer, [319]) == data.decode_response(tokenizer, []) == ""


def test_half_a_character_can_be_decoded(tokenizer):
    assert data.decode_response(tokenizer, [0xF0, 0x9F]) == "\ufffd"


def test_padding_is_a_suffix():
    tokens = data.stack([[1, 2, 3], [], [4]], pad=9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]] and tokens.dtype == torch.long
    assert data.stack([], 9).shape == (0, 0)


def test_examples_come_before_the_query_as_many_as_fit(tokenizer):
    solved = "Subreddit: r/cats\n\nTitle: My cat {left}\n\nIt left.\nIt came back.\n\nTL;DR:"
    query = solved.replace("cats", "dogs")
    one = solved + " Cat left, cat came back.\n\n=====\n\n" + query
    dog = POST | {"subreddit": "dogs"}
    size = len(tokenizer.encode_ordinary(one))

    def prompt(count, limit):
        return tokenizer.decode(sample.encode_examples(tokenizer, dog, [POST] * count, limit))

    assert prompt(0, 500) == prompt(5, size - 1) == query
    assert prompt(1, size) == prompt(5, size) == one
    assert prompt(5, 5000).count("=====") == 5
    long = dog | {"post": "It left.\n" + "It came back. " * 999}
    tokens = sample.encode_examples(tokenizer, long, [POST], 100)
    assert tokenizer.decode(tokens) == query.replace("\nIt came back.", "")


# ------------------------------------------------------------------------------------------ batches

def test_an_epoch_gives_no_row_twice_and_leaves_less_than_a_batch_over():
    batches = Batches(range(1003), batch=10, seed=0)
    assert batches.steps_per_epoch == 100
    for epoch in range(3):
        rows = np.concatenate([batches.at(100 * epoch + i) for i in range(100)])
        assert len(set(rows)) == 1000 and set(rows) <= set(range(1003)) and rows.dtype == np.int64


def test_rows_are_a_function_of_seed_and_step_alone():
    first = [Batches(range(100), 8, seed=1).at(step).tolist() for step in range(40)]
    again = Batches(range(100), 8, seed=1)
    for step in random.Random(0).sample(range(40), 40):
        assert again.at(step).tolist() == first[step]
    other = [Batches(range(100), 8, seed=2).at(step).tolist() for step in range(40)]
    assert first != other and first[:12] != first[12:24]         # another seed; another epoch


def test_rows_of_a_batch_are_of_like_length_and_batches_come_in_no_order():
    lengths = np.random.default_rng(0).integers(1, 500, 5000)
    batches = Batches(lengths, batch=10, seed=0)
    mine = np.stack([lengths[batches.at(step)] for step in range(500)])         # (500, 10)
    assert np.ptp(mine, axis=1).mean() < 30                      # 410 for random rows
    means = mine.mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15
    windows = means.reshape(10, 50).mean(1)
    assert np.ptp(windows) < 50                                  # each window is a fair sample


def test_fewer_rows_than_a_batch_is_a_problem():
    assert Batches([1, 2, 3], 3, 0).at(7).tolist()
    told = problem_of(Batches, [1, 2, 3], 4, 0)
    assert told == "3 rows are no batch of 4: give more data, or lower --batch"
    problem_of(Batches, [], 4, 0)
    problem_of(Batches, [1, 2, 3], 0, 0)


# -------------------------------------------------------------------------------------------- ROUGE

@pytest.mark.parametrize("candidate, reference, expected", [     # by rouge-score, without stemming
    ("the cat sat on the mat", "the cat was on the mat", (.833333, .6, .833333)),
    ("the the the the", "the cat the dog", (.5, 0, .5)),
    ("a b c d e f", "f e d c b a", (1, 0, .166667)),
    ("My girlfriend's sister broke my bike, and I don't know what to do. TL;DR: help!",
     "Sister of my girlfriend broke my bike; should I tell her parents?", (.466667, .214286, .4)),
    ("I quit my job last week because my boss stole my lunch and now I miss the salad",
     "my boss stole my lunch so I quit last week", (.642857, .461538, .428571)),
    ("", "nothing", (0, 0, 0)), ("one", "One.", (1, 0, 1)), ("!", "?", (0, 0, 0))])
def test_rouge_agrees_with_the_reference_implementation(candidate, reference, expected):
    for a, b in ((candidate, reference), (reference, candidate)):
        assert tuple(rouge(a, b).values()) == pytest.approx(expected, abs=1e-6)
    assert list(rouge(candidate, reference)) == ["rouge_1", "rouge_2", "rouge_l"]


def test_words_of_plain_english_are_those_of_the_usual_script():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice(string.printable) for _ in range(rng.randint(0, 60)))
        assert words_of(text) == re.findall("[a-z0-9]+", text.lower())


@pytest.mark.parametrize("text, words", [
    ("Η γάτα έφυγε!", ["η", "γάτα", "έφυγε"]), ("Été à la plage", ["été", "à", "la", "plage"]),
    ("e\u0301te\u0301", ["e\u0301te\u0301"]), ("हिन्दी में", ["हिन्दी", "में"]), ("한국어 단어", ["한국어", "단어"]),
    ("猫が逃げた。", ["猫", "が", "逃", "げ", "た"]), ("แมวนี", ["แ", "ม", "ว", "นี"]),
    ("abc漢字def", ["abc", "漢", "字", "def"]), ("\U0001F600", [])])
def test_words_of_other_scripts_are_words_and_without_spaces_each_character_is_one(text, words):
    assert words_of(text) == words
    assert rouge(text, text)["rouge_l"] == bool(words)
    assert rouge(text + " χ", "χ ψ")["rouge_l"] == pytest.approx(2 / (len(words) + 3))


def test_rouge_l_counts_the_longest_common_subsequence():
    def naive(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return naive(a[:-1], b[:-1]) + 1
        return max(naive(a[:-1], b), naive(a, b[:-1]))

    rng = random.Random(6)
    for _ in range(100):
        a, b = ([rng.choice("xyz") for _ in range(rng.randint(0, 7))] for _ in range(2))
        assert longest_common_subsequence(a, b) == naive(a, b)


# ------------------------------------------------------------------------------------- command line

def test_pretraining_reads_its_own_file_or_else_the_posts(tmp_path):
    write(tmp_path / "train.jsonl", POST)
    assert data.pretraining_texts(tmp_path) == [data.query_text(POST) + " " + POST["summary"]]
    path = tmp_path / "pretrain.jsonl"
    write(path, {"id": "1", "text": "Cats."}, {"id": "2", "text": "Mats."})
    assert data.pretraining_texts(tmp_path) == ["Cats.", "Mats."]
    write(path, {"id": "1", "text": "Cats."}, {"id": "2"})
    assert "line 2: field 'text' is missing" in problem_of(data.pretraining_texts, tmp_path)


def test_the_command_trains_on_posts_and_pretraining_texts(tmp_path, capsys):
    write(tmp_path / "train.jsonl", *[POST] * 9)
    write(tmp_path / "pretrain.jsonl", *[{"id": "1", "text": "zyzzyva zyzzyva"}] * 9)
    tokenizer_of.main(["--data", str(tmp_path), "--vocab", "300"])
    tokenizer = data.load_tokenizer(tmp_path)
    assert tokenizer.n_vocab == 300 and "300 tokens" in capsys.readouterr().out
    assert b" zyzzyva" in tokenizer._mergeable_ranks and b" cat" in tokenizer._mergeable_ranks


def test_a_mistake_on_the_command_line_is_told_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        entry(lambda: tokenizer_of.main(["--data", str(tmp_path)]))
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.count("\n") == 1 and "train.jsonl" in told

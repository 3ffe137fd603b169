"""The same commands, twice, in two folders and two processes: the same bits, from toy posts to report."""
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

PIPELINE = """
toy --out data --posts 400
tools.tokenizer --data data --vocab 500
sft --data data --loss-on all --size tiny --query-length 48 --batch 8 --steps 12 --lr 1e-2 --save-every 5 --out run/pretrained
sft --data data --init run/pretrained --query-length 120 --response-length 32 --batch 8 --steps 12 --lr 1e-2 --out run/supervised
sample --policy run/supervised --data data --pairs 60 --with-reference 0.5 --out run/pairs.jsonl
label simulate --pairs run/pairs.jsonl --labels 2 --out run/comparisons.jsonl
reward --init run/supervised --comparisons run/comparisons.jsonl --query-length 120 --response-length 32 --batch 8 --lr 1e-3 --out run/reward
ppo --policy run/supervised --reward run/reward --data data --query-length 120 --response-length 32 --batch 16 --minibatches 2 --episodes 48 --lr 1e-3 --temperature 1 --snapshot-every 2 --out run/ppo
evaluate --run run --data data --posts 24 --out run/report
tools.report --run run --out run/report
"""

DRIVER = """
import importlib, sys
import torch
torch.set_num_threads(1)
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import conftest, evaluate, model
from tools import overoptimisation
model.SIZES["tiny"] = conftest.SIZE._replace(context=192)
evaluate.SAMPLES = 8
overoptimisation.POOL = 4
for line in sys.stdin.read().strip().splitlines():
    script, *words = line.split()
    on = [] if script in ("toy", "tools.tokenizer", "label") else ["--device", "cpu"]
    importlib.import_module(script).main(words + on)
"""


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two folders in which the pipeline ran, in processes that order their sets differently."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    runs = [subprocess.Popen([sys.executable, "-c", DRIVER, str(ROOT)], cwd=folder, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env={**os.environ, "PYTHONHASHSEED": str(i), "OMP_NUM_THREADS": "1"})
            for i, folder in enumerate(folders)]
    for run in runs:
        run.stdin.write(PIPELINE)
        run.stdin.close()
        run.stdin = None
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said[0][1][-2000:]
    return folders


def timeless(known):
    """A JSON value without what a clock said."""
    if isinstance(known, dict):
        return {k: timeless(v) for k, v in known.items() if "second" not in k}
    return [timeless(v) for v in known] if isinstance(known, list) else known


def test_the_whole_toy_pipeline_ends_in_the_same_bits_every_time(twice):
    files = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
             for folder in twice]
    assert files[0] == files[1] and sum(p.name == "model.pt" for p in files[0]) == 4
    seen = set()
    for path in files[0]:
        a, b = (folder / path for folder in twice)
        seen.add(path.suffix)
        if path.suffix == ".pt":
            a, b = (torch.load(p, weights_only=True) for p in (a, b))
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), path
        elif path.suffix in (".json", ".jsonl"):
            a, b = ([timeless(json.loads(t)) for t in
                     ([p.read_text()] if path.suffix == ".json" else p.read_text().splitlines())]
                    for p in (a, b))
            assert a == b, path
        elif path.name in ("report.md", "report.html"):              # the page holds both
            a, b = (re.sub(r"## Seconds.*?(?=\"pictures\"|$)", "", p.read_text(), flags=re.DOTALL)
                    for p in (a, b))
            assert a == b, path
        else:
            assert a.read_bytes() == b.read_bytes(), path
    assert seen == {".html", ".json", ".jsonl", ".md", ".pt", ".png", ".svg",
                    ".tiktoken"}

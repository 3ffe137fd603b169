"""The tutorial's notebook: made from the pages, with real outputs, and it runs."""
import ast
import importlib
import inspect
import json
import re
import shutil

import pytest
from conftest import ROOT
from test_tutorial_table import numbers, table_of

from runtime import Problem
from tools import demo, tutorial, tutorial_cells
from tools import tutorial_notebook as notebook

FILE = ROOT / notebook.PATH


def pages():
    return {path.stem: path.read_text() for path in (ROOT / "docs/tutorial").glob("*.md")}


@pytest.fixture(scope="module")
def cells():
    """The cells of the notebook that is committed."""
    return notebook.read(ROOT)


def printed(cells, beginning):
    """What the cell printed that begins with this comment."""
    cell, = [cell for cell in cells if cell["source"].startswith(f"# {beginning}")]
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


# ------------------------------------------------------------------------------ as it is committed

def test_the_notebook_is_made_from_the_pages(monkeypatch, capsys):
    assert notebook.faults_of(pages(), ROOT) == []
    tutorial.main(["--check"])
    monkeypatch.setattr(notebook, "read", lambda root, read=notebook.read: read(root)[:-1])
    with pytest.raises(SystemExit):
        tutorial.main(["--check"])
    assert "tutorial.ipynb: is not made from these pages" in capsys.readouterr().out


@pytest.mark.parametrize("name", notebook.PAGES)
def test_it_is_old_when_a_page_has_another_word_or_other_code(name):
    texts = pages()
    for old, new in ((". ", "; "), ("<!-- notebook: ", "<!-- nothing: ")):
        assert old in texts[name]
        assert notebook.faults_of(texts | {name: texts[name].replace(old, new, 1)}, ROOT)


def test_every_page_is_in_it_wholly(cells):
    text = "".join(cell["source"] for cell in cells)
    for name in notebook.PAGES:
        for line in pages()[name].splitlines():
            if not re.match(r"```|<!-- |.*\]\([\w-]+\.md", line):        # links lead elsewhere here
                assert line in text, f"{name}: {line}"
    assert set(notebook.PAGES) <= set(pages())
    assert sorted(name for name in pages() if name not in notebook.PAGES) == ["AFTER", "EXERCISES", "EXPERIMENTS"]


def test_every_cells_function_has_its_place_in_one_page():
    asked = re.findall(r"^<!-- notebook: (\w+) -->$", "\n".join(pages().values()), re.M)
    functions = [name for name, _ in inspect.getmembers(tutorial_cells, inspect.isfunction)
                 if getattr(tutorial_cells, name).__module__ == tutorial_cells.__name__]
    assert sorted(set(asked) - {"run"}) == sorted(functions)
    assert len(set(asked) - {"run"}) == len([name for name in asked if name != "run"])


def test_it_has_outputs_and_no_errors(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream"}
    printing = [cell for cell in code if "print(" in cell["source"]]
    assert len(printing) > 20 and all(cell["outputs"] for cell in printing)
    assert "Traceback" not in json.dumps(outputs)


def test_it_says_nothing_of_the_machine_that_ran_it(cells):
    text = FILE.read_text()
    assert len(text.encode()) < 1_000_000
    told = json.dumps([cell.get("outputs") for cell in cells])
    assert not re.search(r"\\r|\\u001b|/tmp|/home|/root|site-packages|\.venv|min left|image/png", told)
    whole = json.loads(text)
    assert whole["metadata"] == notebook.notebook_of([])["metadata"]
    assert {key for cell in whole["cells"] for key in cell["metadata"]} == {"jupyter"}
    ids = [cell["id"] for cell in whole["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)


def test_its_links_and_pictures_lead_somewhere(cells):
    text = tutorial.NO_TEXT.sub("", "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown"))
    anchors = set(re.findall(r'<a id="(.*?)"></a>', text))
    links = re.findall(r"\]\(([^()\s]+)\)", text)
    assert anchors == set(notebook.PAGES) and len(links) > 40
    for link in links:
        path, _, anchor = link.partition("#")
        assert re.match(r"\w+:", link) or (FILE.parent / path).exists() and (path or anchor in anchors), link
    shown = [name for cell in cells for name in re.findall(r'^picture\("(.*)"\)$', cell["source"])]
    assert shown == re.findall(r"!\[[^\]]*\]\((\S+)\)", text) and len(shown) > 9


# -------------------------------------------------------------------------- its numbers, by hand

def test_the_first_pages_numbers(cells):
    assert re.findall(r"[\d.]+%?$|\d+%", printed(cells, "What happens with other"), re.M) == [
        "82%", "0.20", "1.70", "0.69"]
    tokens = [line.split()[2] for line in printed(cells, "The merges of").splitlines()]
    assert tokens == [cell for cell in re.findall(r"(\d+) \|$", pages()["1-data"], re.M) if int(cell) < 17][:7]
    grades = printed(cells, "Which grade").splitlines()
    assert grades[0].startswith("2.12  coverage 0.342, accuracy 0.722, coherence 1.000, length 0.320")
    assert grades[1].startswith("7.00")
    assert [round(float(x), 1) for x in re.findall(r"\d+\.\d*", printed(cells, "Take the mask"))] == [10., 12.7, 24.2]


def test_ppos_table_of_three_tokens(cells):
    table, lines = table_of("8-ppo.md", "log pi_old"), printed(cells, "The table of three").splitlines()
    assert len(lines) == 10
    for line in lines[:-1]:
        name, *shown = re.split(r" {2,}", line.strip())
        told = numbers(table[name][:3])
        assert [float(x) for x in " ".join(shown).split()] == pytest.approx(told, abs=1e-3), name
    assert lines[-1].split()[1:] == table["flat?"][:3]


def test_bradley_and_terrys_and_the_bests_numbers(cells):
    sums = table_of("7-reward.md", "1.1")
    told = re.findall(r"= ([\d.]+)$", printed(cells, "Three people"), re.M)
    assert told == [sums[d][2] for d in ("0", "1.1", "2")]
    for n, *_, kl in re.findall(r"For \$n = (\d+)\$: \$([\d.]+) - ([\d.]+) = ([\d.]+)\$", pages()["5-sample"]):
        assert re.search(rf"^n = +{n}: drawn ([\d.]+), formula {kl}$", printed(cells, "Is the formula right"), re.M)


# ------------------------------------------------------------------------------------ how it is made

PAGE = """# A page

<!-- code: code.py double nodoc -->
```python
def double(x):
    return LIMIT and np.multiply(2, x)
```
and

<!-- code: code.py shown -->
```python
def shown():
    return 1
```
<!-- notebook: twice -->

## Next

<!-- figure: loss -->
![alt
text](loss.png)
[first](README.md#a), [code](../../code.py)

<!-- notebook: run -->
```
python code.py --out runs/a \\
    --steps 1
```
```
python code.py
```
```
4
```
<!-- notebook: run ls -->
```diff
- 1
```
```python
print(3)
```
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "docs/tutorial").mkdir(parents=True)
    (tmp_path / "code.py").write_text("import numpy as np\nLIMIT = 1\n\n\ndef double(x):\n    return LIMIT\n")
    (tmp_path / notebook.CELLS).write_text(
        'import torch\nfrom code import double\n\n\n@torch.no_grad()\ndef twice():\n    """Why not 5?"""\n'
        "    LIMIT = 4\n    print(double(LIMIT))\n")
    return tmp_path


def test_a_page_becomes_cells(project):
    page = notebook.Page("1-data", PAGE, notebook.functions_of(project), project)
    made = [source for kind, source in page.cells if kind != "markdown"]
    assert made == [
        "import numpy as np\nimport torch\nfrom code import LIMIT",
        "def double(x):\n    return LIMIT and np.multiply(2, x)",
        "# Why not 5?\nwith torch.no_grad():\n    LIMIT = 4\n    print(double(LIMIT))",
        'picture("loss.png")',
        "%%bash -e\nrm -rf runs/a\npython code.py --out runs/a \\\n    --steps 1",
        notebook.SHOWN + "# python code.py",
        "%%bash -e\nls", "print(3)"]
    assert [source for kind, source in page.cells if kind == "markdown"] == [
        "# A page", "and\n\n```python\ndef shown():\n    return 1\n```", "## Next\n\n![alt\ntext](loss.png)",
        "[first](README.md#a), [code](../../code.py)", "```\n4\n```", "```diff\n- 1\n```"]


def test_a_comment_that_means_nothing_is_told(project):
    with pytest.raises(Problem, match="1-data.md: <!-- notebook: thrice -->: .* has no function thrice"):
        notebook.Page("1-data", PAGE.replace(": twice", ": thrice"), notebook.functions_of(project), project)


def test_new_words_keep_the_outputs_and_new_code_is_run(project, monkeypatch):
    runs = []

    def execute(cells, folder):
        runs.append(sorted(path.name for path in folder.iterdir()))
        for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
            cell |= {"execution_count": number, "outputs": [{"output_type": "stream", "text": f"a\n{number}\n"}]}
    monkeypatch.setattr(notebook, "execute", execute)
    (project / "runs").mkdir()
    texts = dict.fromkeys(notebook.PAGES, "# Page\n\n```python\nprint(1)\n```\n") | {"1-data": PAGE}
    notebook.make(texts, project)
    first = notebook.read(project)
    assert runs == [["code.py", "docs", "tools"]]                   # a copy, without what runs make
    assert notebook.faults_of(texts, project) == []
    texts["2-toy"] += "and more words\n"
    assert notebook.faults_of(texts, project)
    notebook.make(texts, project)
    second = notebook.read(project)
    assert len(runs) == 1 and notebook.faults_of(texts, project) == []
    assert [cell for cell in first if cell["cell_type"] == "code"] == [
        cell for cell in second if cell["cell_type"] == "code"]
    assert len(second) == len(first) + 1
    texts["2-toy"] = texts["2-toy"].replace("print(1)", "print(2)")
    notebook.make(texts, project)
    assert len(runs) == 2 and notebook.faults_of(texts, project) == []


def test_an_output_loses_its_paths_and_clocks(tmp_path):
    told = notebook.tidy({"output_type": "stream", "text": f"stage 1 of 9: posts, about 5 min left\n{tmp_path}/a\n"},
                         tmp_path)
    assert told["text"] == "stage 1 of 9: posts\n./a\n"


# -------------------------------------------------------------------------------------------- it runs

SHRUNK = [("--steps 100", "--steps 2"), ("--snapshot-every 1", "--snapshot-every 1 --episodes 512"),
          ("in (9, 12)", "in (1, 2)"), ("[:100]", "[:4]"), ("(100, 16)", "(4, 16)"), ("1600", "64")]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A copy of the project with a small run in runs/demo, made in this process: starting Python for
    each of the demo's commands would take longer than what they do."""
    folder = notebook.copy_of(ROOT, tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(demo, "FULL", demo.Scale(300, 2, 20, 60, 512, 4, demo.FULL.seconds))
    for stage in demo.stages_of(*demo.flags(["--network", "toy-tiny"])):
        for command in stage.commands:
            script, *words = command[1:] if command[0] == "-m" else command
            importlib.import_module(script.removesuffix(".py")).main(words)
        for split in ("test", "valid"):
            path = folder / f"data/toy-0/{split}.jsonl"
            if stage.title == "posts":
                path.write_text("".join(path.open().readlines()[:20]))
    return folder


def test_it_runs_from_top_to_bottom(small, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks: pip install -r requirements-dev.txt")
    pytest.importorskip("ipykernel", reason="the notebook's Python: pip install -r requirements-dev.txt")
    nbformat = pytest.importorskip("nbformat", reason="comes with nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = notebook.cells_of(pages(), ROOT)
    for old, new in SHRUNK:
        assert any(old in cell["source"] for cell in cells if cell["cell_type"] == "code"), old
        for cell in cells:
            cell["source"] = cell["source"].replace(old, new)
    notebook.execute(cells, small)
    nbformat.validate(nbformat.from_dict(notebook.notebook_of(cells)))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    told = json.dumps([cell["outputs"] for cell in code])
    assert "The report, for a browser: runs/demo-0/report/report.html" in told
    assert str(small) not in told and "\\r" not in told
    bad = dict(cells[1], source="1 / 0")
    with pytest.raises(Problem, match="the cell that begins '1 / 0' failed: ZeroDivisionError: division by zero"):
        notebook.execute([bad], small)
    assert nbclient


def test_without_nbclient_one_line_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(importlib.sys.modules, "nbclient", None)
    with pytest.raises(Problem, match="nbclient is missing: `pip install -r requirements-dev.txt`"):
        notebook.execute([], tmp_path)


def test_the_first_cell_fetches_the_project_where_it_is_missing(tmp_path):
    """In an empty folder, as a hosted notebook begins; the "project" is a folder with git."""
    import subprocess
    import sys
    if shutil.which("git") is None:
        pytest.skip("no git here")
    origin, here = tmp_path / "origin", tmp_path / "here"
    here.mkdir()
    origin.mkdir()
    (origin / "ppo.py").write_text("")
    (origin / "requirements.txt").write_text("torch==1.0\n# a comment\n")     # another is there: it stays
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=origin, check=True)
    ast.parse(notebook.START)
    # IPython is Jupyter's: here it is a stand-in
    code = "import sys, types; sys.modules['IPython.display'] = sys.modules['IPython'] = types.SimpleNamespace(Image=str)\n"
    code += notebook.START.replace("https://github.com/<you>/summarize", f"file://{origin}")
    end = "\nimport os; print(os.getcwd(), picture('a.png'))"
    for folder, shown in ((here, "docs/tutorial/a.png"), (here, "docs/tutorial/a.png"), (here / "summarize", "None")):
        done = subprocess.run([sys.executable, "-c", code + end], cwd=folder, capture_output=True, text=True)
        assert done.stdout.split() == [str(here / "summarize"), shown], done.stderr
    done = subprocess.run([sys.executable, "-c", code.replace("file://", "<")], cwd=tmp_path, text=True,
                          capture_output=True)
    assert "write the project's address" in done.stderr and not (tmp_path / "summarize").exists()

"""The tutorial as a notebook, docs/tutorial/tutorial.ipynb: the pages' text, with code that runs.

    python -m tools.tutorial notebook     make it anew, and run it when its code has changed

A page becomes these cells:

    text                                        stays text, a cell for each section
    <!-- code: FILE NAME -->                    a cell of code where one of the page's cells calls
                                                that function, so that a reader can change it
    <!-- notebook: NAME -->                     the body of a function of tools/tutorial_cells.py
    <!-- notebook: run --> above commands       a cell that runs them; other commands are shown
    <!-- notebook: run COMMAND -->              likewise, of a command that the page does not show
    ```python without a comment                 a cell of code
    <!-- figure: NAME -->                       the picture, as in the page; and a cell that shows
                                                it where the notebook is not next to the pictures

A page's first cell of code imports what the others need. nbclient runs all in a copy of the
project. Outputs stay as long as no code changes: so a page's words can be changed in no time. (To
run it all the same, delete it first.)

Read after: tutorial.py.
"""
import ast
import copy
import hashlib
import json
import os
import re
import shutil
import tempfile
import textwrap
from collections import defaultdict
from pathlib import Path

from runtime import Problem, write
from runtime.files import read_text

PAGES = ["README", "1-data", "2-toy", "3-model", "4-sft", "5-sample", "6-label", "7-reward",
         "8-ppo", "9-evaluate"]
FOLDER = "docs/tutorial"
PATH = f"{FOLDER}/tutorial.ipynb"
CELLS = "tools/tutorial_cells.py"
PIECE = re.compile(r"^<!-- figure: (?P<figure>\S+) -->\n(?P<picture>!\[.*?\]\(\S+\)\n)"
                   r"|^<!-- (?P<kind>code|notebook): (?P<what>.*?) -->\n"
                   r"|^```(?P<language>\w*)\n(?P<body>.*?)^```\n", re.M | re.S)
COMMAND = re.compile(r"^(?:python|torchrun) ", re.M)

TITLE = """# The tutorial, to run

The ten pages of this tutorial in one notebook. Run all cells (about eight minutes on two cores, no
GPU needed), and read while they run. The last cell of the first page trains all networks, so
nothing has to be run before. Then change a number in a cell, and run that cell again. What you
change here is changed here only, not in the project's files.

Below a cell stands what it prints *here*. The numbers in the text are another run's: on another
processor numbers are rounded in other ways, and networks that learned from them differ a little.
Cells that begin with `%%bash` need Linux or macOS."""

START = """# Only if this notebook lies outside of the project: write the project's address here.
REPOSITORY = "https://github.com/<you>/summarize"

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from IPython.display import Image

places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "summarize"]
root = next((place for place in places if (place / "ppo.py").exists()), None)
if root is None:                          # a hosted notebook: fetch the project
    assert "<" not in REPOSITORY, "write the project's address into the second line of this cell"
    root = places[-1]
    subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, root], check=True)
fetched = globals().get("fetched", root == places[-1])      # stays when this cell is run again

for line in (root / "requirements.txt").read_text().splitlines():
    if name := re.match("[a-z]*", line)[0]:
        try:
            importlib.metadata.version(name)           # there, in whatever version: it stays
        except importlib.metadata.PackageNotFoundError:
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", line], check=True)

os.chdir(root)
sys.path.insert(0, os.getcwd())
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.environ["CUDA_VISIBLE_DEVICES"] = ""   # such small networks need no GPU


def picture(name):
    \"\"\"A hosted notebook does not find the pictures of the text: show one of the project's.\"\"\"
    return Image(f"docs/tutorial/{name}") if fetched else None
"""

SHOWN = """# Not run here: it takes minutes, or has been done already.
# To run it, take away these two lines, and the "# " of the others.
# %%bash -e
"""


# ------------------------------------------------------------------------------ what a cell imports

def imports(text, module, wanted):
    """The lines that import some names as a file, the text of `module`, has them -> set of lines,
    {module: names}."""
    plain, others = set(), defaultdict(set)
    for node in ast.parse(text).body:
        for alias in getattr(node, "names", ()):
            name = alias.asname or alias.name.split(".")[0]
            named = alias.name + (f" as {alias.asname}" if alias.asname else "")
            if name in wanted and isinstance(node, ast.ImportFrom):
                others[node.module].add(named)
            elif name in wanted:
                plain.add(f"import {named}")
        targets = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else [
            target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
        others[module].update(wanted.intersection(targets))
    return plain, others


def names_in(code):
    """The names that some code uses, without those to which it gives a value."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    return {node.id for node in names} - {
        node.id for node in names if isinstance(node.ctx, ast.Store)}


def functions_of(root):
    """The cells' functions, by name -> (source as a cell, names that it uses)."""
    text = read_text(root / CELLS)
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            told, *body = node.body
            code = "\n".join(lines[body[0].lineno - 1:node.end_lineno])
            comment = textwrap.wrap(ast.get_docstring(node), 98, initial_indent="# ",
                                    subsequent_indent="# ")
            if node.decorator_list:                # torch.no_grad()
                code = f"with {ast.unparse(node.decorator_list[0])}:\n{code}"
            source = "\n".join([*comment, textwrap.dedent(code)])
            found[node.name] = source, names_in(source)
    return found


# ----------------------------------------------------------------------------------- a page's cells

class Page:
    """The cells of one page, as they are collected: (kind, source)."""

    def __init__(self, name, text, functions, root):
        self.name, self.functions, self.root = name, functions, root
        self.cells, self.text, self.wanted = [], "", []            # wanted: (file, names)
        asked = re.findall(r"^<!-- notebook: (\w+) -->$", text, re.M)
        self.called = set().union(*(functions[a][1] for a in asked if a in functions))
        self.defined = set()
        place = 0
        for piece in PIECE.finditer(text):
            self.write(text[place:piece.start()])
            place = piece.end()
            if piece["figure"]:
                self.write(piece["picture"])
                self.add("picture", f'picture("{piece["figure"]}.png")')
            elif piece["kind"] == "notebook":
                self.insert(piece["what"])
            elif piece["kind"] is None:
                self.block(piece, re.search(r"<!-- (code|notebook): (.*) -->\n\Z",
                                            text[:piece.start()]))
        self.write(text[place:])
        self.flush()
        if lines := self.imports():
            self.cells.insert(1, ("code", lines))

    def write(self, text):
        """Text: a heading of a section begins a new cell."""
        first, *more = re.split(r"^(?=## )", text, flags=re.M)
        self.text += first
        for section in more:
            self.flush()
            self.text = section

    def flush(self):
        """The text so far is a cell."""
        if self.text.strip():
            self.cells.append(("markdown", self.text.strip()))
        self.text = ""

    def add(self, kind, source):
        self.flush()
        self.cells.append((kind, source.rstrip()))

    def insert(self, what):
        """<!-- notebook: WHAT -->"""
        if what.startswith("run "):
            self.add("code", f"%%bash -e\n{what[4:]}")
        elif what in self.functions:
            source, names = self.functions[what]
            self.wanted.append((CELLS, names))
            self.add("code", source)
        elif what != "run":
            raise Problem(f"{FOLDER}/{self.name}.md: <!-- notebook: {what} -->: {CELLS} has no "
                          f"function {what}: write one, or `run`")

    def block(self, piece, comment):
        """A block between ```; comment: the match of the line before it, or None."""
        kind, what = comment.groups() if comment else ("", "")
        language, body = piece["language"], piece["body"]
        file, _, name = what.removesuffix(" nodoc").partition(" ")
        if kind == "code" and name in self.called:
            self.defined.add(name)
            self.wanted.append((file, names_in(body)))
            self.add("code", body)
        elif kind != "code" and language == "python":
            self.add("code", body)
        elif what == "run":
            new = re.findall(r"--out (\S+)", body)
            again = f"rm -rf {' '.join(new)}\n" if new else ""     # so that it can be run again
            self.add("code", f"%%bash -e\n{again}{body}")
        elif language == "" and COMMAND.search(body):
            self.add("code", SHOWN + textwrap.indent(body, "# ", lambda line: True))
        else:
            self.write(piece[0])

    def imports(self):
        """The cell that imports what the page's cells use and do not define themselves."""
        plain, others = set(), defaultdict(set)
        for file, names in self.wanted:
            module = file.removesuffix(".py").replace("/", ".")
            lines, more = imports(read_text(self.root / file), module, names - self.defined)
            plain |= lines
            for name, some in more.items():
                others[name] |= some
        return "\n".join([*sorted(plain), *(
            f"from {name} import {', '.join(sorted(others[name]))}"
            for name in sorted(others) if others[name])])


def cells_of(texts, root):
    """All cells, from {page: its text} -> list of nbformat's cells, without outputs."""
    functions = functions_of(root)
    cells = [("markdown", TITLE), ("code", START.rstrip())]
    for name in PAGES:
        if name not in texts:
            raise Problem(f"{FOLDER}/{name}.md is missing: the notebook is made from it")
        (_, first), *rest = Page(name, texts[name], functions, root).cells
        cells += [("markdown", f'<a id="{name}"></a>\n\n{first}'), *rest]
    found, times = [], defaultdict(int)
    for kind, source in cells:
        if kind == "markdown":                     # a link to another page leads to its first cell
            source = re.sub(rf"\]\(({'|'.join(PAGES)})\.md(?:#[^)]*)?\)", r"](#\1)", source)
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        times[digest] += 1                         # an id stays when cells before it change
        cell = {"cell_type": "markdown" if kind == "markdown" else "code",
                "id": f"{digest}-{times[digest]}", "metadata": {}, "source": source}
        if kind != "markdown":
            cell |= {"execution_count": None, "outputs": []}
        if kind == "picture":
            cell["metadata"] = {"jupyter": {"source_hidden": True}}
        found.append(cell)
    return found


# ------------------------------------------------------------------------------- run it, write it

def notebook_of(cells):
    """A notebook of format 4.5, which says nothing of this machine."""
    return {"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}}}


def execute(cells, project):
    """Run the cells as a reader of the notebook in the folder `project` would, and keep what they
    print. Raises: Problem for the first cell that fails, or without nbclient."""
    try:
        import nbclient
        import nbformat
    except ImportError:
        raise Problem("nbclient is missing: `pip install -r requirements-dev.txt`") from None
    notebook = nbformat.from_dict(copy.deepcopy(notebook_of(cells)))
    client = nbclient.NotebookClient(
        notebook, timeout=None, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(project / FOLDER)}})
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        failed, = [cell for cell in notebook.cells if any(
            output.output_type == "error" for output in cell.get("outputs", ()))]
        raise Problem(f"{PATH}: the cell that begins {failed.source.splitlines()[0]!r} failed: "
                      f"{error.ename}: {error.evalue}") from None
    for cell, done in zip(cells, notebook.cells, strict=True):
        if cell["cell_type"] == "code":
            cell["execution_count"] = done.execution_count
            cell["outputs"] = [tidy(output, project) for output in done.outputs]


def tidy(output, project):
    """An output without paths of this machine, and without what a clock said."""
    told = json.dumps(output).replace(str(project), ".")
    told = re.sub(r", (?:about \d+ min|less than a minute) left", "", told)
    return json.loads(told)


def copy_of(root, folder):
    """A copy of the project, without what a run makes."""
    shutil.copytree(root, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(
        ".*", "__pycache__", "data", "runs", "exercises"))
    return folder


def code_of(cells):
    return [cell["source"] for cell in cells if cell["cell_type"] == "code"]


def read(root):
    """The cells of the notebook as it is; none when there is no notebook."""
    path = root / PATH
    cells = json.loads(read_text(path))["cells"] if path.exists() else []
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def make(texts, root):
    """Write the notebook of {page: its text}; run it first if its code has changed."""
    cells, old = cells_of(texts, root), read(root)
    if code_of(cells) == code_of(old):
        kept = {cell["id"]: cell for cell in old}
        for cell in cells:
            if cell["cell_type"] == "code":
                cell |= {key: kept[cell["id"]][key] for key in ("execution_count", "outputs")}
    else:
        print("its code has changed: running it, about eight minutes on two quiet cores")
        with tempfile.TemporaryDirectory() as folder:
            execute(cells, copy_of(root, Path(os.path.realpath(folder))))
    for cell in cells:                             # a line of text is a line of the file
        cell["source"] = cell["source"].splitlines(keepends=True)
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = "".join(output["text"]).splitlines(keepends=True)
    write(root / PATH, json.dumps(notebook_of(cells), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {PATH}: {len(cells)} cells")


def faults_of(texts, root):
    """What is wrong with the notebook -> list of lines: it has other cells than the pages."""
    made = [(cell["id"], cell["source"]) for cell in cells_of(texts, root)]
    if made != [(cell["id"], cell["source"]) for cell in read(root)]:
        return [f"{PATH}: is not made from these pages: `python -m tools.tutorial notebook`"]
    return []

"""The tutorial's pages, docs/tutorial/*.md: the code in them is the book's, copied by this program.

    python -m tools.tutorial              copy the code into all pages anew
    python -m tools.tutorial --check      exit code 1 and a line for each page that is not as it
                                          should be: old code, a link that leads nowhere
    python -m tools.tutorial draw path    draw a picture anew: docs/tutorial/path.png
    python -m tools.tutorial notebook     make docs/tutorial/tutorial.ipynb anew, from the pages

In a page three kinds of comments speak to it; a reader does not see them. Below the first stands a
block of code, which the program replaces; below the second stands a picture.

    <!-- code: reward.py pairwise_loss -->         a file of the project, and a function of it, or a
    <!-- code: model.py Rows.last -->              class, a method, a constant
    <!-- code: sft.py train nodoc -->              without its docstring
    <!-- figure: path -->                          tools/tutorial_draw.py draws it, by draw_path
    <!-- notebook: run -->                         what only the notebook has: tutorial_notebook.py

Read after: any page of the tutorial.
"""
import ast
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from runtime import Problem, flag, write
from runtime.flags import entry, parse
from tools import tutorial_draw, tutorial_notebook
from tools.tutorial_notebook import FOLDER

ROOT = Path(__file__).resolve().parent.parent
DRAW = "tools/tutorial_draw.py"
CODE = re.compile(r"^<!-- code: (\S+) (\S+?)( nodoc)? -->\n(?:```python\n(.*?)^```$)?", re.M | re.S)
FIGURE = re.compile(r"^<!-- figure: (\S+) -->\n(?:!\[[^\]]*\]\((\S+)\))?", re.M)
# What is no text: blocks of code, formulas, words of code. A link in there is none.
NO_TEXT = re.compile(r"^```.*?^```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]*`", re.M | re.S)


@dataclass(frozen=True)
class Config:
    check: bool = flag(False, "change nothing; exit code 1 when a page is not as it should be")
    run: str = flag("runs/demo", "a finished run: `draw` shows its numbers", what="DIR")


# -------------------------------------------------------------------------------- code in the pages

def names_of(node):
    """The names that a statement gives a meaning to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [name.id for target in targets if target for name in ast.walk(target)
            if isinstance(name, ast.Name)]


def source_of(text, name, documented=True):
    """The lines of a function, class, method or constant of a file -> str, or None when it has no
    such thing. name: "gae", "Rows.last". documented=False: without the docstring."""
    node = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", ()) if part in names_of(child)), None)
    if node is None:
        return None
    lines, first = text.splitlines(), node.lineno
    for decorator in getattr(node, "decorator_list", ()):
        first = min(first, decorator.lineno)
    kept = set(range(first, node.end_lineno + 1))
    if not documented and ast.get_docstring(node) and len(node.body) > 1:
        kept -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return textwrap.dedent("\n".join(lines[i - 1] for i in sorted(kept)))


def refreshed(page, text, root):
    """A page's text with the code as it is now. Raises: Problem for code that is not there."""
    def block(found):
        file, name, nodoc, old = found.groups()
        where = f"{page}:{text[:found.start()].count(chr(10)) + 1}"
        if old is None:
            raise Problem(f"{where}: no block of code follows: write ```python and ``` below")
        path = root / file
        code = source_of(path.read_text("utf-8"), name, not nodoc) if path.is_file() else None
        if code is None:
            raise Problem(f"{where}: {file} has no {name}: name a function, class, method or "
                          "constant of a file of the project")
        return f"<!-- code: {file} {name}{nodoc or ''} -->\n```python\n{code}\n```"
    return CODE.sub(block, text)


# ----------------------------------------------------------------------------- links and pictures

def slugs_of(text):
    """The anchors of a page's headings, as GitHub makes them: of "The loss" it is the-loss."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults_of(page, text, root):
    """What is wrong with a page's links and pictures -> list of lines."""
    found, folder = [], (root / page).parent
    for link in re.findall(r"\]\(([^()\s]+)\)", NO_TEXT.sub("", text)):
        path, _, anchor = link.partition("#")
        target = folder / path if path else root / page
        if re.match(r"\w+:", link):
            continue
        if not target.exists():
            found.append(f"{page}: the link {link} leads nowhere")
        elif anchor and target.suffix == ".md" and anchor not in slugs_of(
                target.read_text("utf-8")):
            found.append(f"{page}: the link {link} names no heading of that page")
    drawn = (root / DRAW).read_text(encoding="utf-8")
    for name, picture in FIGURE.findall(text):
        if picture != f"{name}.png":
            found.append(f"{page}: below figure {name} the picture {name}.png is missing")
        if source_of(drawn, f"draw_{name}") is None:
            found.append(f"{page}: {DRAW} has no draw_{name}")
    return found


# ------------------------------------------------------------------------------------ the commands

def look_at_pages(check, root=ROOT):
    """Copy the code into all pages; with `check`, change nothing. Returns: what is wrong, lines.
    Raises: Problem, before anything is written, for code that is not there."""
    pages = {str(path.relative_to(root)): path.read_text(encoding="utf-8")
             for path in sorted((root / FOLDER).glob("*.md"))}
    new = {page: refreshed(page, text, root) for page, text in pages.items()}
    faults = []
    for page, text in new.items():
        if text != pages[page] and check:
            faults.append(f"{page}: its code is old: `python -m tools.tutorial` copies it anew")
        elif text != pages[page]:
            write(root / page, text)
            print(f"{page}: copied anew")
        faults += faults_of(page, text, root)
    return faults


def draw(name, run):
    """Draw one picture into the folder of the pages."""
    figure = getattr(tutorial_draw, f"draw_{name}", None)
    if figure is None:
        known = [key.removeprefix("draw_") for key in vars(tutorial_draw) if "draw_" in key]
        raise Problem(f"figure {name!r} is unknown: one of {', '.join(known)}")
    path = ROOT / FOLDER / f"{name}.png"
    figure(Path(run)).savefig(path, dpi=160)
    print(f"wrote {path.relative_to(ROOT)}")


def main(argv=None):
    """Copy, check, draw the picture that the second word names, or make the notebook."""
    words = list(sys.argv[1:] if argv is None else argv)
    drawing, making = words[:1] == ["draw"], words[:1] == ["notebook"]
    if drawing and (len(words) < 2 or words[1].startswith("-")):
        raise Problem("draw: name the picture: python -m tools.tutorial draw NAME")
    cfg = parse(Config, {}, words[2 * drawing + making:], __doc__)
    if drawing:
        draw(words[1], cfg.run)
        return
    faults = look_at_pages(cfg.check)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / FOLDER).glob("*.md")}
    if cfg.check:
        faults += tutorial_notebook.faults_of(texts, ROOT)
    elif making:
        tutorial_notebook.make(texts, ROOT)
        faults = look_at_pages(check=True)                # now that links to it lead somewhere
    if faults:
        print("\n".join(faults))
        raise SystemExit(1)


if __name__ == "__main__":
    entry(main)

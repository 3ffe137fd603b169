"""The tutorial: its code is the book's, its links lead somewhere, its pictures can be drawn."""
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

import label
import sft
import toy
from runtime import Problem
from tools import tokenizer, tutorial, tutorial_draw

CODE = '''
import functools

LIMIT, MORE = 3, {
    "a": 1}
size: int = 4


class Box:
    """A box."""
    sides = 4

    @property
    @functools.cache
    def area(self):
        """Its area.

        In metres."""
        return LIMIT


def only_a_docstring():
    """Nothing else."""
'''

# What is no prose: a worked example's numbers stand in tables.
NOT_READ = re.compile(r"^```.*?^```|^\|.*?$|<!--.*?-->|!\[.*?\]\(.*?\)|</?\w+>|\$\$.*?\$\$|\$[^$\n]+\$", re.M | re.S)
MOST_WORDS = 8000


def words_of(text):
    """The words of a page, without code, tables, comments, pictures, tags and formulas."""
    return re.findall(r"\S*\w\S*", NOT_READ.sub("", text))


@pytest.fixture
def project(tmp_path):
    """A small project: one file of code, one page."""
    (tmp_path / "docs" / "tutorial").mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "tutorial_draw.py").write_text("def draw_loss(run):\n    return run\n")
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path


def page(project, text, name="1-page.md"):
    path = project / "docs" / "tutorial" / name
    path.write_text(text)
    return path


def test_the_pages_show_the_code_as_it_is_and_their_links_lead_somewhere():
    assert tutorial.look_at_pages(check=True) == []
    tutorial.main(["--check"])                                  # no SystemExit


def test_the_ten_pages_are_short_enough_to_be_read():
    pages = [ROOT / "docs/tutorial/README.md", *sorted((ROOT / "docs/tutorial").glob("[1-9]-*.md"))]
    counts = {path.name: len(words_of(path.read_text())) for path in pages}
    for name, count in counts.items():
        print(f"{count:6,} {name}")
    assert len(counts) == 10 and 0 < sum(counts.values()) <= MOST_WORDS, counts


@pytest.mark.parametrize("text, words", [
    ("One word - and 2 `more`.", ["One", "word", "and", "2", "`more`."]),
    ("a\n```\nno = code\n```\nb", ["a", "b"]), ("a <!-- no\nno --> b", ["a", "b"]),
    ("![no no](no.png)\n[a](b.md) $no + no$ c $$\nno\n$$ d", ["[a](b.md)", "c", "d"]),
    ("<details><summary>1. Why?</summary>\n</details>", ["1.", "Why?"]),
    ("a\n| no | .5 |\n|---|--:|\n| no |  |\nb", ["a", "b"])])
def test_words_are_counted_where_a_reader_reads_them(text, words):
    assert words_of(text) == words


def test_a_page_is_old_when_a_function_that_it_shows_has_changed(tmp_path):
    shown = {}                                    # the first function that each page shows
    for path in sorted((ROOT / "docs/tutorial").glob("*.md")):
        for file, name, *_ in tutorial.CODE.findall(path.read_text()):
            if "\n    " in tutorial.source_of((ROOT / file).read_text(), name, False):
                shown.setdefault(f"docs/tutorial/{path.name}", (file, name))
    assert len(shown) >= 5
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime")
    for path in (*ROOT.glob("*.py"), ROOT / "README.md"):
        shutil.copy(path, tmp_path)
    assert tutorial.look_at_pages(True, tmp_path) == []
    for changed, (file, name) in shown.items():
        text = (tmp_path / file).read_text()
        code = tutorial.source_of(text, name, False)
        last = code.splitlines()[-1]
        (tmp_path / file).write_text(text.replace(last, f"{last}  # and more"))
        told = tutorial.look_at_pages(True, tmp_path)
        assert f"{changed}: its code is old: `python -m tools.tutorial` copies it anew" in told
        assert tutorial.look_at_pages(False, tmp_path) == []
        assert "# and more" in (tmp_path / changed).read_text()


def test_check_ends_with_code_1_and_names_the_page(project, monkeypatch, capsys):
    path = page(project, "<!-- code: code.py size -->\n```python\nsize: int = 5\n```\n")
    monkeypatch.setattr(tutorial, "look_at_pages",
                        lambda check, honest=tutorial.look_at_pages: honest(check, project))
    with pytest.raises(SystemExit, match="1"):
        tutorial.main(["--check"])
    assert capsys.readouterr().out.startswith("docs/tutorial/1-page.md: its code is old")
    assert "= 5" in path.read_text()                            # nothing was changed
    tutorial.main([])
    assert "size: int = 4\n```\n" in path.read_text()
    tutorial.main(["--check"])


@pytest.mark.parametrize("name, documented, lines", [
    ("LIMIT", True, ["LIMIT, MORE = 3, {", '    "a": 1}']), ("MORE", True, ["LIMIT, MORE = 3, {", '    "a": 1}']),
    ("size", True, ["size: int = 4"]), ("Box.sides", True, ["sides = 4"]),
    ("Box.area", False, ["@property", "@functools.cache", "def area(self):", "    return LIMIT"]),
    ("Box.area", True, ["@property", "@functools.cache", "def area(self):", '    """Its area.', "",
                        '    In metres."""', "    return LIMIT"]),
    ("only_a_docstring", False, ["def only_a_docstring():", '    """Nothing else."""'])])
def test_functions_classes_methods_and_constants_are_found(name, documented, lines):
    assert tutorial.source_of(CODE, name, documented).splitlines() == lines


@pytest.mark.parametrize("name", ["Rows", "Box.volume", "area", "functools"])
def test_what_is_not_there_is_not_found(name):
    assert tutorial.source_of(CODE, name) is None


def test_text_around_the_code_stays_and_blocks_keep_their_order(project):
    text = ("# One\n\n<!-- code: code.py Box nodoc -->\n```python\n```\nbetween $x](y)$\n"
            "<!-- code: code.py size -->\n```python\nold\n```\n```\nas it is\n```\n")
    new = tutorial.refreshed("1-page.md", text, project)
    blocks = re.findall(r"```python\n(.*?)\n```", new, re.S)
    assert blocks[0].startswith("class Box:\n    sides") and blocks[1] == "size: int = 4"
    assert re.sub(r"```python\n.*?```", "X", new, flags=re.S) == re.sub(
        r"```python\n.*?```", "X", text, flags=re.S)
    assert tutorial.refreshed("1-page.md", new, project) == new


@pytest.mark.parametrize("text, told", [
    ("<!-- code: code.py size -->\n\nno block", "1-page.md:2: no block of code follows"),
    ("<!-- code: code.py box -->\n```python\n```\n", "1-page.md:2: code.py has no box"),
    ("<!-- code: none.py box -->\n```python\n```\n", "1-page.md:2: none.py has no box")])
def test_code_that_is_not_there_is_told_and_nothing_is_written(project, text, told):
    old = page(project, "<!-- code: code.py size -->\n```python\n```\n", "0-first.md")
    page(project, f"# Title\n{text}")
    with pytest.raises(Problem, match=told):
        tutorial.look_at_pages(False, project)
    assert old.read_text() == "<!-- code: code.py size -->\n```python\n```\n"


@pytest.mark.parametrize("text, told", [
    ("[a](2-none.md)", "the link 2-none.md leads nowhere"),
    ("[a](../../code.py)", None), ("[a](https://example.org/x)", None), ("`[a](none)`", None),
    ("$p[a](none)$", None), ("[a](#the-loss-at-step-0)", None),
    ("[a](1-page.md#the-loss-at-step-0)", None),
    ("[a](1-page.md#loss)", "the link 1-page.md#loss names no heading"),
    ("<!-- figure: loss -->\n![a](loss.png)", None),
    ("<!-- figure: loss -->\n![a](gain.png)", "below figure loss the picture loss.png is missing"),
    ("<!-- figure: gain -->\n![a](gain.png)", "tools/tutorial_draw.py has no draw_gain")])
def test_faults_of_links_and_pictures_are_told(project, text, told):
    for name in ("loss", "gain"):
        (project / "docs" / "tutorial" / f"{name}.png").write_bytes(b"")
    page(project, f"# The loss, at step 0\n\n{text}\n")
    faults = tutorial.look_at_pages(True, project)
    assert len(faults) == (told is not None) and all(told in fault for fault in faults)


def test_a_picture_is_drawn_and_an_unknown_one_is_told(tmp_path, monkeypatch):
    (tmp_path / tutorial.FOLDER).mkdir(parents=True)
    monkeypatch.setattr(tutorial, "ROOT", tmp_path)
    tutorial.main(["draw", "path"])
    assert (tmp_path / "docs/tutorial/path.png").read_bytes().startswith(b"\x89PNG")
    for words, told in ((["draw"], "name the picture"), (["draw", "nothing"], "one of path")):
        with pytest.raises(Problem, match=told):
            tutorial.main(words)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two small stages, two steps each."""
    base = tmp_path_factory.mktemp("run")
    toy.main(["--out", f"{base}/data", "--posts", "40"])
    tokenizer.main(["--data", f"{base}/data", "--vocab", "300"])
    for stage, loss_on in (("pretrained", "all"), ("supervised", "summary")):
        sft.main(["--size", "toy-tiny", "--data", f"{base}/data", "--loss-on", loss_on, "--steps", "2",
                  "--batch", "4", "--query-length", "400", "--out", f"{base}/{stage}"])
    return base


@pytest.mark.parametrize("name", ["path", "rows", "grades", "attention", "loss", "sweeps"])
def test_pictures_are_800_pixels_wide_and_their_letters_large_enough(name, run, tmp_path):
    figure = getattr(tutorial_draw, f"draw_{name}")(run)
    figure.savefig(tmp_path / "figure.png")                     # fills in what is drawn late
    assert figure.get_figwidth() * 160 == 800
    texts = [text for text in figure.findobj(match=lambda artist: hasattr(artist, "get_fontsize"))
             if text.get_text().strip() and text.get_visible()]
    assert len(texts) > 10 and min(text.get_fontsize() for text in texts) >= 8


def test_the_picture_of_attention_hides_what_the_mask_forbids(run):
    axes = tutorial_draw.draw_attention(run).axes[0]
    shown = axes.images[0].get_array()                          # (7 columns that ask or more, 26)
    assert not shown.mask[-1].any() and shown.mask[0].sum() == len(shown) - 1
    assert 0 <= shown.min() <= shown.max() <= 1


def test_the_measured_sweeps_are_means_within_their_intervals():
    sweeps = json.loads((ROOT / "reference/sweeps.json").read_text())
    shape = {"noise": ("sharpness", {"agreement"}, {"people", "judge"}),
             "temperature": ("temperature", set(),
                             {"supervised", "PPO", "supervised grade", "PPO grade"})}
    assert set(sweeps) == set(shape)
    for name, (at, single, intervals) in shape.items():
        rows = sweeps[name]
        assert len(rows) == 5 and [row[at] for row in rows] == sorted({row[at] for row in rows})
        for row in rows:
            assert set(row) == {at} | single | intervals
            for key in intervals:
                value, low, high = row[key]
                least, most = (1, 7) if key.endswith("grade") else (0, 1)
                assert least <= low < value < high <= most, (name, row[at], key)
    noise = [row["agreement"] for row in sweeps["noise"]]
    assert noise == sorted(noise) and .5 < noise[0] < noise[-1] < 1     # sharper: more agreement
    assert label.SHARPNESS == pytest.approx(sweeps["noise"][2]["sharpness"], abs=.005)
    told = (ROOT / "docs/tutorial/EXPERIMENTS.md").read_text()
    for share in (noise[0], sweeps["noise"][0]["judge"][0], sweeps["temperature"][0]["supervised"][0],
                  sweeps["temperature"][2]["supervised"][0]):
        assert f" {100 * share:.0f} %" in told


def test_the_picture_of_sweeps_shows_the_recorded_numbers():
    axes = tutorial_draw.draw_sweeps(None).axes
    by_title = {ax.get_title(): ax for ax in axes if ax.get_title()}
    assert len(by_title) == 6 and len(axes) == 8                # two have a second axis
    rows = json.loads((ROOT / "reference/sweeps.json").read_text())["temperature"]
    shown = {line.get_label(): line for line in by_title["temperature: preferred"].lines}
    assert list(shown["PPO"].get_xdata()) == [row["temperature"] for row in rows]
    assert list(shown["PPO"].get_ydata()) == [row["PPO"][0] for row in rows]
    bands = json.loads((ROOT / "reference/toy.json").read_text())["numbers"]
    last = by_title["number of labels: accuracy"].lines[0].get_ydata()[-1]
    assert last == pytest.approx(sum(bands["figure 3: toy: 9600"]) / 2)


def test_every_drawing_function_belongs_to_a_page():
    text = "".join(path.read_text() for path in sorted((ROOT / "docs/tutorial").glob("*.md")))
    known = {name.removeprefix("draw_") for name in vars(tutorial_draw) if name.startswith("draw_")}
    assert known == {name for name, _ in tutorial.FIGURE.findall(text)}
    for name in known:
        code = tutorial.source_of((ROOT / tutorial.DRAW).read_text(), f"draw_{name}")
        assert re.search(r"^    return ", code, re.M), name
    pictures = {path.stem for path in Path(ROOT / "docs/tutorial").glob("*.png")}
    assert pictures == known

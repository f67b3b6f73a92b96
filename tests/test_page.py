"""The page of a report: one valid file with all that the report holds; names are data."""

import json
import math
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from onnxshrink import page
from onnxshrink.kernels.by_input import input_errors
from onnxshrink.page import pareto, spread
from onnxshrink.page.drawing import Axis, alone
from onnxshrink.report import Attempt, Change, InputError, Report, Skip, Step, printable

HOSTILE = "<script>alert(1)</script> & \"x' \x1b[31m\u202e"
VOID = {"meta", "br", "wbr"}


class Reader(HTMLParser):
    """Holds a page to be well formed, and collects its elements and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def attempts(name: str = "quantize-rd") -> list[Attempt]:
    return [
        Attempt("lossless coding", 900_000, 0.0, "bigger"),
        Attempt(name, 100_000, 0.5, "bigger", 0.01, 0.5),
        Attempt(f"{name} 2", 60_000, 0.9, "taken", 0.02, 1.0, taken=True),
        Attempt(f"{name} 3", 50_000, 1.5, "not kept on unseen inputs", 0.1, 2.0, keeps=False),
        Attempt(f"{name} 4", 40_000, math.inf, "does not run", math.inf, None, keeps=False),
    ]


def report(name: str = HOSTILE) -> Report:
    steps = [
        Step(
            "prune-sparsegpt", changes=[Change(name, "Conv", 4000, 4000, "40 % are zero", {}, 1000)]
        ),
        Step(
            "quantize-rd",
            {"lam": 0.1},
            bytes_before=4000,
            bytes_after=1000,
            changes=[
                Change("graph", "model", 0, 0, "a name folded"),
                Change(name, "Conv", 4000, 1000, "int8", {"sensitivity": 0.01}, 1000, 250),
            ],
            skips=[Skip("bias", "fewer than 256 elements", "Conv", 40, 10), Skip("norms", "none")],
        ),
    ]
    figures = {
        "relative_error": 0.1, "cosine": 0.99, "top1": None, "worst_input": 0.2, "worst": 0.1,
        "slice": "",
    }  # fmt: skip
    return Report(
        f"{name}.onnx", "out.onnx", steps, {"inputs": "given"}, {name: figures},
        warnings=[f"{name} is odd"], measures={name: "values: numbers"}, tried=attempts(name),
        unseen=[InputError(f"{name}, row {n}", 0.3 / n) for n in range(1, 40)],
        asked={"preset": "balanced"}, provenance={"seed": 0, "sha256 of": {name: "abc"}},
        moved={name: "int8"}, promises=["likeness: kept"], storage="coded",
        bytes_before=8000, bytes_after=1000,
        bench={"ratio": 0.9, "low": 0.8, "high": 1.0, "before_ms": 2.0, "after_ms": 1.8},
    )  # fmt: skip


def test_a_page_is_one_file_and_names_are_data() -> None:
    text = report().to_html()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use", "a"}
    for _, attributes in reader.elements:
        assert not any(key.startswith("on") or key in ("src", "href") for key in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert printable(HOSTILE) in reader.text  # what the parser reads is the name, as it is shown
    plots = [attributes for tag, attributes in reader.elements if tag == "svg"]
    assert all("aria-hidden" in each or each.get("aria-label") for each in plots)
    heads = [attributes for tag, attributes in reader.elements if tag == "th"]
    assert heads
    assert all(each.get("scope") in ("row", "col") for each in heads)


def test_page_markdown_and_json_have_the_same_facts() -> None:
    found = report("w.weight")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(found.to_json(), parse_constant=refuse)  # JSON has no infinity
    reader = Reader()
    reader.feed(found.to_html())
    markdown = found.to_markdown()
    facts = ["w.weight is odd", "likeness: kept", "w.weight, row 39", "abc", "balanced"]
    for fact in (*facts, "fewer than 256 elements", "40 % are zero; int8", "quantize-rd"):
        for text in (reader.text, markdown, json.dumps(data)):
            assert fact in text, fact
    assert data["schema"] == 2
    assert data["tried"][-1]["strain"] is None
    assert [one["taken"] for one in data["tried"]] == [False, False, True, False, False]


def test_a_page_of_a_run_that_found_nothing_is_a_page() -> None:
    for found in (Report(), Report(missed=["too big"], bytes_before=10, bytes_after=20)):
        reader = Reader()
        reader.feed(found.to_html())
        assert reader.open == []
    assert "The goal was missed" in reader.text
    assert "2.00x bigger" in reader.text


def test_weights_are_told_over_all_steps() -> None:
    first, second = report("w").layers
    assert (first.name, first.before, first.after, first.bits) == ("w", 4000, 250, 2.0)
    assert first.treatment == "40 % are zero; int8"
    assert (second.name, second.changed, second.bits) == ("bias", False, 32.0)
    plain = report("w")
    plain.storage = "single"
    assert plain.layers[0].after == 1000  # what coding would take is not what it takes


def test_a_plot_has_everything_in_its_place() -> None:
    svg = ET.fromstring(alone(pareto.plot(attempts(), "x < y")))
    space = "{http://www.w3.org/2000/svg}"
    circles = [one for one in svg.iter(f"{space}circle") if one.get("class") != "ring"]
    at = [(float(one.get("cx", 0)), float(one.get("cy", 0))) for one in circles]
    assert len(circles) == 2
    assert at[0][0] > at[1][0]
    assert at[0][1] > at[1][1]  # what loses more is further up
    assert [one.get("class") for one in circles] == ["dot faster", "dot same"]
    refused = [one for one in svg.iter(f"{space}path") if "refused" in (one.get("class") or "")]
    assert [one.get("class") for one in refused] == ["refused slower", "refused unmeasured"]
    (ring,) = (one for one in svg.iter(f"{space}circle") if one.get("class") == "ring")
    assert (float(ring.get("cx", 0)), float(ring.get("cy", 0))) == at[1]
    (budget,) = (one for one in svg.iter(f"{space}path") if one.get("class") == "budget")
    height = float((budget.get("d") or "").split()[1].partition("H")[0])
    assert at[1][1] > height  # what is kept is below the line
    texts = "".join("".join(one.itertext()) for one in svg.iter(f"{space}text"))
    assert "taken: 60.0 kB" in texts
    assert "lossless coding: 900.0 kB" in texts
    names = [name for _, name in pareto.legend(attempts())]
    assert names == ["faster than the original", "as fast", "slower", "latency not measured",
                     "does not keep the budget", "taken"]  # fmt: skip


def test_a_histogram_counts_every_input() -> None:
    errors = [0.0, *np.geomspace(1e-3, 1e-1, 50), math.inf]
    svg = ET.fromstring(spread.plot(errors, "errors"))
    bars = [one for one in svg.iter() if one.get("class") == "after"]
    assert sum(int("".join(bar.itertext())) for bar in bars) == len(errors)
    ET.fromstring(spread.plot([math.inf], "one"))


@pytest.mark.parametrize("span", [(1e-3, 10.0), (40_000.0, 70_000.0), (5.0, 5.0)])
def test_ticks_are_round_and_few(span: tuple[float, float]) -> None:
    axis = Axis.over(span, 0.0, 100.0)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in ticks)
    places = [axis.place(tick) for tick in ticks]
    assert places == sorted(places)
    assert places[0] >= 0
    assert places[-1] <= 100
    middle = math.sqrt(axis.low * axis.high)
    assert axis.place(middle) == pytest.approx(50)
    assert (axis.place(0.0), axis.place(1e9)) == (0.0, 100.0)


def test_errors_of_inputs_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((n, 5)), rng.standard_normal((n, 5))) for n in (3, 2)]
    found = input_errors(pairs)
    signals = [np.square(x).sum(1) for x, _ in pairs]
    usual = np.concatenate(signals).mean()
    for rows, (x, y), signal in zip(found, pairs, signals, strict=True):
        expected = np.linalg.norm(x - y, axis=1) / np.sqrt(np.maximum(signal, usual))
        np.testing.assert_allclose(rows, expected, rtol=1e-12)
    ((whole,),) = input_errors(pairs[:1], whole=True)
    x, y = pairs[0]
    assert whole == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-12)
    labels = np.array([[1, 2, 3, 4]]), np.array([[1, 2, 0, 0]])
    assert input_errors([labels]) == [[0.5]]
    odd = (np.ones(3), np.ones(4)), (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]))
    assert input_errors(odd) == [[math.inf], [0.0, 0.0]]
    assert input_errors([(np.ones((1, 2)), np.array([[np.inf, 1.0]]))]) == [[math.inf]]


def test_the_style_is_in_the_package() -> None:
    files = {path.name for path in Path(page.__file__).parent.glob("*.css")}
    assert files == {"style.css", "plot.css"}

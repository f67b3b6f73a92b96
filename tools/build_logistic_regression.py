#!/usr/bin/env python3
"""Train `models/logistic_regression`: which language a short text is written in.

A Scaler and a LinearClassifier of ai.onnx.ml, whose weights are attributes of the node instead of
initializers. The texts are the translated messages of Django's own interface.

Needs `pip install scikit-learn` and `pip install --no-deps django==5.2.19` (the data;
BSD-3-Clause).

A rebuild is bit-identical only with the same versions of scikit-learn and its libraries.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
# (threadpoolctl comes with scikit-learn, which is not installed everywhere, CI included)

from __future__ import annotations

import gettext
import zlib
from pathlib import Path

import numpy as np
import onnx
import sklearn
from model_files import (
    IR_VERSION,
    OPSET,
    output_folder,
    package_folder,
    rows,
    unseen,
    verify,
    write_data,
)
from model_metrics import top_hits
from onnx import TensorProto, helper
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

SEED = 52
FEATURES = 512
LANGUAGES = "bg ca cs da de el es fi fr hu id it lt nb nl pl pt ro ru sk sl sv tr uk"

README = """# logistic_regression

Tells {classes} languages apart in one short message: a Scaler and a LinearClassifier of ai.onnx.ml,
whose {parameters:,} numbers are node attributes, not initializers.

| metric (higher is better) | this model | naive answer |
|---|---|---|
| accuracy, {tests:,} messages | {metric:.4f} | {naive:.4f} |

The naive answer is always the most common language.

Input: `features`, float32 `[batch, {features}]`: the message's 1- to 3-letter pieces hashed into
{features} counts of length 1 (`vectorizer()` in the builder). Outputs: `label`, int64 `[batch]`,
and `probabilities`, float32 `[batch, {classes}]`, in this order:
{languages}.

- **Data**: the translated messages of Django 5.2.19's own interface, as the PyPI package ships
  them, of at least 12 letters. They are split by their English original, so that no test message
  has a sibling in training. `test.npz`: {tests:,} messages of the held-out fifth.
  `calibration.npz`: {calibrations} of the training messages.
- **Licence**: data BSD-3-Clause, copyright Django Software Foundation and individual contributors;
  only the counts are kept here, not the texts. The model is the project's own, Apache-2.0.
- **Built by** `python tools/build_logistic_regression.py`, seed {seed}, scikit-learn {sklearn},
  opset 17 and ai.onnx.ml 3.
"""


def read_messages(folder: Path) -> list[tuple[str, str, int]]:
    """Read each distinct message with its English original and the number of its language.

    A text that is the same in two languages has no one answer and is left out.
    """
    found: dict[str, set[tuple[str, int]]] = {}
    for number, language in enumerate(LANGUAGES.split()):
        for path in sorted(folder.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
            with path.open("rb") as file:
                # No public way leads to all messages of a catalogue; the keys of plural forms
                # are pairs of original and form.
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            for key, text in catalogue.items():
                original = key if isinstance(key, str) else key[0]
                if original and len(text) >= 12:
                    found.setdefault(text, set()).add((original, number))
    return [
        (text, min(original for original, _ in uses), min(number for _, number in uses))
        for text, uses in sorted(found.items())
        if len({number for _, number in uses}) == 1
    ]


def vectorizer() -> HashingVectorizer:
    """Turn texts into counts of hashed 1- to 3-letter pieces, each row of Euclidean length 1."""
    return HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), n_features=FEATURES, alternate_sign=False
    )


def to_onnx(scaler: StandardScaler, classifier: LogisticRegression) -> onnx.ModelProto:
    """Write the trained pair as two nodes."""
    nodes = [
        helper.make_node(
            "Scaler",
            ["features"],
            ["standardized"],
            name="scaler",
            domain="ai.onnx.ml",
            offset=scaler.mean_.tolist(),
            scale=(1 / scaler.scale_).tolist(),
        ),
        helper.make_node(
            "LinearClassifier",
            ["standardized"],
            ["label", "probabilities"],
            name="classifier",
            domain="ai.onnx.ml",
            classlabels_ints=list(range(len(classifier.classes_))),
            coefficients=classifier.coef_.ravel().tolist(),
            intercepts=classifier.intercept_.tolist(),
            post_transform="SOFTMAX",
        ),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "logistic_regression",
        [value("features", TensorProto.FLOAT, ["batch", FEATURES])],
        [
            value("label", TensorProto.INT64, ["batch"]),
            value("probabilities", TensorProto.FLOAT, ["batch", len(classifier.classes_)]),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="onnxshrink"
    )


def main() -> None:
    """Train, export, check and write the folder."""
    folder = output_folder("logistic_regression", __doc__)
    texts, originals, numbers = zip(*read_messages(package_folder("django", "5.2.19")), strict=True)
    features = {"features": vectorizer().transform(texts).toarray().astype(np.float32)}
    truth = np.array(numbers, np.int64)
    # By the hash of the original: all translations of a message fall on the same side.
    held_out = np.array([zlib.crc32(text.encode()) % 5 == 0 for text in originals])

    rng = np.random.default_rng(SEED)
    train = np.flatnonzero(~held_out)
    test = np.sort(rng.choice(np.flatnonzero(held_out), 2000, replace=False))
    candidates = train[unseen(rows(features, train), rows(features, test))]
    calibration = np.sort(rng.choice(candidates, 512, replace=False))

    scaler = StandardScaler().fit(features["features"][train])
    classifier = LogisticRegression(C=0.01, max_iter=500)
    with threadpool_limits(1):  # one thread makes the sums come in the same order each time
        classifier.fit(scaler.transform(features["features"][train]), truth[train])
    probabilities = classifier.predict_proba(scaler.transform(features["features"][test]))

    path = folder / "model.onnx"
    onnx.save(to_onnx(scaler, classifier), path)
    verify(path, rows(features, test), probabilities)
    write_data(folder, rows(features, calibration), rows(features, test), truth[test])
    text = README.format(
        classes=len(classifier.classes_),
        languages=", ".join(LANGUAGES.split()),
        parameters=classifier.coef_.size + classifier.intercept_.size + 2 * FEATURES,
        metric=top_hits(probabilities, truth[test], 1),
        naive=np.bincount(truth[test]).max() / len(test),
        features=FEATURES,
        tests=len(test),
        calibrations=len(calibration),
        seed=SEED,
        sklearn=sklearn.__version__,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

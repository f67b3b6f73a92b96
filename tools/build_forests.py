"""Train forests and boosted trees on handwritten digits, as their users export them.

    python tools/build_forests.py FOLDER

Needs scikit-learn, skl2onnx, lightgbm and onnxmltools, which the project does not. Writes a random
forest and boosted trees, and the inputs that neither was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Train, convert and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    import lightgbm
    import skl2onnx
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.model_selection import train_test_split

    skl2onnx.update_registered_converter(
        lightgbm.LGBMClassifier, "LightGbmLGBMClassifier",
        calculate_linear_classifier_output_shapes, convert_lightgbm,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
    )  # fmt: skip
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    rng = np.random.default_rng(0)
    x = x + rng.normal(0, 0.3, x.shape).astype(np.float32)  # thresholds of many values
    train, rest, labels, truth = train_test_split(x, y, test_size=0.5, random_state=0)
    quiet = {"verbose": -1, "n_jobs": 1}
    forests = {
        "forest": RandomForestClassifier(16, random_state=0).fit(train, labels),
        "regression": RandomForestRegressor(16, random_state=0).fit(train, labels),
        "boosted": lightgbm.LGBMClassifier(n_estimators=20, **quiet).fit(train, labels),
        "binary": lightgbm.LGBMClassifier(n_estimators=60, **quiet).fit(train, labels > 4),
    }
    for name, forest in forests.items():
        options = {id(forest): {"zipmap": False}} if hasattr(forest, "classes_") else None
        model = skl2onnx.to_onnx(
            forest, train[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3}
        )
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    half = len(rest) // 2
    np.savez_compressed(folder / "calibration.npz", X=rest[:half])
    np.savez_compressed(folder / "test.npz", X=rest[half:], truth=truth[half:])


if __name__ == "__main__":
    main()

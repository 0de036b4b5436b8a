"""The shipped model, what becomes of a bad one, and that a payment's score is its own."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.fraud.features.spec import FEATURES, FEATURES_VERSION, NAMES
from services.fraud.model.scorer import REVIEW_SCORE, SCORE_MAX, SHIPPED, Scorer


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture
def artefact(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "artefact")


def rewrite(artefact, **changes) -> None:
    said = json.loads((artefact / "model.json").read_text())
    (artefact / "model.json").write_text(json.dumps(said | changes))


def some_features(rows: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return (10 ** random.uniform(-2, 5, (rows, len(NAMES)))).astype(np.float32)


def test_the_shipped_model_is_for_these_features_and_small(scorer):
    assert scorer.available, scorer.problem
    assert scorer.version
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_500_000


def test_a_score_does_not_depend_on_its_neighbours(scorer):
    matrix = some_features(300)

    together = scorer.score(matrix)
    alone = np.concatenate([scorer.score(matrix[row : row + 1]) for row in range(len(matrix))])
    in_sevens = np.concatenate([scorer.score(matrix[row : row + 7]) for row in range(0, 300, 7)])

    assert together.tobytes() == alone.tobytes() == in_sevens.tobytes()
    assert len(np.unique(together)) > 20


def test_another_process_gives_identical_scores(scorer):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_fraud_model as t\n"
        "sys.stdout.write(t.Scorer.load().score(t.some_features(300)).tobytes().hex())\n"
    )

    there = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert there.stdout == scorer.score(some_features(300)).tobytes().hex()


def test_scores_lie_between_0_and_99(scorer):
    extremes = np.array([[-3e38] * len(NAMES), [3e38] * len(NAMES), [0] * len(NAMES)], np.float32)

    scores = scorer.score(np.concatenate([extremes, some_features(1000)]))

    assert scores.min() >= 0
    assert scores.max() <= SCORE_MAX
    assert scorer.score(np.empty((0, len(NAMES)), np.float32)).shape == (0,)


class Gives:
    """Trees that give what they are told to."""

    def __init__(self, *margins):
        self._margins = np.array(margins, np.float32).reshape(-1, 1)

    def run(self, outputs, inputs):
        return [self._margins]


def test_what_is_no_number_is_the_highest_score_never_a_pass(scorer):
    trees = Gives(np.nan, np.inf, -np.inf)
    broken = Scorer(replace(scorer._model, session=trees))

    assert broken.score(some_features(3)).tolist() == [SCORE_MAX, SCORE_MAX, 0.0]


def test_the_review_score_is_where_the_report_says():
    said = json.loads((SHIPPED / "model.json").read_text())

    margins, scores = said["calibration"]["margins"], said["calibration"]["scores"]
    assert np.interp(said["review_margin"], margins, scores) == pytest.approx(REVIEW_SCORE)
    assert said["review_score"] == REVIEW_SCORE
    worst = max(run["fpr"] for run in said["validation"].values())
    assert worst == pytest.approx(said["review_honest_share"], rel=0.05)


def test_no_feature_is_an_id_a_place_or_a_day():
    for feature in FEATURES:
        assert feature.unit in {
            "0 or 1",
            "-1, 0 or 1",
            "days",
            "deviations",
            "devices",
            "km",
            "km/h",
            "m",
            "minor units",
            "payments",
            "ratio",
            "s",
            "share",
        }
        assert feature.meaning.endswith(".")
    assert not {"day", "time", "hour", "latitude", "longitude", "payer", "vendor"} & set(NAMES)


def damage(artefact) -> None:
    made = bytearray((artefact / "model.onnx").read_bytes())
    made[len(made) // 2] ^= 1
    (artefact / "model.onnx").write_bytes(made)


def replace_onnx(artefact) -> None:
    (artefact / "model.onnx").write_bytes(b"no model")
    rewrite(artefact, onnx_sha256=hashlib.sha256(b"no model").hexdigest())


def rewriting(**changes):
    return lambda artefact: rewrite(artefact, **changes)


BAD = {
    "no folder": (shutil.rmtree, "FileNotFoundError"),
    "no trees": (lambda artefact: (artefact / "model.onnx").unlink(), "FileNotFoundError"),
    "cut off": (lambda artefact: (artefact / "model.json").write_text("{"), "JSONDecodeError"),
    "a list": (lambda artefact: (artefact / "model.json").write_text("[]"), "TypeError"),
    "one bit": (damage, "is not the one model.json speaks of"),
    "no onnx": (replace_onnx, "model.onnx"),
    "fewer features": (rewriting(features=list(NAMES[:-1])), FEATURES_VERSION),
    "other features": (rewriting(features_version="other"), "other"),
    "falls": (rewriting(calibration={"margins": [1, 0], "scores": [0, 99]}), "does not rise"),
    "endless": (
        rewriting(calibration={"margins": [0, float("inf")], "scores": [0, 99]}),
        "does not rise",
    ),
    "nothing": (rewriting(calibration={"margins": [], "scores": []}), "does not rise"),
}


@pytest.mark.parametrize(("spoil", "problem"), BAD.values(), ids=BAD)
def test_a_bad_model_leaves_the_rules_alone_and_says_so_loudly(artefact, caplog, spoil, problem):
    spoil(artefact)

    with caplog.at_level(logging.ERROR):
        scorer = Scorer.load(artefact)

    assert not scorer.available
    assert problem in scorer.problem
    assert "judged by rules only" in caplog.text
    with pytest.raises(RuntimeError, match="no model"):
        scorer.score(some_features(1))


def test_the_documentation_lists_exactly_these_features():
    page = (Path(__file__).parents[1] / "docs" / "fraud.md").read_text()

    wanted = [f"| `{each.name}` | {each.unit} | {each.meaning} |" for each in FEATURES]
    start = page.index("| feature | unit | meaning |")
    table = page[start : page.index("\n\n", start)].splitlines()[2:]
    assert table == wanted

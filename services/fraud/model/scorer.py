"""Scores payments with the shipped model, or says why there is none."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from opentelemetry import metrics

from services.fraud.features.spec import FEATURES_VERSION, NAMES

log = logging.getLogger(__name__)

# Beside this module; made by `python -m training.fraud`.
SHIPPED = Path(__file__).with_name("artefact")
# From this score on a person must look: what the share of honest payments in model.json's
# `review_honest_share` reaches. Every 25 points more are ten times rarer among honest payments.
REVIEW_SCORE = 50.0
SCORE_MAX = 99.0

_unavailable = metrics.get_meter("tallystick.fraud").create_counter(
    "tallystick.fraud.model.unavailable",
    description="Times a process started without a model: rules only.",
)


class ArtefactError(Exception):
    """The model's files are missing, damaged or made for other features; says which."""


@dataclass(frozen=True)
class _Model:
    session: onnxruntime.InferenceSession
    version: str
    margins: NDArray[np.float64]
    scores: NDArray[np.float64]


class Scorer:
    """The model of a folder; without one that can be used, `available` is False.

    Attributes:
        available: Whether it can score.
        version: The model's; empty without one.
        problem: Why there is none; empty when there is one.
    """

    def __init__(self, model: _Model | None, problem: str = "") -> None:
        self._model = model
        self.available = model is not None
        self.version = "" if model is None else model.version
        self.problem = problem

    @classmethod
    def load(cls, directory: Path | None = None) -> Scorer:
        """Load the model of a folder; of the shipped one, when none is given.

        A model that cannot be used is logged as an error and counted, and rules go on without it.
        """
        directory = SHIPPED if directory is None else directory
        try:
            return cls.read(directory)
        except ArtefactError as error:
            log.error(  # noqa: TRY400 - the trace would say nothing more
                "fraud model unavailable: payments are judged by rules only",
                extra={"directory": str(directory), "cause": str(error)},
            )
            _unavailable.add(1)
            return cls(None, str(error))

    @classmethod
    def read(cls, directory: Path) -> Scorer:
        """The model of a folder.

        Raises:
            ArtefactError: it cannot be used.
        """
        return cls(_load(directory))

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """0 to SCORE_MAX for each row of features; a row's score does not depend on the others'.

        Where the trees give what is no number, it is the highest score.

        Args:
            matrix: As `FeatureBatch.matrix`.

        Raises:
            RuntimeError: there is no model.
        """
        if self._model is None:
            raise RuntimeError(f"There is no model to score with: {self.problem}")
        if not len(matrix):
            return np.empty(0)
        return _scores(self._model, matrix)


def _scores(model: _Model, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    (margin,) = model.session.run(None, {"features": matrix})
    certain = np.nan_to_num(margin[:, 0], nan=np.inf)
    scores: NDArray[np.float64] = np.interp(certain, model.margins, model.scores)
    return scores


def _load(directory: Path) -> _Model:
    try:
        said: dict[str, Any] = json.loads((directory / "model.json").read_text())
        made = (directory / "model.onnx").read_bytes()
        features, version = said["features"], str(said["version"])
        margins = np.array(said["calibration"]["margins"], np.float64)
        scores = np.array(said["calibration"]["scores"], np.float64)
        digest = said["onnx_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{directory}: {error!r}") from error
    if said.get("features_version") != FEATURES_VERSION or features != list(NAMES):
        raise ArtefactError(
            f"{directory} was trained for features {said.get('features_version')}, not for today's "
            f"{FEATURES_VERSION}. Train it anew."
        )
    if hashlib.sha256(made).hexdigest() != digest:
        raise ArtefactError(f"{directory / 'model.onnx'} is not the one model.json speaks of.")
    if not (
        margins.shape == scores.shape
        and margins.ndim == 1
        and len(margins) > 1
        and np.isfinite(margins).all()
        and (np.diff(margins) > 0).all()
        and (np.diff(scores) >= 0).all()
        and scores[0] >= 0
        and scores[-1] <= SCORE_MAX
    ):
        raise ArtefactError(f"{directory / 'model.json'}: the calibration does not rise to 99.")
    options = onnxruntime.SessionOptions()
    # One payment's trees are walked in microseconds: threads would cost more than they save.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
        model = _Model(session, version, margins, scores)
        tried = _scores(model, np.zeros((2, len(NAMES)), np.float32))
    except Exception as error:  # whatever onnxruntime raises, payments must go on
        raise ArtefactError(f"{directory / 'model.onnx'}: {error}") from error
    if tried.shape != (2,):
        raise ArtefactError(f"{directory / 'model.onnx'} gives no margin for each payment.")
    return model

"""Draft models: folders beside each other, as training writes them, that decide nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.fraud.domain import refusals
from services.fraud.model.scorer import ArtefactError, Scorer

# The shipped one has 1 MB. What is tried lies in the memory that serving needs.
_BYTES_MAX = 64 * 2**20


class Drafts:
    """Opens draft models by the names of their folders.

    Args:
        directory: Where the folders are; None: this deployment keeps none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    async def open(self, name: str) -> Scorer:
        """The model of a draft, read as the one that serves is, off the event loop.

        Args:
            name: Of the folder, one plain component: the contract's pattern.

        Raises:
            Refusal: model_drafts_unset, model_not_found, model_unusable; the first that applies.
        """
        if self._directory is None:
            raise refusals.model_drafts_unset()
        return await asyncio.to_thread(_open, self._directory, name)


def _open(directory: Path, name: str) -> Scorer:
    folder = directory / name
    try:
        if not folder.is_dir():
            raise refusals.model_not_found(name)
        size = sum(file.stat().st_size for file in folder.glob("model.*"))
    except OSError as error:
        raise refusals.model_unusable(name, error.strerror or "it cannot be read") from error
    if size > _BYTES_MAX:
        problem = f"its files have {size:,} bytes; a draft may have {_BYTES_MAX:,}"
        raise refusals.model_unusable(name, problem)
    try:
        return Scorer.read(folder)
    except ArtefactError as error:
        # Where drafts lie on this machine is nobody's business.
        raise refusals.model_unusable(name, str(error).replace(str(folder), name)) from error

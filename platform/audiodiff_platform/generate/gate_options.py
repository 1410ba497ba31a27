"""Options of the quality gate of generate: which loops are rejected, and which of several candidates is delivered."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import pydantic

from audiodiff_platform.entry.options import Options

Check = Literal["silence", "clipping", "seam", "copy", "duplicate"]
CHECKS: tuple[Check, ...] = get_args(Check)
"""The checks in their order. The first check that a loop does not pass is the reason of its rejection."""
THRESHOLDS: dict[str, Check] = {
    "min_level_db": "silence",
    "max_clipped_share": "clipping",
    "max_seam_score": "seam",
    "reference": "copy",
    "min_copy_distance": "copy",
    "copy_quantile": "copy",
    "min_duplicate_distance": "duplicate",
}
"""The options that belong to a check."""


class GateOptions(Options):
    """Options of the quality gate."""

    reject: tuple[Check, ...] = pydantic.Field(
        (),
        description=f"checks that loops must pass, such as silence,seam: {', '.join(CHECKS)}; with count, other seeds "
        "replace rejected loops",
    )
    min_level_db: float = pydantic.Field(
        -40.0,
        le=0,
        allow_inf_nan=False,
        description="lowest accepted level (RMS) in dB relative to full scale, of the check silence",
    )
    max_clipped_share: float = pydantic.Field(
        0.001, ge=0, lt=1, description="highest accepted share of samples at full scale, of the check clipping"
    )
    max_seam_score: float = pydantic.Field(
        4.0,
        gt=0,
        allow_inf_nan=False,
        description="highest accepted seam score, of the check seam: 1 is inaudible",
    )
    min_duplicate_distance: float = pydantic.Field(
        0.05,
        gt=0,
        allow_inf_nan=False,
        description="smallest accepted distance in logmel-stats from the delivered loops of lower seeds, of the check "
        "duplicate: 0.05 is a difference of 1 dB in all bands",
    )
    reference: str | None = pydantic.Field(
        None, description="training data of the model, of the check copy: a mel dataset (path, s3://, gs://)"
    )
    min_copy_distance: float | None = pydantic.Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="smallest accepted distance in logmel-stats from the slices of reference, of the check copy; none: "
        "copy_quantile states it",
    )
    copy_quantile: float = pydantic.Field(
        0.01,
        ge=0,
        le=1,
        description="quantile of the distances from a slice of reference to the nearest slice of another track, which "
        "is the smallest accepted distance of the check copy",
    )
    best_of: int | None = pydantic.Field(
        None,
        ge=2,
        le=100,
        description="number of candidates of each loop of count, of which the best is delivered: consecutive seeds",
    )
    best_by: Literal["seam", "level", "tempo"] = pydantic.Field(
        "seam",
        description="measure of the best candidate: the lowest seam score, the highest level, or the highest "
        "confidence of its tempo (seam, level, tempo)",
    )

    @pydantic.field_validator("reject", mode="before")
    @classmethod
    def _split(cls, stated: Any) -> Any:
        """Split the texts of a recipe or of flags at commas, and put the checks in their order."""
        if not isinstance(stated, Sequence) or isinstance(stated, str):
            return stated
        names = [name.strip() for text in stated for name in str(text).split(",")]
        if unknown := [name for name in names if name not in CHECKS]:
            raise ValueError(f"reject {unknown[0]}: is unknown, use {', '.join(CHECKS)}")
        return tuple(check for check in CHECKS if check in names)

    @pydantic.model_validator(mode="after")
    def _options_are_used(self) -> Self:
        stated = self.model_fields_set
        for name, check in THRESHOLDS.items():
            if name in stated and getattr(self, name) is not None and check not in self.reject:
                raise ValueError(f"{name} is for reject {check}")
        if "copy" in self.reject and self.reference is None:
            raise ValueError("reject copy: reference is required, name the mel dataset of the training")
        if self.min_copy_distance is not None and "copy_quantile" in stated:
            raise ValueError("copy_quantile with min_copy_distance: state one of them")
        if "best_by" in stated and self.best_of is None:
            raise ValueError("best_by is for best_of")
        return self

    @property
    def gated(self) -> bool:
        """True if loops are candidates, of which some are delivered."""
        return bool(self.reject) or self.best_of is not None

    @property
    def per_place(self) -> int:
        """Number of candidates of a delivered loop."""
        return self.best_of or 1

    def gate_settings(self, reference_digest: str | None) -> dict[str, Any]:
        """Return the settings that determine which loops are delivered, as JSON values.

        Args:
            reference_digest: Digest of the reference, or None without a reference.
        """
        if not self.gated:
            return {}
        names = {name for name, check in THRESHOLDS.items() if check in self.reject} - {"reference"}
        names -= {"min_copy_distance"} if self.min_copy_distance is None else {"copy_quantile"}
        names |= {"best_of", "best_by"} if self.best_of is not None else set()
        settings = {**self.model_dump(include=names), "reject": list(self.reject)}
        return settings if reference_digest is None else {**settings, "reference_digest": reference_digest}

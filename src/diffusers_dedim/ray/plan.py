"""What a Ray run is to do with each row, settled before anything is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusers_dedim.earlier_results import refuse_foreign
from diffusers_dedim.manifest import SETTLED, PhotoRecord
from diffusers_dedim.ray.ids import shared_targets
from diffusers_dedim.ray.names import name_of, possible_outputs
from diffusers_dedim.under_way import names_under_way

_PART = re.compile(r"part-[0-9a-f]{20}-(\d+)\.parquet")


@dataclass(frozen=True)
class RowPlan:
    """The rows of a run.

    Attributes:
        names: of all rows in their order; one that several have stands there as often.
        finished: records of an earlier run that still stand.
        refused: names that would be written over another's file, with the reason.
    """

    names: tuple[str, ...]
    finished: Mapping[str, PhotoRecord]
    refused: Mapping[str, str]

    @cached_property
    def pending(self) -> frozenset[str]:
        """Names of the photos that are to be done."""
        return frozenset(self.names) - self.finished.keys() - self.refused.keys()

    @cached_property
    def repeated(self) -> frozenset[str]:
        """Names that several rows have."""
        return frozenset(name for name, times in Counter(self.names).items() if times > 1)


def plan_rows(ids: Sequence[str], out: Path, records: Mapping[str, PhotoRecord], *, files: bool) -> RowPlan:
    """Plan a run.

    Args:
        ids: of all rows.
        out: output folder; it is only looked at.
        records: of an earlier run to go on with.
        files: whether each photo becomes a file, not a row of a part.
    """
    names = tuple(name_of(row_id, out) for row_id in ids)
    finished = _settled(out, records)
    # what is done keeps its file, whoever comes first now
    refused = shared_targets(sorted(names, key=lambda name: name not in finished)) if files else {}
    return RowPlan(names, finished, refused)


def refuse_foreign_files(plan: RowPlan, out: Path) -> None:
    """Refuse a run that would replace or remove files that no run has written.

    Raises:
        RunError: such a file lies where a photo may be written.
        OSError: the manifest, or the list of photos under way, cannot be read.
    """
    new = plan.pending - names_under_way(out)
    refuse_foreign((path for name in sorted(new) for path in possible_outputs(name, out)), out)


def remove_torn_parts(out: Path, records: Mapping[str, PhotoRecord]) -> None:
    """Remove parquet parts that are not wholly recorded, for their photos are done again.

    Raises:
        OSError: one cannot be removed.
    """
    whole = _whole_parts(records)
    for part in out.glob("part-*.parquet"):
        if _PART.fullmatch(part.name) and part.name not in whole:
            part.unlink()


def _whole_parts(records: Mapping[str, PhotoRecord]) -> frozenset[str]:
    """Parts all of whose photos are recorded: a part tells in its name how many it holds."""
    counts = Counter(record.output for record in records.values() if record.output is not None)
    parts = {name: _PART.fullmatch(name) for name in counts}
    return frozenset(name for name, match in parts.items() if match and counts[name] == int(match[1]))


def _settled(out: Path, records: Mapping[str, PhotoRecord]) -> dict[str, PhotoRecord]:
    """Earlier results that still stand."""
    whole = {name for name in _whole_parts(records) if (out / name).is_file()}

    def stands(record: PhotoRecord) -> bool:
        if record.output is None or record.status not in SETTLED:
            return record.status in SETTLED
        is_part = _PART.fullmatch(record.output)
        return record.output in whole if is_part else (out / record.output).is_file()

    return {name: record for name, record in records.items() if stands(record)}

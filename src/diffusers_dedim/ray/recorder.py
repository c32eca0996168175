"""How the driver of a Ray run writes down what the workers have done."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_dedim.earlier_results import without_results
from diffusers_dedim.manifest import Manifest, PhotoRecord
from diffusers_dedim.ray.names import possible_outputs
from diffusers_dedim.ray.stages import parse_record


@dataclass(frozen=True)
class Recorder:
    """Records photos once no other result of theirs is left, which would pass for this run's.

    Args:
        manifest: takes the records.
        out: output folder.
        pending: names whose files are this run's; nobody else's are touched.
        removable: names below ``out`` of the files that may be removed; None for all of a photo's.
        on_done: called for each photo that is recorded.
    """

    manifest: Manifest
    out: Path
    pending: Container[str]
    removable: Container[str] | None = None
    on_done: Callable[[PhotoRecord], None] | None = None

    def collect(self, stages: Any) -> dict[str, PhotoRecord]:
        """Record batch by batch what has been written."""
        records: dict[str, PhotoRecord] = {}
        for batch in stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            new = [parse_record(text) for text in batch.column("record").to_pylist()]
            records.update(self.record([record for record in new if record.name not in records]))
        return records

    def record(self, new: Sequence[PhotoRecord]) -> dict[str, PhotoRecord]:
        """Record photos, in one write, so that a parquet part is recorded whole.

        Raises:
            OSError: the manifest cannot be written.
        """
        alone = [self._alone(record) for record in new]
        self.manifest.append(alone)
        for record in alone:
            if self.on_done is not None:
                self.on_done(record)
        return {record.name: record for record in alone}

    def _alone(self, record: PhotoRecord) -> PhotoRecord:
        if record.name not in self.pending:
            return record
        places = {
            path.relative_to(self.out).as_posix(): path for path in possible_outputs(record.name, self.out)
        }
        own = places.pop(record.output, None) if record.output else None
        stale = [path for name, path in places.items() if self.removable is None or name in self.removable]
        alone = without_results(record, stale)
        # a record of an error names no file, so none may be left
        return alone if alone is record or own is None else without_results(alone, [own])

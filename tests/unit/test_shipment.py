"""What is sent to a computer holds signed URLs: nothing of it stays behind here."""

from __future__ import annotations

from pathlib import Path

import pytest

from grange.farm.cluster_spool import ClusterChunk, ClusterRun


def test_one_that_cannot_be_made_leaves_no_urls(tmp_path: Path) -> None:
    run = ClusterRun.create(tmp_path, "lumi")
    chunk = ClusterChunk(run.path / "chunk-000001", {}, None, {}, True)  # nothing lies there
    with pytest.raises(FileNotFoundError):
        run.shipment([chunk], {chunk.name: {"put": [["packs/x", "https://secret"]]}})
    assert list(run.path.glob("*.zip")) == []

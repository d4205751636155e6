"""Ranks that are killed at random: tools/chaos, in short."""

import re

from launch import ROOT, launch


def test_ten_kills() -> None:
    outcome = launch([ROOT / "tools/chaos", "--kills", "10", "--seed", "1"], limit=300)
    assert outcome.code == 0, outcome
    summary = outcome.out.splitlines()[-1]
    assert re.match(r"10 kills \(.*\), [1-9]\d* runs completed, 0 violations", summary), outcome

# SPDX-License-Identifier: Apache-2.0
"""What is kept of faults, and that every kind has its measure."""

from pathlib import Path

from bench import faults, registry, results
from bench.results import Outcome


def test_every_kind_of_fault_has_a_measure_whose_bar_is_all_of_its_cases() -> None:
    for kind in faults.KINDS:
        measure = registry.BY_ID[kind.measure]
        assert (measure.scenario, measure.bar) == ("faults", float(kind.cases))
        assert kind.measure.endswith(f"_of_{kind.cases}")


def test_cases_are_kept_and_shown(tmp_path: Path) -> None:
    case = faults.Case("cut_30s_survived_of_50", "f1", 1.5, False, "link", "a page differs")
    measure = registry.BY_ID["cut_30s_survived_of_50"]
    outcome = Outcome({measure.id: [49.0]}, {}, [faults.kept(1, case)], ["seed 5"])
    results.save(tmp_path, [measure], {"faults": outcome})
    assert results.load(tmp_path)[measure.id]["median"] == 49.0
    assert results.load(tmp_path, results.SAMPLES)["faults"]["runs"][0]["words"] == "a page differs"

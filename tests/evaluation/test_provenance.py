from __future__ import annotations

import platform

import torch

from matryoshka_st.evaluation.provenance import provenance


def test_a_measurement_names_its_machine_and_versions() -> None:
    facts = provenance(["torch"])
    name, cores = facts["device"].rsplit(", ", 1)
    assert name and cores.endswith(" cores")
    assert facts["versions"] == {"python": platform.python_version(), "torch": torch.__version__}
    assert facts["threads"] == torch.get_num_threads()
    assert facts["command"].startswith("python ")

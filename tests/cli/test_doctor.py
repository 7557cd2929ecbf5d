"""`doctor`: it runs features, and a failure is part of the report."""

import json
from importlib.metadata import version

from neoplug.environment import doctor


def test_doctor_reports_versions_machine_and_what_works(neoplug):
    answer = neoplug("doctor", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["versions"]["torch"] == version("torch")
    assert "cpu" in found["devices"]
    assert found["hardware"]["cores"] >= 1
    assert set(found["works"]) == {"bf16", "bitsandbytes", "sdpa", "flash attention", "torch.compile"}
    assert found["works"]["sdpa"]["ok"]
    assert all(trial["note"] for trial in found["works"].values())


def test_doctor_reports_every_failure(neoplug, monkeypatch):
    def broken():
        raise RuntimeError("no such luck\nat all")

    monkeypatch.setattr(doctor, "TRIALS", {"this": broken, "that": lambda: "fine"})
    monkeypatch.setattr(doctor, "hardware", broken)
    monkeypatch.setattr(doctor, "devices", broken)
    answer = neoplug("doctor")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "  this  no   RuntimeError: no such luck at all" in lines
    assert "  that  yes  fine" in lines
    assert "  devices   RuntimeError: no such luck at all" in lines

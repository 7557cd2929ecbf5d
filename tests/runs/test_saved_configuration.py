"""The configuration of a saved adapter does not depend on the order of sets, which differs by process."""

import json
import os
import subprocess
import sys

CODE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from neoplug.registry import Plugins
from neoplug.runs.artifacts import save_adapter

model = get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1]), LoraConfig(target_modules="all-linear"))
folder = Path(sys.argv[2])
folder.mkdir()
save_adapter(model, SimpleNamespace(plugins=Plugins({})), folder)
"""


def test_processes_with_other_hashes_write_the_same_bytes(tmp_path, tiny_student):
    written = []
    for seed in "12":
        command = [sys.executable, "-c", CODE, str(tiny_student), str(tmp_path / seed)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        written.append((tmp_path / seed / "adapter_config.json").read_bytes())
    assert written[0] == written[1]
    names = json.loads(written[0])["target_modules"]
    assert names == sorted(names)
    assert len(names) == 14  # of two layers

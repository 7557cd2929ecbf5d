"""lm_eval as an independent reference, on the same file and model through its own tasks."""

import logging
import warnings

import pytest
import yaml


@pytest.fixture
def task_folder():
    """Return a function that writes lm_eval's description of a file of questions into a folder."""
    return _task_folder


@pytest.fixture
def peer(tmp_path):
    """Return a function that evaluates a model with lm_eval on a file of questions: metrics and log-likelihoods."""

    def measure(model, tokenizer, file):
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of lm_eval
                return _measure(model, tokenizer, _task_folder(tmp_path / "peer", file))
        finally:
            logging.disable(logging.NOTSET)

    return measure


def _task_folder(folder, file):
    folder.mkdir(exist_ok=True)
    task = {
        "task": "peer", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "query", "doc_to_target": "gold",
        "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    (folder / "peer.yaml").write_text(yaml.safe_dump(task))
    return folder


def _measure(model, tokenizer, folder):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    whole = simple_evaluate(wrapped, tasks=["peer"], task_manager=tasks, bootstrap_iters=1000, log_samples=True)
    samples = sorted(whole["samples"]["peer"], key=lambda sample: sample["doc_id"])
    found = {name.partition(",")[0]: value for name, value in whole["results"]["peer"].items()}
    return found | {"log_likelihoods": [float(response[0][0]) for s in samples for response in s["resps"]]}

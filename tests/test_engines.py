"""Every way to share a run among processes trains what one process trains.

Two CPU processes stand for two GPUs, two network namespaces for two machines.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import get_quantization_config

from sft.config.load import load_recipe
from sft.core.errors import UserError
from sft.models.loading import load_model
from tests.support.launching import BIN, SCRIPT, launch, losses

STEPS = {"max_steps": 2, "lora_dropout": 0.0}
# float32 throughout, so that every engine computes the same to the last digits.
NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "float32"}
ASKED = {"eval_prompts": ["你是谁？"], "eval_prompts_generation": {"max_new_tokens": 3}}


@pytest.fixture(scope="session")
def trained_alone():
    """Losses and adapter of one process, by the recipe's keys; those of the same keys are trained once."""
    return {}


@pytest.fixture
def assert_trains_as_one_process_does(trained_alone, make_trainer, tmp_path):
    """Compare a run that two processes have trained with one that takes both packs of a step one after the other."""

    def check(run: Path, tolerance: float = 1e-5, **keys) -> None:
        kind = str(sorted(keys.items()))
        if kind not in trained_alone:
            folder = tmp_path / "alone"
            trainer, _ = make_trainer(output_dir=str(folder), **{"gradient_accumulation_steps": 2} | STEPS | keys)
            trainer.train()
            trainer.save_model(str(folder / "final"))
            logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            trained_alone[kind] = logged, load_file(folder / "final" / "adapter_model.safetensors")
        losses_alone, adapter_alone = trained_alone[kind]
        adapter = load_file(run / "final" / "adapter_model.safetensors")
        assert losses(run) == pytest.approx(losses_alone, abs=tolerance)
        assert adapter.keys() == adapter_alone.keys()
        for name, value in adapter_alone.items():
            torch.testing.assert_close(adapter[name].float(), value, rtol=0, atol=tolerance)

    return check


@pytest.fixture
def train(runs, write_recipe, tmp_path):
    """Train two steps with two processes; returns the run directory and what both have printed."""

    def run(main="train_sft", **keys) -> tuple[Path, str]:
        output = tmp_path / "together"
        recipe = write_recipe(output_dir=str(output), **STEPS, **keys)
        ended = runs.run([recipe], output, main=main, processes=2)
        assert ended.codes == [0, 0], ended.err[-3000:]
        return output, "".join(path.read_text() for path in sorted(Path(f"{output}.said").glob("out*")))

    return run


def test_ddp_trains_as_one_process_does(train, assert_trains_as_one_process_does):
    run, _ = train()
    assert_trains_as_one_process_does(run)


def test_zero2_of_one_process_trains_what_no_deepspeed_trains(
    runs, write_recipe, assert_trains_as_one_process_does, tmp_path
):
    output = tmp_path / "zero2"
    keys = {"deepspeed": "ds_configs/zero2.json", "gradient_accumulation_steps": 2}
    ended = runs.run([write_recipe(output_dir=str(output), **STEPS, **NF4, **keys)], output)
    assert ended.codes == [0], ended.err[-3000:]
    assert_trains_as_one_process_does(output, tolerance=1e-6, **NF4)


@pytest.mark.long
def test_zero3_with_4_bit_weights_in_ram_trains_as_one_process_does(train, assert_trains_as_one_process_does):
    run, _ = train(deepspeed="ds_configs/zero3_offload.json", **NF4)
    # Under DeepSpeed the adapter of a quantised model is in bfloat16.
    assert_trains_as_one_process_does(run, 5e-3, **NF4)


@pytest.mark.long
def test_fsdp_shares_4_bit_weights_and_trains_as_one_process_does(train, assert_trains_as_one_process_does):
    # Asked and saved in between, in which all processes must take part.
    run, printed = train("tests.support.fsdp_on_cpu", fsdp=True, save_strategy="steps", save_steps=1, **ASKED, **NF4)
    assert_trains_as_one_process_does(run, **NF4)
    held = re.findall(r"holds (\d+) of (\d+)", printed)
    assert len(held) == 2
    assert all(int(part) * 2 == int(whole) for part, whole in held)
    adapter = sum(weight.numel() for weight in load_file(run / "final/adapter_model.safetensors").values())
    assert int(max(re.findall(r"gathers (\d+)", printed), key=int)) == adapter
    assert "step 2: evaluation prompts" in printed
    assert (run / "checkpoint-1" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("environment", "keys", "told"),
    [
        ({"RANK": "0"}, {"deepspeed": "ds_configs/zero2.json"}, "leave out fsdp or deepspeed"),
        ({}, {}, "needs a launcher; start it with torchrun"),
        ({"RANK": "0"}, {}, "this machine has none"),
    ],
)
def test_fsdp_is_refused_where_it_cannot_work(write_recipe, monkeypatch, environment, keys, told):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=told):
        load_recipe([str(write_recipe(fsdp=True, **keys))])


@pytest.mark.long
def test_sequence_parallelism_trains_as_one_process_does(train, assert_trains_as_one_process_does):
    # Both processes compute one sequence together, so that a step has one; gloo wants all of one length.
    keys = {"packing": False, "pad_to_multiple_of": 128}
    run, printed = train(parallelism_config={"sp_size": 2}, deepspeed="ds_configs/zero1.json", **keys)
    assert "2 in all, 40 an epoch; sequences a step: 1" in printed
    assert_trains_as_one_process_does(run, gradient_accumulation_steps=1, **keys)


@pytest.mark.parametrize(
    ("config", "keys", "told"),
    [
        ({"sp_size": 2}, {}, "sp_size: .* add deepspeed"),
        (
            {"sp_size": 2},
            {"deepspeed": "ds_configs/zero2.json"},
            "2 processes share a sequence, and there are 1: start",
        ),
        ({"cp_size": 2}, {}, "cp_size: .* add fsdp: true"),
        ({"tp_size": 2}, {}, "tp_size: .* ZeRO-3 or fsdp: true"),
    ],
)
def test_processes_that_cannot_share_a_sequence_are_told_what_they_lack(write_recipe, config, keys, told):
    with pytest.raises(UserError, match=f"tiny.yaml:.*parallelism_config: {told}"):
        load_recipe([str(write_recipe(parallelism_config=config, **keys))])


def test_the_storage_of_4_bit_weights_reaches_the_model(write_recipe):
    recipe = load_recipe([str(write_recipe(**NF4))])
    assert get_quantization_config(recipe.model).bnb_4bit_quant_storage == torch.float32
    weights = dict(load_model(recipe.model).named_parameters())
    assert weights["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32


@pytest.fixture
def nodes():
    """Two machines' worth of network: (namespace, interface, address) of each, joined by a cable."""
    if not shutil.which("ip"):
        pytest.skip("needs the command `ip` (apt-get install iproute2)")
    if os.geteuid():
        pytest.skip("needs root, to make network namespaces")
    found = [(f"node{place}-{os.getpid()}", f"veth{place}", f"10.77.0.{place + 1}") for place in (0, 1)]
    try:
        for name, _, _ in found:
            ip("netns", "add", name)
        (first, near, _), (second, far, _) = found
        ip("link", "add", near, "netns", first, "type", "veth", "peer", "name", far, "netns", second)
        for name, interface, address in found:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", name, "link", "set", interface, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield found
    finally:
        for name, _, _ in found:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True)
    if "not permitted" in result.stderr:
        pytest.skip(f"no network namespaces can be made here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr


# Of the launcher on each machine, whose ports are its own.
FLAGS = {
    "torchrun": ["--nnodes", "2", "--nproc_per_node", "1"],
    "deepspeed": ["--hostfile", "hostfile", "--no_ssh"],
}


@pytest.mark.long
@pytest.mark.parametrize("program", FLAGS)
def test_two_machines_train_as_one_process_does_and_the_first_alone_speaks(
    nodes, program, write_recipe, assert_trains_as_one_process_does, tmp_path
):
    (tmp_path / "hostfile").write_text("".join(f"{address} slots=1\n" for _, _, address in nodes))
    config = "ds_configs/zero2_offload.json" if program == "deepspeed" else None
    recipe = write_recipe(deepspeed=config, ddp_timeout=120, **STEPS)

    def start(rank: int) -> subprocess.CompletedProcess:
        name, interface, _ = nodes[rank]
        place = ["--node_rank", rank, "--master_addr", nodes[0][2], "--master_port", "29543"]
        command = ["ip", "netns", "exec", name, BIN / program, *FLAGS[program], *place, SCRIPT, recipe]
        return launch(*command, cwd=tmp_path, GLOO_SOCKET_IFNAME=interface)

    with ThreadPoolExecutor() as both:
        first, second = both.map(start, (0, 1))
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr + second.stderr)[-3000:]
    assert_trains_as_one_process_does(tmp_path / "run")
    assert len(re.findall(r"^step \d/2 ", first.stdout, re.MULTILINE)) == 2
    said_by_second = [line for line in second.stdout.splitlines() if line and not line.startswith("[")]
    assert said_by_second == []

"""The rendered text of what can go wrong with `infc estimate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from oracle.families import make_family
from oracle.files import write_gguf

from infc.cli import main

CONFIGS = Path(__file__).resolve().parents[2] / "samples" / "configs"
SMALL, LARGE = CONFIGS / "llama-3.1-8b.json", CONFIGS / "llama-3.1-70b.json"
H100 = ("--target", "nvidia-h100-sxm")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["estimate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "report"),
    [
        (
            ("--target", "nvidia-h100"),
            "error[INF3001]: no target is named 'nvidia-h100'\n"
            "   = hint: did you mean nvidia-h100-sxm or nvidia-h200 or nvidia-a100?\n",
        ),
        (
            ("--target", "chips:nvidia-h1"),
            "error[INF3001]: no chip is named 'nvidia-h1'\n"
            "   = hint: did you mean nvidia-h100-sxm or nvidia-h200 or nvidia-a100?\n",
        ),
        (
            ("--target", "nvidia-a100", "--dtype", "fp8"),
            "error[INF3004]: target 'nvidia-a100' computes in bf16, f16, f32, int8, got fp8\n",
        ),
        (
            (*H100, "--dtype", "fp9"),
            "error[INF5001]: expected --dtype f32, bf16, f16, fp8, int8, fp4, got fp9\n",
        ),
        (
            (*H100, "--kv-dtype", "q8"),
            "error[INF5001]: expected --kv-dtype f32, bf16, f16, fp8, int8, fp4, got q8\n",
        ),
        (
            (*H100, "--link", "terapy"),
            "error[INF3001]: no link is named 'terapy'\n   = hint: known ones: teraphy\n",
        ),
        (
            (*H100, "--prompt", "1000000000000"),
            "error[INF5001]: prompt must be at most 1000000000, got 1000000000000\n",
        ),
        (
            (*H100, "--tensor-parallel", "3"),
            "error[INF5001]: expected a tensor parallelism that divides the heads of "
            "Llama-3.1-8B (32), got 3\n",
        ),
        (
            ("--target", "cpu:x86-64-v3", "--tensor-parallel", "2"),
            "error[INF3004]: target 'cpu:x86-64-v3' has no link, so several of it cannot work "
            "together\n"
            "   = hint: --link NAME gives it one; infc targets lists chips that have links\n",
        ),
        (
            (*H100, "--engine", "tgi"),
            "error[INF5001]: no engine is named 'tgi'\n"
            "   = hint: known ones: none, generic, sglang, trtllm, vllm\n",
        ),
        (
            ("--compare", "--engine", "tgi"),
            "error[INF5001]: no engine is named 'tgi'\n"
            "   = hint: known ones: none, generic, sglang, trtllm, vllm\n",
        ),
        (
            ("--compare", "--target", "nvidia-h200", "--devices", "1", "--dtype", "fp4"),
            "error[INF3004]: no target holds the model\n"
            "   |  nvidia-h200: target 'nvidia-h200' computes in bf16, f16, f32, fp8, int8, "
            "got fp4\n"
            "   = hint: leave --devices out to try as many of each as hold the model\n",
        ),
        (
            (*H100, "--set", "memory.hbm.bandwith=4TB/s"),
            "error[INF5001]: target 'nvidia-h100-sxm' has no figure 'memory.hbm.bandwith'\n"
            "  --> --set memory.hbm.bandwith\n"
            "   = hint: did you mean memory.hbm.bandwidth or memory.hbm.unit_bandwidth?\n",
        ),
        (
            (*H100, "--set", "memory.hbm.bandwidth=4.8TB"),
            "error[INF5001]: target 'nvidia-h100-sxm' cannot be changed so: expected a number and "
            "one of B/s, kB/s, MB/s, GB/s, TB/s, PB/s, KiB/s, MiB/s, GiB/s, TiB/s, Mbit/s, Gbit/s, "
            "Tbit/s, got '4.8TB'\n"
            "  --> --set memories.hbm.bandwidth_bytes_per_s\n",
        ),
        (
            (*H100, "--set", "hbm.bandwidth=4TB/s", "--set", "memory.hbm.bandwidth=5TB/s"),
            "error[INF5001]: hbm.bandwidth and memory.hbm.bandwidth are the same figure of target "
            "'nvidia-h100-sxm'\n"
            "  --> --set\n",
        ),
        (
            (*H100, "--set", "price=1$/h", "--set", "price=2$/h"),
            "error[INF5001]: figure 'price' is set twice\n"
            "  --> --set\n"
            "   = hint: to sweep, write --set price=VALUE,VALUE\n",
        ),
        (
            (*H100, "--set", "hbm.unit_bandwidth=9TB/s"),
            "error[INF5001]: target 'nvidia-h100-sxm' cannot be changed so: expected "
            "unit_bandwidth_bytes_per_s of at most bandwidth_bytes_per_s (3.35e+12), got 9e+12\n"
            "  --> --set memories.hbm.unit_bandwidth_bytes_per_s\n",
        ),
        (
            (*H100, "--set", "hbm.size=0GiB"),
            "error[INF5001]: target 'nvidia-h100-sxm' cannot be changed so: expected 1 to 1e+18 "
            "bytes, got 0\n"
            "  --> --set memories.hbm.size_bytes\n",
        ),
        (
            (*H100, "--set", "hbm.bandwidth"),
            "error[INF5001]: expected FIGURE=VALUE, got 'hbm.bandwidth'\n"
            "  --> --set\n"
            "   = hint: for example --set memory.hbm.bandwidth=4.8TB/s\n",
        ),
        (
            ("--compare", "--plot", "targets.png"),
            "error[INF5001]: expected a plot ending in .svg or .html, got targets.png\n",
        ),
    ],
)
def test_options_that_mean_nothing(options: tuple[str, ...], report: str) -> None:
    result = invoke(SMALL, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", report)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((*H100, "--devices", "0"), "Invalid value for '--devices': 0 is not in the range x>=1."),
        ((), "missing --target: a name, a file, auto, or --compare for all"),
        ((*H100, "--target", "cpu"), "--target cpu: several targets need --compare"),
        (
            ("--target", "auto", "--compare"),
            "--target auto stands by itself; --compare takes all as it is",
        ),
        ((*H100, "--optimize", "watt"), "--optimize is for a target that is auto"),
        (
            (*H100, "--plot", "x.svg"),
            "--plot draws what --compare or several values of --set compare",
        ),
        (
            ("--prefill-target", "cpu"),
            "--prefill-target and --decode-target belong together",
        ),
        (
            ("--prefill-target", "cpu", "--decode-target", "cpu", *H100),
            "--prefill-target and --decode-target stand by themselves: without --target, "
            "--compare or several values of --set",
        ),
    ],
)
def test_options_that_contradict_one_another(options: tuple[str, ...], problem: str) -> None:
    result = invoke(SMALL, *options)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {problem}"


def test_a_model_that_does_not_fit_says_what_would() -> None:
    result = invoke(LARGE, *H100, "--devices", "1", "--engine", "none")
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF2101]: Llama-3.1-70B on 1 x nvidia-h100-sxm: does not fit: context 2048 and "
        "batch 1 take 132 GiB of 80 GiB, 132 GiB of it whatever the context\n"
        "   = hint: this fits: --devices 2 or --dtype fp8 or --dtype int8\n",
    )
    wide = invoke(LARGE, "--target", "google-tpu-v5e", "--devices", "8", "--dtype", "bf16")
    assert wide.stderr == (
        "error[INF2101]: Llama-3.1-70B on 8 x google-tpu-v5e: does not fit: context 2048 and batch "
        "1 take 16.6 GiB of 14.9 GiB, 16.5 GiB of it whatever the context\n"
        "   |  the bytes are those of the fullest device\n"
        "   = hint: this fits: --devices 16 or --dtype int8\n"
    )
    long = invoke(SMALL, *H100, "--new-tokens", "900000", "--devices", "1", "--json")
    assert json.loads(long.stdout)["error"]["code"] == "INF2101"
    assert long.stderr == (
        "error[INF2101]: Llama-3.1-8B on 1 x nvidia-h100-sxm: fits with all of the model's 131072 "
        "positions; context 901024 needs 59.5 GiB more\n"
        "   = hint: this fits: --devices 2\n"
    )


def test_nothing_that_auto_could_choose() -> None:
    result = invoke(CONFIGS / "llama-3.1-405b.json", "--target", "auto", "--devices", "1")
    lines = result.stderr.splitlines()
    assert lines[0] == "error[INF3004]: no target holds the model"
    assert len([line for line in lines if line.startswith("   |  ")]) == 10
    assert lines[-1] == ("   = hint: leave --devices out to try as many of each as hold the model")
    unpriced = invoke(SMALL, "--target", "auto", "--devices", "1", "--set", "memory.hbm.size=20GiB")
    assert "has no figure 'memory.hbm.size'" in unpriced.stderr


def test_a_configuration_that_lacks_what_is_needed(tmp_path: Path) -> None:
    config = json.loads(SMALL.read_text())
    for key in ("hidden_size", "num_hidden_layers"):
        del config[key]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    wanted = "expected a whole number from 1 to 2147483647"
    assert invoke(file, *H100).stderr.startswith(
        "error[INF1005]: the model's settings are incomplete or contradict one another\n"
        f"  --> {file}\n"
        f'   - {wanted} in "hidden_size", got nothing ({file})\n'
    )
    file.write_text("[]")
    assert invoke(file, *H100).stderr == (
        f"error[INF1002]: expected a JSON object, got something else\n  --> {file}\n"
    )
    missing = tmp_path / "nothing.json"
    assert invoke(missing, *H100).stderr.startswith("error[INF1001]: ")


def test_a_target_file_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "mychip.toml"
    missing = invoke(SMALL, "--target", file)
    assert missing.stderr.startswith("error[INF3002]: cannot read the target file: ")
    file.write_text('name = "mychip"\n')
    assert "   - field required (memories)\n" in invoke(SMALL, "--target", file).stderr


def test_a_chip_without_a_code_generator_is_not_compiled_for(tmp_path: Path) -> None:
    config, tensors = make_family("llama2", num_hidden_layers=1)
    write_gguf(tmp_path / "tiny.gguf", config, tensors)
    arguments = ["compile", str(tmp_path / "tiny.gguf"), "--target", "nvidia-h100-sxm"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "tiny.infc")])
    assert (result.exit_code, result.stderr) == (
        1,
        "error[INF3004]: target 'nvidia-h100-sxm' has a cost model and no code generator\n"
        "   = hint: `infc estimate MODEL --target nvidia-h100-sxm` predicts what it would do\n",
    )


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert invoke(SMALL, "--compare", "--plot", "targets.svg").stderr == (
        "error[INF3005]: drawing a plot needs matplotlib, which is not installed\n"
        '   = hint: pip install "infc[plot]"\n'
    )

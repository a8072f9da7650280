"""`prologue bench sampling` on a small preset: table, file, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prologue.cli import bench
from prologue.cli.main import main
from prologue.studies.bench import sampling

SMALL = ["bench", "sampling", "--prior", "shapes-smoke", "--tokenizer", "shapes-smoke", "--compile", "off"]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits measured on little memory: quick, and wrong."""
    monkeypatch.setattr(sampling, "memory_bandwidth", lambda device, size: 1e9)
    monkeypatch.setattr(sampling, "gemm_rate", lambda *arguments: 1e9)


def test_table_lines_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    asked = ["--cases", "guided:1,unguided:2", "--precisions", "fp32,bf16", "--repeat", "1", "--json", str(file)]
    assert main([*SMALL, *asked, "--device", "cpu", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    header = out.splitlines()[0]
    for part in ("cpu: ", "threads, torch ", "prior shapes-smoke", "random weights of seed 3"):
        assert part in header
    for part in ("guided:1", "unguided:2", "included", "apart", "bf16 against fp32"):
        assert part in out
    assert [line.rpartition(":")[0] for line in err.splitlines() if "warm-up" in line] == [
        *("guided:1 baseline", "guided:1 fp32", "guided:1 bf16"),
        *("unguided:2 bf16", "unguided:2 fp32", "unguided:2 baseline"),
    ]
    written = json.loads(file.read_text())
    assert len(written["records"]) == 8
    assert set(written["records"][0]) == {
        *("prior", "tokenizer", "decoder", "device", "precision", "batch", "guided", "seconds", "images_per_second"),
        *("tokens_per_second", "baseline_seconds", "ratio", "gigabytes_per_second", "bandwidth_share"),
        *("flops_per_second", "gemm_share", "limit_share", "warm_up_seconds"),
        *("compiled", "max_logit_error", "mean_logit_error", "top1_agreement"),
    }
    facts = written["provenance"]
    assert facts["guidance"] == "split:constant:0.7,cosine:3.75:0.2"
    assert facts["seed"] == 3
    assert facts["device"] == "cpu"
    assert facts["device_name"]
    assert facts["threads"] >= 1
    assert set(facts["baseline_seconds"]) == {"guided:1", "unguided:2"}


def test_an_interrupted_bench_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = sampling.SamplingBench._engine

    def stop(self, case, precision):
        if precision == "bf16":
            raise KeyboardInterrupt
        return measure(self, case, precision)

    monkeypatch.setattr(sampling.SamplingBench, "_engine", stop)
    file = tmp_path / "bench.json"
    asked = ["--cases", "unguided:1", "--precisions", "fp32,bf16", "--repeat", "1", "--json", str(file)]
    assert main([*SMALL, *asked]) == 130
    assert [record["precision"] for record in json.loads(file.read_text())["records"]] == ["fp32", "fp32"]


def test_without_options_it_measures_what_is_asked_of_it() -> None:
    request = bench._request(bench.SamplingOptions())
    assert (request.prior, request.tokenizer, request.precisions) == ("b", "base", ("fp32", "int8", "auto"))
    assert [case.name for case in request.cases] == ["guided:1", "guided:16", "unguided:32"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench"], "say what to measure: prologue bench sampling [OPTIONS]"),
        (["bench", "training"], "not 'training'"),
        ([*SMALL, "--cases", "guided"], "--cases: 'guided' is not guided:N or unguided:N"),
        ([*SMALL, "--cases", "unguided:0"], "'unguided:0' is not"),
        ([*SMALL, "--precisions", "fp32,fp64"], "unknown precision 'fp64': choose among auto, fp32, bf16, int8"),
        ([*SMALL, "--repeat", "0"], "--repeat must be at least 1, not 0"),
        ([*SMALL, "--baseline-repeat", "0"], "--baseline-repeat must be at least 1, not 0"),
        (["bench", "sampling", "--prior", "smal-32"], "unknown prior 'smal-32': did you mean 'small-32'?"),
        (["bench", "sampling", "--tokenizer", "huge"], "unknown tokenizer 'huge'"),
    ],
)
def test_mistakes_are_told_in_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert main(["bench", "sampling", "--help"]) == 0
    assert "--baseline-repeat" in capsys.readouterr().out

"""The bench of a small preset: what is recorded, when it is saved, and how models are made."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from prologue.errors import ConfigError
from prologue.presets import preset
from prologue.studies.bench import sampling
from prologue.studies.bench.models import agreement, prior_options, random_models, tokenizer_config
from prologue.studies.bench.sampling import Case, Record, Request, SamplingBench, Timing

pytestmark = pytest.mark.slow

REQUEST = Request(
    prior="shapes-smoke",
    tokenizer="shapes-smoke",
    cases=(Case(1, True), Case(6, False)),
    precisions=("fp32", "bf16", "fp32"),
    device=torch.device("cpu"),
    compile=False,
    repeat=1,
    limit_size=1 << 20,
)


@pytest.fixture(scope="module")
def measured() -> tuple[SamplingBench, list[Record], list[list[Record]], list[str]]:
    saved: list[list[Record]] = []
    lines: list[str] = []
    bench = SamplingBench(REQUEST, lines.append, saved.append)
    return bench, bench.run(), saved, lines


def test_every_case_and_precision_has_two_records(measured) -> None:
    records = measured[1]
    shapes = [(r["batch"], r["guided"], r["precision"], r["decoder"]) for r in records]
    assert shapes == [
        (batch, guided, precision, decoder)
        for batch, guided in ((1, True), (6, False))
        for precision in ("fp32", "bf16")
        for decoder in ("included", "apart")
    ]


def test_figures_follow_from_the_seconds(measured) -> None:
    bench, records, _, _ = measured
    for record in records:
        rows = record["batch"] * (2 if record["guided"] else 1)
        assert record["ratio"] == pytest.approx(record["baseline_seconds"] / record["seconds"])
        assert record["images_per_second"] == pytest.approx(record["batch"] / record["seconds"])
        assert record["tokens_per_second"] == pytest.approx(rows * 69 / record["seconds"])
        share = "bandwidth_share" if rows <= 4 else "gemm_share"
        assert record["limit_share"] == record[share] > 0
        assert record["compiled"] is False
        assert record["gigabytes_per_second"] * 1e9 == pytest.approx(record["bandwidth_share"] * bench.bandwidth)
    whole, apart = records[:2]
    assert whole["seconds"] > apart["seconds"]
    assert whole["baseline_seconds"] > apart["baseline_seconds"]
    assert whole["flops_per_second"] == apart["flops_per_second"]


def test_only_other_precisions_than_fp32_state_their_agreement(measured) -> None:
    for record in measured[1]:
        if record["precision"] == "fp32":
            assert record["top1_agreement"] is None
        else:
            assert 0.5 < record["top1_agreement"] <= 1
            assert 0 < record["mean_logit_error"] < record["max_logit_error"] < 1


def test_records_are_saved_after_every_measurement_and_the_baseline_changes_its_place(measured) -> None:
    _, records, saved, lines = measured
    assert len(saved) == 6
    assert saved[-1] == records
    assert [r["ratio"] is None for r in saved[3] if r["batch"] == 6] == [True, True]  # its baseline comes last
    assert [line.partition(":")[0] + " " + line.split(":")[1].split()[1] for line in lines[1:]] == [
        *("guided baseline", "guided fp32", "guided bf16"),
        *("unguided bf16", "unguided fp32", "unguided baseline"),
    ]


def test_the_median_run_counts_with_its_decoder() -> None:
    timing = Timing(tokens=(3.0, 1.0, 2.0), decoder=(0.1, 0.2, 0.6), warm_up=9.0, compiled=True)
    assert timing.seconds("apart") == 2.0
    assert timing.seconds("included") == 2.6


def test_an_engine_leaves_the_baselines_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = SamplingBench(replace(REQUEST, cases=(Case(1, False),), precisions=("bf16",)), lambda line: None)
    before = deepcopy(bench.models[1].state_dict())
    bench.run()
    assert all(torch.equal(before[name], tensor) for name, tensor in bench.models[1].state_dict().items())
    assert bench.converted["bf16"][1] is not bench.models[1]


def test_classes_and_guidance_are_the_same_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(prior, class_ids, guidance, *rest, **options):
        asked.append((class_ids.tolist(), guidance))
        return torch.zeros(len(class_ids), prior.layout.length, dtype=torch.int64)

    monkeypatch.setattr(sampling, "baseline_sequences", spy)
    bench = SamplingBench(replace(REQUEST, cases=(Case(3, True),), precisions=("fp32",)), lambda line: None)
    sample = sampling.Pipeline.sample

    def watched(self, classes, **options):
        asked.append((classes, options["guidance"]))
        return sample(self, classes, **options)

    monkeypatch.setattr(sampling.Pipeline, "sample", watched)
    bench.run()
    assert len(asked) == 4
    assert asked.count(asked[0]) == 4


def test_agreement_of_a_prior_with_itself_and_with_another(tiny_models) -> None:
    _, prior = tiny_models()
    same = agreement(prior, prior, seed=0, sequences=2)
    assert (same.max_error, same.mean_error, same.top1) == (0.0, 0.0, 1.0)
    other = deepcopy(prior)
    with torch.no_grad():
        other.out.weight.neg_()
    found = agreement(prior, other, seed=0, sequences=2)
    assert found.top1 < 0.5
    assert found.max_error > found.mean_error > 0.1


def test_random_models_have_blocks_that_count() -> None:
    tokenizer, prior = random_models("shapes-smoke", "shapes-smoke", seed=1)
    assert 0.01 < float(prior.transformer.blocks[0].ffn.fc2.weight.detach().std()) < 0.03
    assert 0.01 < float(tokenizer.out.weight.detach().std()) < 0.03
    again = random_models("shapes-smoke", "shapes-smoke", seed=1)[1]
    assert torch.equal(prior.token_embedding.weight, again.token_embedding.weight)


def test_sizes_are_found_by_the_papers_names_and_by_presets() -> None:
    assert prior_options("b") == prior_options("base-b") == preset("base-b").prior
    assert tokenizer_config("large") == preset("large-xl").tokenizer
    assert tokenizer_config("small-32") == preset("small-32").tokenizer
    with pytest.raises(ConfigError, match="unknown prior 'shapes-smok': did you mean 'shapes-smoke'"):
        prior_options("shapes-smok")
    with pytest.raises(ConfigError, match="unknown tokenizer 'b'"):
        tokenizer_config("b")


def test_what_was_compiled_is_what_the_pipeline_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sampling.Pipeline.sample

    def compiling(self, classes, **options):
        self.on_compile("step", 1.0)
        return sample(self, classes, **options)

    monkeypatch.setattr(sampling.Pipeline, "sample", compiling)
    request = replace(REQUEST, cases=(Case(1, False),), precisions=("fp32",))
    assert [record["compiled"] for record in SamplingBench(request, lambda line: None).run()] == [True, True]

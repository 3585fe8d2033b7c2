"""Two formats that share a template: what is found out about each is its own, from end to end."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from hf_exposure import (
    Canaries,
    Canary,
    Exposures,
    FormatDetails,
    Generations,
    SecretFormat,
    generate_secrets,
    measure_exposure,
    rank_candidates,
    write_report,
)
from hf_exposure.canaries.formats import format_names
from hf_exposure.reports.cards import add_exposure_to_card
from hf_exposure.reports.plots import plot_log_perplexities
from tests.tiny import TOKENIZERS, llama

FOUR = SecretFormat("my code is {secret}.", secret=r"[0-9]{4}")
OTHER = SecretFormat("my code is {secret}.", secret=r"[a-f]{4}")
BOTH = Canaries(
    [
        Canary(FOUR, "1234", repetitions=1),
        Canary(OTHER, "abcd", repetitions=1),
        Canary(FOUR, "4321", repetitions=1),
    ]
)


@pytest.fixture(scope="module")
def setting() -> tuple[object, object]:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    return llama(len(tokenizer)), tokenizer


def measured(setting: tuple[object, object], canaries: Canaries, **options: object) -> Exposures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return measure_exposure(*setting, canaries, **options)


@pytest.mark.parametrize("method", ["sampling", "skewnorm"])
def test_each_format_keeps_its_own_references_and_fit(
    setting: tuple[object, object], method: str, tmp_path: Path
) -> None:
    together = measured(setting, BOTH, method=method, samples=50)
    loaded = Exposures.load(together.save(tmp_path / "both.json", reveal=True))
    assert set(together.references) == {FOUR, OTHER}
    for fmt in (FOUR, OTHER):
        alone = measured(setting, Canaries(BOTH.by_format(fmt)), method=method, samples=50)
        for found in (together, loaded):
            np.testing.assert_allclose(found.references[fmt], alone.references[fmt], atol=1e-4)
            own = [one.log_perplexity for one in found if one.canary.format == fmt]
            assert own == pytest.approx([one.log_perplexity for one in alone], abs=1e-4)
            if method == "skewnorm":
                fit, expected = found.formats[fmt].fit, alone.formats[fmt].fit
                assert fit is not None and expected is not None
                assert fit.loc == pytest.approx(expected.loc, abs=1e-2)
                assert fit.ks == pytest.approx(expected.ks, abs=1e-2)


def test_a_bound_of_one_format_is_shown_as_a_bound_and_the_others_estimates_are_not(
    tmp_path: Path, setting: tuple[object, object]
) -> None:
    estimated = measured(setting, BOTH, samples=50)
    details = {FOUR: FormatDetails(samples=0), OTHER: FormatDetails(samples=50)}
    exposures = Exposures(list(estimated), formats=details)
    for shown in (exposures, Exposures.load(exposures.save(tmp_path / "bounds.json"))):
        marks = [row[3].startswith("≥") for row in shown.cells()[1]]
        assert marks == [not one.exact and one.canary.format == FOUR for one in exposures]
        card = add_exposure_to_card(ModelCard("# m\n"), shown).text
        rows = [line for line in card.splitlines() if line.startswith("| …code")]
        assert len(rows) == 2
        assert ["≥" in row for row in rows] == ["0-9" in row for row in rows]


@pytest.mark.slow
def test_every_output_tells_the_formats_apart(
    setting: tuple[object, object], tmp_path: Path
) -> None:
    # Few enough for the smaller space: more would be left out where secrets are masked.
    exposures = measured(setting, BOTH, method="sampling", samples=12)
    table = [row[1] for row in exposures.cells()[1]]
    assert [label.rpartition(" ")[2] for label in table] == [
        "([0-9]{4})",
        "([a-f]{4})",
        "([0-9]{4})",
    ]
    assert list(exposures.to_pandas()["expression"]) == ["[0-9]{4}", "[a-f]{4}", "[0-9]{4}"]
    report = write_report(tmp_path / "report.html", exposures=exposures).read_text(encoding="utf-8")
    card = add_exposure_to_card(ModelCard("# m\n"), exposures)
    for fmt in (FOUR, OTHER):
        assert f"({fmt.secret})" in report
        assert fmt.secret in card.text.replace("\\", "")
        assert fmt.secret in card.data.eval_results[0].dataset_name
        legend = plot_log_perplexities(exposures, fmt).get_legend().get_texts()
        count = len(exposures.references[fmt])
        assert any(f"{count:,} random references" in text.get_text() for text in legend)
    assert report.count("Log-perplexities of random secrets in") == 2


def test_a_masked_figure_of_references_that_are_left_out_is_refused(
    setting: tuple[object, object],
) -> None:
    exposures = measured(setting, BOTH, method="sampling", samples=50)
    with pytest.raises(ValueError, match=r"a good part of the space.*reveal=True"):
        plot_log_perplexities(exposures, OTHER)
    assert plot_log_perplexities(exposures, OTHER, reveal=True).get_legend() is not None
    # What is drawn without a format is the first of those that can be.
    alone = measured(setting, Canaries(BOTH.by_format(OTHER)), method="sampling", samples=50)
    with pytest.raises(ValueError, match="reveal=True"):
        plot_log_perplexities(alone)
    assert plot_log_perplexities(exposures).get_legend() is not None


def test_formats_of_different_templates_are_named_by_the_template_alone() -> None:
    name = SecretFormat("my name is {secret}.", secret=r"[a-z]{4}")
    luhn = SecretFormat("my code is {secret}.", secret=r"[0-9]{4}", check="luhn")
    assert list(format_names([FOUR, name]).values()) == [FOUR.template, name.template]
    assert format_names([FOUR, luhn, name])[name] == name.template
    assert len(set(format_names([FOUR, luhn, OTHER, name]).values())) == 4


@pytest.mark.parametrize("constrained", [True, False])
def test_each_format_keeps_its_own_generated_texts_and_candidates(
    setting: tuple[object, object], constrained: bool, tmp_path: Path
) -> None:
    written = generate_secrets(*setting, BOTH, num_samples=20, constrained=constrained)
    loaded = Generations.load(written.save(tmp_path / "texts.json", reveal=True))
    assert loaded.texts == written.texts and set(written.texts) == {FOUR, OTHER}
    assert sum(sum(texts.values()) for texts in written.texts.values()) == 40
    if constrained:
        for fmt, texts in written.texts.items():
            assert all(map(fmt.contains, texts))
    ranked = rank_candidates(*setting, loaded)
    assert sum(one.times for one in ranked) == 40
    assert len({row[0] for row in written.cells()[1]}) == 2

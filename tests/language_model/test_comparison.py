"""The measurement of one backend against the other."""

import pytest

from rnnfast.language_model import compare_backends
from rnnfast.language_model.comparison import BackendComparison
from rnnfast.text import InputError


def test_both_backends_do_the_same_job(corpus, config):
    comparison = compare_backends(corpus, config, pairs=3, steps=2)
    assert len(comparison.ratios) == 3
    assert all(ratio > 0 for ratio in comparison.ratios)
    assert set(comparison.words_per_second) == {"rnnfast", "torch"}
    assert comparison.mean_loss["rnnfast"] == pytest.approx(comparison.mean_loss["torch"], rel=1e-3)


def test_report_names_the_median_and_the_spread():
    comparison = BackendComparison(
        ratios=(1.5, 3.0, 1.25, 1.75, 1.0),
        words_per_second={"rnnfast": 30000.0, "torch": 20000.0},
        mean_loss={"rnnfast": 5.0, "torch": 5.0},
        threads=2,
    )
    assert comparison.ratio == 1.5
    assert str(comparison) == (
        "rnnfast / torch: 1.50 (median of 5 pairs, half of them 1.25 to 1.75); "
        "words per second: rnnfast 30,000, torch 20,000; 2 threads"
    )


def test_values_out_of_range_are_refused(corpus, config):
    for values in ({"pairs": 1}, {"steps": 0}):
        with pytest.raises(InputError, match="pairs must be at least 2 and steps 1"):
            compare_backends(corpus, config, **values)

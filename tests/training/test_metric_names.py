import pytest

from dppo_jax.training.metric_names import METRICS, about, in_time, in_words, tag


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("approx_kl", "train/approx_kl"),
        ("eval/success", "eval/success"),
        ("success", "rollout/success"),
        ("seconds", "time/seconds"),
        ("env_steps", "time/env_steps"),
        ("height_of_the_task", "rollout/height_of_the_task"),
    ],
)
def test_tags_have_groups(name, expected):
    assert tag(name) == expected


def test_names_that_are_not_known_keep_their_own():
    assert about("eval/gap_row1").label == "gap row1"
    assert about("eval/success") == METRICS["success"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("approx_kl", -1.97e-9, "<1e-7"),  # rounding
        ("approx_kl", 9.70008e-05, "9.7e-05"),
        ("approx_kl_last", 0.0123, "1.2e-02"),
        ("success", 0.25, "0.25"),
        ("tackle", 1e-9, "1e-09"),
    ],
)
def test_a_tiny_divergence_does_not_look_broken(name, value, expected):
    assert in_words(name, value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.123, "0.12 s"), (45.4, "45 s"), (99.6, "2 min"), (7568, "2 h 6 min")],
)
def test_times_are_read_at_a_glance(seconds, expected):
    assert in_time(seconds) == expected

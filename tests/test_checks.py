"""What refusals have in common."""

from mde_utils.checks import unknown


def test_an_unknown_name_meets_what_is_known_and_what_is_near():
    assert unknown("split", "trian", ("train", "val")) == (
        "Unknown split 'trian'. Did you mean 'train'? Known: train, val."
    )
    assert unknown("split", "zzz", ("train", "val")) == "Unknown split 'zzz'. Known: train, val."
    assert unknown("split", None, iter(["train"])).endswith("Known: train.")


def test_near_names_are_found_among_more_than_is_listed():
    said = unknown("layer", "conv", ("out",), among=["conv1", "conv2", "pool"])
    assert "'conv2' or 'conv1'" in said or "'conv1' or 'conv2'" in said
    assert said.endswith("Known: out.") and "pool" not in said
    assert "Known" not in unknown("layer", "conv", (), among=["conv1"])

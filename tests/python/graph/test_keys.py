"""Names of what is stored in integers."""

from __future__ import annotations

import pickle

from octavo.graph.keys import Entry, Narrow, SiteKey, ValueKey, is_narrow, wide


def test_text_is_what_files_hold() -> None:
    assert str(SiteKey("layer1.0")) == "site:layer1.0"
    assert str(ValueKey("", "x")) == ":x" and str(ValueKey("net.0", "relu")) == "net.0:relu"
    assert str(Narrow("relu", 4)) == "relu@4"
    assert str(Entry("relu@4", "net#0")) == "relu@4|net#0"


def test_a_layer_and_a_value_of_the_same_text_are_two_keys() -> None:
    """A captured module may be called "site"."""
    keys = {SiteKey("relu"): 1, ValueKey("site", "relu"): 2}
    assert len(keys) == 2 and pickle.loads(pickle.dumps(keys)) == keys


def test_names_of_narrow_values() -> None:
    narrow = str(Narrow("relu", 4))
    assert is_narrow(narrow) and not is_narrow("relu")
    assert wide(narrow) == wide("relu") == "relu"

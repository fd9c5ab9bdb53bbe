"""A few cases of every fuzzer, so that none of them rots; `make fuzz` runs them for as long as it is told to."""

import numpy as np
import pytest
from fuzz import campaign, files, kernels, memory


def test_kernels():
    assert campaign.run(kernels.case, "kernels", seconds=2, cases=12) >= 1


def test_files():
    assert campaign.run(files.case, "files", seconds=2, cases=300) >= 10


@pytest.mark.parametrize("name", files.readers())
def test_readers_take_their_seeds(name, tmp_path):
    assert all(files.check(name, data, tmp_path) for data in files.readers()[name].seeds())


def test_calls_keep_no_memory():
    """A leak shows every time; what other tests left to threads of this process shows once."""
    calls = memory.calls()[:2]
    assert any(memory.growth("calls", calls, 4000) < memory.MOST_GROWTH for _ in range(3))


def test_a_case_that_fails_says_how_to_repeat_it(capsys):
    def fails_at_seed_7(rng):
        assert rng.integers(2**31) != np.random.default_rng(7).integers(2**31)

    with pytest.raises(AssertionError):
        campaign.run(fails_at_seed_7, "name", seconds=10, seed=5)
    assert "python -m fuzz.name --seed 7 --cases 1" in capsys.readouterr().err


def test_kernels_that_differ_are_found(monkeypatch):
    """One wrong look-up in each array of sums."""
    wrong = kernels.references.aggregate
    monkeypatch.setattr(kernels.references, "aggregate", lambda codes, values: wrong(codes, values) + 1)
    with pytest.raises(AssertionError):
        campaign.run(kernels.aggregate_case, "kernels", seconds=10, cases=20)

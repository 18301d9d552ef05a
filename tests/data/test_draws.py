from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import stats

from aam.data.draws import generator, stable_keys, uniform

WORD = 2**64
KNOWN = 0x477238E71C39FF6A  # of "ACGT"


def mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def plain_uniform(purpose: str, seed: int, epoch: int, *keys: int) -> float:
    """The same in Python's integers."""
    state = mixed(key(f"{purpose}/{seed}/{epoch}"))
    for k in keys:
        state = mixed(((state ^ mixed(k)) + 0x9E3779B97F4A7C15) % WORD)
    return (state >> 11) / 2**53


def test_stable_keys_are_blake2b():
    assert key("ACGT") == KNOWN
    assert stable_keys(["ACGT", "", "é"]).tolist() == [KNOWN, key(""), key("é")]
    assert stable_keys([]).shape == (0,)


def test_uniform_is_the_formula():
    samples, asvs = stable_keys(["a", "b"]), stable_keys(["AC", "GT", "TT"])
    found = uniform("p", 3, 1, samples[:, None], asvs)
    assert found.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert found[i, j] == plain_uniform("p", 3, 1, int(samples[i]), int(asvs[j]))


def test_uniform_depends_on_its_keys_alone():
    keys = stable_keys([f"sample {i}" for i in range(50)])
    whole = uniform("p", 0, 0, keys)
    order = np.random.default_rng(0).permutation(50)
    assert (uniform("p", 0, 0, keys[order]) == whole[order]).all()
    assert (uniform("p", 0, 0, keys.reshape(5, 10)) == whole.reshape(5, 10)).all()
    assert uniform("p", 0, 0, keys[7:8])[0] == whole[7]


def test_uniform_is_uniform():
    draws = uniform("p", 0, 0, np.arange(200)[:, None], np.arange(100))
    assert (draws >= 0).all() and (draws < 1).all()
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001
    assert abs(draws.mean() - 1 / 2) < 0.01 and abs(draws.var() - 1 / 12) < 0.002
    for axis in (0, 1):  # no row or column stands out
        assert stats.kstest(draws.mean(axis=axis), stats.norm(0.5, (12 * draws.shape[axis]) ** -0.5).cdf).pvalue > 0.001
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("other", [("q", 0, 0), ("p", 1, 0), ("p", 0, 1)])
def test_draws_differ(other):
    keys = np.arange(1000, dtype=np.uint64)
    assert abs(np.corrcoef(uniform("p", 0, 0, keys), uniform(*other, keys))[0, 1]) < 0.15
    assert (uniform("p", 0, 0, keys) != uniform(*other, keys)).all()
    assert generator("p", 0, 0).random() != generator(*other).random()


def test_generators_repeat_themselves():
    assert generator("p", 1, 2, 3).random() == generator("p", 1, 2, 3).random()
    assert generator("p", 1, 2, 3).random() != generator("p", 1, 2, 4).random()
    large = int(stable_keys(["a sample"])[0])
    assert generator("p", 1, 2, np.uint64(large)).random() == generator("p", 1, 2, large).random()

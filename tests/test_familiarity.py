"""What is kept of training samples, and what others are held against, by plain arithmetic on sets of sequences."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from aam.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from aam.data.study import Study, load_study
from aam.errors import DataError
from aam.familiarity import Spread, TrainingProfile, describe_samples, familiarity, profile_of, read_profile
from aam.training.checkpoint import ModelFile, load_model_file, save_model_file

LETTERS = "ACGT"
MAX_BP = 36


def write(folder: Path, samples: dict[str, dict[str, int]], groups: dict[str, str]) -> DataConfig:
    table = pd.DataFrame(samples).fillna(0).astype(int)
    table.to_csv(folder / "table.tsv", sep="\t", index_label="#OTU ID")
    pd.Series(groups, name="subject").to_csv(folder / "metadata.tsv", sep="\t", index_label="sample_id")
    return DataConfig(
        table=folder / "table.tsv",  # type: ignore[arg-type]
        metadata=folder / "metadata.tsv",  # type: ignore[arg-type]
        group_column="subject",
    )


class Files:
    """Samples as dictionaries from sequence to count; 40 bases at most, of which 36 are read."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        root = rng.choice(list(LETTERS), 40)

        def asv(length: int) -> str:
            mutated = np.where(rng.random(40) < 0.08, rng.choice(list(LETTERS), 40), root)
            return "".join(mutated[:length])

        self.asvs = [asv(length) for length in [30, 32, 34, 40, 40, 40, 36, 30, 31, 33, 35, 36]]
        self.samples = {
            f"s{i:02d}": {self.asvs[a]: int(rng.integers(1, 90)) for a in rng.choice(12, rng.integers(2, 8), False)}
            for i in range(14)
        }
        self.groups = {name: f"subject {i // 2}" for i, name in enumerate(self.samples)}
        self.study: Study = load_study(write(folder, self.samples, self.groups), max_bp=MAX_BP, checksums=False)
        self.names = self.study.sample_ids
        self.train = np.arange(10)
        self.embeddings = rng.normal(3, [1, 5, 0.2, 1], (14, 4)).astype(np.float32)
        self.profile = profile_of(self.study, self.train, self.train, self.embeddings[self.train])

    def sample(self, row: int) -> dict[str, int]:
        """Counts of the sequences as they are read."""
        found: dict[str, int] = {}
        for sequence, count in self.samples[self.names[row]].items():
            found[sequence[:MAX_BP]] = found.get(sequence[:MAX_BP], 0) + count
        return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


def model_file(profile: TrainingProfile | None, depth: int | None = None) -> ModelFile:
    config = RunConfig(
        command="train",
        data=DataConfig(table=Path("t"), metadata=Path("m"), metadata_column="age", rarefy_depth=depth),  # type: ignore[arg-type]
        model=ModelConfig(max_bp=MAX_BP),
        train=TrainConfig(output_dir=Path("o")),
    )
    if profile is None:
        return ModelFile(config, {}, {}, {})
    return ModelFile(config, {"training_profile": profile.header()}, {}, profile.tensors())


def compare(files: Files, study: Study, embeddings: np.ndarray, depth: int | None = None) -> pd.DataFrame:
    found = familiarity(model_file(files.profile, depth), Path("m"), study, embeddings, np.arange(len(study)))
    assert found is not None
    return found.table.set_index("sample_id")


def test_the_profile_is_what_plain_counts_give(files: Files) -> None:
    profile, samples = files.profile, [files.sample(row) for row in files.train]
    assert profile.samples == 10 and profile.grouped
    assert len(np.unique(profile.asvs)) == len({sequence for sample in samples for sequence in sample})
    assert (np.diff(profile.asvs.astype(object)) >= 0).all()
    depths = [sum(sample.values()) for sample in samples]
    assert profile.depth.least == min(depths) and profile.depth.most == max(depths)
    assert profile.depth.median == median(depths)
    assert profile.asvs_per_sample.median == median(map(len, (files.samples[files.names[i]] for i in files.train)))
    assert (profile.lengths.least, profile.lengths.most) == (30, MAX_BP)
    shared = []
    for row in files.train:
        own, group = files.samples[files.names[row]], files.groups[files.names[row]]
        others = {
            s for i in files.train if files.groups[files.names[i]] != group for s in files.samples[files.names[i]]
        }
        shared.append(sum(count for sequence, count in own.items() if sequence in others) / sum(own.values()))
    assert profile.shared.least == pytest.approx(min(shared))
    assert profile.shared.median == pytest.approx(median(shared))


def test_distances_are_to_other_groups_in_standard_deviations(files: Files) -> None:
    known = files.embeddings[files.train]
    scaled = (known - known.mean(axis=0)) / known.std(axis=0)
    distances = cdist(scaled, scaled)
    groups = np.array([files.groups[files.names[i]] for i in files.train])
    distances[groups[:, None] == groups] = np.inf
    expected = np.percentile(distances.min(axis=1), np.arange(101))
    np.testing.assert_allclose(files.profile.distances, expected, atol=5e-3)
    table = compare(files, files.study, files.embeddings)
    to_known = cdist((files.embeddings - known.mean(axis=0)) / known.std(axis=0), scaled).min(axis=1)
    np.testing.assert_allclose(table["distance"], to_known, atol=5e-3)
    below = [100 * (distances.min(axis=1) <= distance).mean() for distance in table["distance"]]
    np.testing.assert_allclose(table["distance_percentile"], below, atol=12)  # of ten distances, interpolated


def test_shares_that_were_seen_are_those_of_sets(files: Files) -> None:
    seen = {sequence for row in files.train for sequence in files.sample(row)}
    table = compare(files, files.study, files.embeddings)
    for name in files.names:
        sample = files.samples[name]
        known = {sequence: count for sequence, count in sample.items() if sequence[:MAX_BP] in seen}
        assert table.loc[name, "depth"] == sum(sample.values())
        assert table.loc[name, "asvs"] == len(sample)
        assert table.loc[name, "seen_reads"] == pytest.approx(sum(known.values()) / sum(sample.values()))
        assert table.loc[name, "seen_asvs"] == pytest.approx(len(known) / len(sample))
        assert table.loc[name, "median_length"] == median(min(len(sequence), MAX_BP) for sequence in sample)
    assert set(table["region"]) == {"same"}


def test_training_samples_are_not_flagged(files: Files) -> None:
    table = compare(files, files.study, files.embeddings).iloc[: len(files.train)]
    assert (table["seen_reads"] == 1).all() and (table["seen_asvs"] == 1).all()
    assert (table["distance_percentile"] == 0).all()
    assert set(table["flag"]) == {""}


@pytest.mark.parametrize("depth", [None, 5])
def test_each_flag_has_its_reason(files: Files, tmp_path: Path, depth: int | None) -> None:
    rng = np.random.default_rng(3)
    base = files.samples["s00"]
    turned = {s[::-1].translate(str.maketrans("ACGT", "TGCA")): 20 for s in files.asvs if len(s) < 36}
    random = {"".join(rng.choice(list(LETTERS), 34)): 20 for _ in range(3)}
    samples = {
        "a_same": base,
        "b_turned": turned,
        "c_random": random,
        "d_short": {s[:25]: count for s, count in base.items()},
        "e_few": {next(iter(base)): 1},
        "f_many": {next(iter(base)): 10**6},
        "g_far": base,
    }
    study = load_study(write(tmp_path, samples, dict.fromkeys(samples, "x")), max_bp=MAX_BP, checksums=False)
    embeddings = files.embeddings[[0] * 6 + [1]].copy()
    embeddings[6] += 40
    flags = compare(files, study, embeddings, depth)["flag"].to_dict()
    assert flags["a_same"] == ""
    assert flags["b_turned"] == "unknown ASVs; reverse complement"
    assert flags["c_random"] == "unknown ASVs; other region"
    assert flags["d_short"] == "unknown ASVs; length"
    assert flags["e_few"] == ("few reads" if depth is None else "")
    assert flags["f_many"] == ("many reads" if depth is None else "")
    assert flags["g_far"] == "far"


def test_blocks_of_samples_are_summed_up_alike(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    held = np.arange(len(files.study.sequences)) % 2 == 0
    lengths, regions = np.arange(len(held)), np.arange(len(held)) % 3
    rows = files.train[::-1].copy()
    whole = describe_samples(files.study.counts, rows, held, lengths, regions)
    monkeypatch.setattr("aam.data.counts._FIRST_BLOCK", 3)
    monkeypatch.setattr("aam.data.counts._ENTRIES_OF_A_BLOCK", 1)
    again = describe_samples(files.study.counts, rows, held, lengths, regions)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
    other = profile_of(files.study, files.train, files.train, files.embeddings[files.train])
    assert other.header() == files.profile.header()


def test_the_profile_comes_back_from_a_model_file(files: Files, tmp_path: Path) -> None:
    written = model_file(files.profile)
    path = tmp_path / "model.safetensors"
    save_model_file(path, {"weight": torch.ones(2)}, written.config, written.header, written.beside)
    read = load_model_file(path)
    assert set(read.weights) == {"weight"}
    profile = read_profile(read, path)
    assert profile is not None
    assert profile.header() == files.profile.header()
    for name, tensor in profile.tensors().items():
        assert torch.equal(tensor, files.profile.tensors()[name]), name
    assert profile.asvs.dtype == np.uint64


@pytest.mark.parametrize(
    "damage", [{"depth": {}}, {"samples": "many"}, {"lengths": 3}, {"words_at_their_places": None}]
)
def test_damaged_profiles_are_refused(files: Files, damage: dict[str, object]) -> None:
    file = model_file(files.profile)
    file.header["training_profile"].update(damage)
    with pytest.raises(DataError, match=r"model\.safetensors: what it says of its training samples is damaged"):
        read_profile(file, Path("model.safetensors"))
    without = ModelFile(file.config, {"training_profile": files.profile.header()}, {}, {})
    with pytest.raises(DataError, match="is damaged"):
        read_profile(without, Path("model.safetensors"))


def test_a_model_without_one_is_compared_with_nothing(files: Files) -> None:
    assert familiarity(model_file(None), Path("m"), files.study, files.embeddings, np.arange(14)) is None


def test_one_training_group_gives_no_scale(files: Files) -> None:
    rows = files.train[:2]
    profile = profile_of(files.study, rows, rows, np.ones((2, 4), dtype=np.float32))
    found = familiarity(model_file(profile), Path("m"), files.study, files.embeddings, np.arange(14))
    assert found is not None
    assert found.table["distance_percentile"].isna().all()
    assert not found.table["flag"].str.contains("far").any()


def test_spreads_are_percentiles() -> None:
    assert Spread.of(np.arange(101.0)) == (0, 1, 5, 50, 95, 99, 100)

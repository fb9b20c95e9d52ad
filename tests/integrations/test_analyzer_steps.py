"""DeepSpeed's map and merge steps by name, beside the installed DeepSpeed's; and an analysis in two passes."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from analyzer_oracle import FILES, TensorDataset, batch_sum, pair_bytes, run_oracle, same, save_case
from analyzer_oracle import Run as OracleRun

import arrowds
from arrowds.errors import ConfigError, IndexExistsError, IndexNotFoundError, MetricValueError, UnsupportedError
from arrowds.indexed_dataset import IndexedDataset
from arrowds.integrations import deepspeed as ads
from arrowds.integrations.deepspeed.custom_map import split

PER_SAMPLE, TOTAL = "single_value_per_sample", "accumulate_value_over_samples"
NAMES, TYPES, DTYPES, FUNCTIONS = ["value", "sum"], [PER_SAMPLE, TOTAL], [torch.int64, np.int64], [same, batch_sum]
VALUES = torch.from_numpy(np.random.default_rng(0).integers(0, 300, 1003))


def analyzer_of(path: Path, kind: type = ads.DataAnalyzer, **arguments: object) -> ads.DataAnalyzer:
    described = {"metric_names": NAMES, "metric_functions": FUNCTIONS, "metric_types": TYPES, "metric_dtypes": DTYPES}
    return kind(TensorDataset(VALUES), batch_size=7, save_path=str(path), **described | arguments)


def map_by_hand(analyzer: ads.DataAnalyzer, path: Path, workers: int, threads: int) -> None:
    """What a script does that runs the steps in processes of its own."""
    for worker, (first, last) in enumerate(split(0, len(VALUES), workers)):
        for thread, (start, stop) in enumerate(split(first, last, threads)):
            results = analyzer.init_metric_results(thread, NAMES, TYPES, DTYPES, str(path), worker)
            for row in range(start, stop, 7):
                batch = VALUES[row : min(row + 7, stop)]
                analyzer.update_metric_results(batch, TYPES, DTYPES, FUNCTIONS, results, row)
            analyzer.finalize_metric_results(TYPES, DTYPES, results)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of DeepSpeed's analyzer over the same data: two workers of one thread, a reduce in two pieces."""
    folder = tmp_path_factory.mktemp("oracle")
    save_case(folder / "case", VALUES.numpy(), OracleRun(batch_size=7, num_workers=2, num_threads_reduce=2))
    run_oracle(folder)
    return folder / "case" / "deepspeed"


def assert_deepspeeds(path: Path, theirs: Path) -> None:
    for metric, kinds in {"value": FILES, "sum": ("metric_value",)}.items():
        assert pair_bytes(path, metric, kinds) == pair_bytes(theirs, metric, kinds)


def test_the_steps_called_by_hand_make_deepspeeds_files(tmp_path: Path, theirs: Path) -> None:
    analyzer = analyzer_of(tmp_path, num_workers=2)
    map_by_hand(analyzer, tmp_path, 2, 1)
    assert analyzer.merge_map_results(analyzer.dataset, NAMES, TYPES, str(tmp_path), 2, 1, 2) is None
    assert_deepspeeds(tmp_path, theirs)
    assert not list(tmp_path.rglob("*_thread[0-9].bin"))
    index = ads.import_index(tmp_path, tmp_path.with_name("imported"))
    assert index["value"].values.tolist() == VALUES.tolist()


def test_a_reduce_after_a_map_by_hand_makes_them_too(tmp_path: Path, theirs: Path) -> None:
    map_by_hand(analyzer_of(tmp_path), tmp_path, 2, 1)
    assert analyzer_of(tmp_path, num_workers=2, num_threads_reduce=2).run_reduce() is None
    assert_deepspeeds(tmp_path, theirs)


def test_every_merge_step_does_its_part(tmp_path: Path) -> None:
    analyzer = analyzer_of(tmp_path)
    map_by_hand(analyzer, tmp_path, 2, 3)
    threads = [(worker, thread) for worker in range(2) for thread in range(3)]
    rows = [VALUES[start:stop] for first, last in split(0, 1003, 2) for start, stop in split(first, last, 3)]
    stats: dict = {}
    for piece in range(4):
        analyzer.merge_gather_map_stats(2, 3, 4, piece, tmp_path / "value", "value", stats)
    for piece in range(4):
        expected = [[sorted(set(part.tolist())), len(part)] for part in rows[piece::4]]
        assert stats[piece] == expected
    analyzer.merge_sample_to_metric(1, tmp_path / "value", "value", np.uint16, threads[2:5])
    found = IndexedDataset.open(tmp_path / "value" / "value_sample_to_metric_thread1", "deepspeed")
    assert (found.tokens.tolist(), found.dtype) == (torch.cat(rows[2:5]).tolist(), np.uint16)
    wanted = [3, 299, 1000, 17]
    analyzer.merge_metric_to_sample(0, tmp_path / "value", "value", np.int32, np.int16, wanted, 2, 3)
    samples = IndexedDataset.open(tmp_path / "value" / "value_index_to_sample_thread0", "deepspeed")
    assert [row.tolist() for row in samples] == [torch.nonzero(value == VALUES).flatten().tolist() for value in wanted]
    assert (
        IndexedDataset.open(tmp_path / "value" / "value_index_to_metric_thread0", "deepspeed").tokens.tolist() == wanted
    )
    with pytest.raises(IndexNotFoundError, match="worker 2 has not finished thread 0"):
        analyzer.merge_gather_map_stats(3, 3, 1, 0, tmp_path / "value", "value", {})
    with pytest.raises(IndexNotFoundError, match=r"'value' .* hold 501 samples, the dataset 1003"):
        analyzer.merge_map_results(analyzer.dataset, NAMES, TYPES, tmp_path, 1, 3, 1)


def test_percentiles_are_brute_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values, counts = np.unique(VALUES.numpy(), return_counts=True)
    with caplog.at_level("INFO"):
        found = analyzer_of(tmp_path).get_metric_value_percentiles(
            "value", dict(zip(values, counts, strict=True)), 1003
        )
    ordered = np.sort(VALUES.numpy())
    assert found == {p: ordered[-(-1003 * p // 100) - 1] for p in range(5, 101, 5)}
    assert f"metric value, percentile 50: {found[50]}" in caplog.text
    heavy = analyzer_of(tmp_path).get_metric_value_percentiles("heavy", {7: 98, 9: 2}, 100)
    assert heavy == {p: 7 if p <= 95 else 9 for p in range(5, 101, 5)}  # DeepSpeed's skips levels here


class Doubling(ads.DataAnalyzer):
    """A subclass that changes one step, as one of DeepSpeed's class may."""

    def update_metric_results(self, data, *arguments):
        super().update_metric_results(data * 2, *arguments)


@pytest.mark.parametrize("how", ["subclass", "hook", "own threads"])
def test_a_step_of_ones_own_counts(tmp_path: Path, how: str) -> None:
    analyzer = analyzer_of(tmp_path, Doubling if how == "subclass" else ads.DataAnalyzer)
    if how == "hook":
        plain = analyzer.update_metric_results
        analyzer.custom_map_update = lambda data, *arguments: plain(data * 2, *arguments)
    elif how == "own threads":
        analyzer = analyzer_of(tmp_path, Doubling, num_threads=2)
        for thread in (1, 0):
            analyzer.run_map_helper(thread)
        analyzer.run_map = lambda: None
    assert analyzer.run_map_reduce() is None
    stored = IndexedDataset.open(tmp_path / "value" / "value_sample_to_metric", "deepspeed")
    assert stored.tokens.tolist() == (VALUES * 2).tolist()
    assert IndexedDataset.open(tmp_path / "sum" / "sum_metric_value", "deepspeed").tokens.tolist() == [
        int(VALUES.sum() * 2)
    ]


def test_threads_run_one_by_one_make_the_index(tmp_path: Path) -> None:
    for thread in (2, 0, 1):
        analyzer_of(tmp_path, num_threads=3).run_map_helper(thread)
    assert analyzer_of(tmp_path, num_threads=3).run_reduce()["value"].values.tolist() == VALUES.tolist()


def test_a_custom_reduce_may_call_the_one_it_replaces(tmp_path: Path) -> None:
    analyzer, made = analyzer_of(tmp_path), []
    analyzer.custom_reduce = lambda *arguments: made.append(analyzer.merge_map_results(*arguments))
    analyzer.run_map()
    assert analyzer.run_reduce() is None
    assert made[0]["value"].values.tolist() == VALUES.tolist()


def test_sample_ids_come_from_the_batches_or_from_sample_indices(tmp_path: Path) -> None:
    ids = np.random.default_rng(2).permutation(20)
    for given in ("field", "argument"):
        path = tmp_path / given
        analyzer = analyzer_of(path, sample_indices=ids if given == "argument" else None)
        results = analyzer.init_metric_results(0, NAMES[:1], TYPES[:1], DTYPES[:1], path, 0)
        for row in range(0, 20, 6):
            batch = {"text": VALUES[row : row + 6][: 20 - row], "index": torch.from_numpy(ids[row : row + 6, None])}
            data = batch if given == "field" else batch["text"]
            function = (lambda batch: batch["text"]) if given == "field" else same
            analyzer.update_metric_results(data, TYPES[:1], DTYPES[:1], [function], results, row)
        analyzer.finalize_metric_results(TYPES[:1], DTYPES[:1], results)
        analyzer.merge_map_results(range(20), NAMES[:1], TYPES[:1], path, 1, 1, 1)
        index = ads.import_index(path, tmp_path / f"{given}_index")
        assert index["value"].values[ids].tolist() == VALUES[:20].tolist()


def test_what_the_files_can_not_hold_is_refused(tmp_path: Path) -> None:
    analyzer = analyzer_of(tmp_path)
    with pytest.raises(UnsupportedError, match="'value' is of type float32"):
        analyzer.init_metric_results(0, NAMES, TYPES, [torch.float32, torch.int64], tmp_path, 0)
    results = analyzer.init_metric_results(0, NAMES[:1], TYPES[:1], ["uint8"], tmp_path, 0)
    with pytest.raises(MetricValueError, match="uint8 can't hold"):
        analyzer.update_metric_results(VALUES, TYPES[:1], ["uint8"], [same], results)


@pytest.mark.parametrize("cls", [ads.DataAnalyzer, ads.DistributedDataAnalyzer])
def test_attributes_set_after_construction_count(tmp_path: Path, cls: type) -> None:
    described = {"metric_names": ["value"], "metric_functions": [same], "metric_types": [PER_SAMPLE]}
    analyzer = cls(TensorDataset(VALUES), save_path=tmp_path / "never", **described)
    analyzer.save_path, analyzer.metric_names, analyzer.batch_size = tmp_path / "here", ["renamed"], 100
    analyzer.dataset = TensorDataset(VALUES[:50])
    assert analyzer.run_map_reduce()["renamed"].values.tolist() == VALUES[:50].tolist()
    assert not (tmp_path / "never").exists()


class Megatron(TensorDataset):
    """Samples that say their own number, as Megatron-DeepSpeed's do."""

    def __getitem__(self, i):
        return {"text": self.tensor[i], "index": np.array([i], dtype=np.int64)}


@pytest.mark.parametrize("kind", [TensorDataset, Megatron])
def test_two_passes_share_one_folder(tmp_path: Path, kind: type) -> None:
    """The second reads the file that the first has left, and adds its metric; either pass may be run again."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 50, (200, 16)))
    text = (lambda batch: batch["text"]) if kind is Megatron else same
    save = str(tmp_path / "analysis")

    def run(name, function, type_, **arguments):
        how = {"metric_names": [name], "metric_functions": [function], "metric_types": [type_], "save_path": save}
        for worker in (1, 0):
            analyzer = ads.DataAnalyzer(
                kind(tokens),
                num_workers=2,
                worker_id=worker,
                batch_size=10,
                metric_dtypes=[np.int64],
                **how | arguments,
            )
            analyzer.run_map()
        return analyzer.run_reduce()

    def frequencies(batch):
        return torch.bincount(text(batch).reshape(-1), minlength=50)

    first = run("total_vocab_freq", frequencies, TOTAL)
    counts = IndexedDataset.open(f"{save}/total_vocab_freq/total_vocab_freq_metric_value", "deepspeed")[0]
    assert counts.tolist() == np.bincount(tokens.reshape(-1), minlength=50).tolist()
    rarity = torch.from_numpy(-np.log(counts / counts.sum()))

    def vocab_rarity(batch):
        return rarity[text(batch)].sum(dim=1).to(torch.long)

    index = run("vocab_rarity", vocab_rarity, PER_SAMPLE, deepspeed_files=True)
    assert index["vocab_rarity"].values.tolist() == rarity[tokens].sum(dim=1).to(torch.long).tolist()
    assert index.totals["total_vocab_freq"].tolist() == first.totals["total_vocab_freq"].tolist()
    stored = IndexedDataset.open(f"{save}/vocab_rarity/vocab_rarity_index_to_sample", "deepspeed")
    assert sorted(stored.tokens.tolist()) == list(range(200))
    assert run("total_vocab_freq", frequencies, TOTAL).fingerprint == index.fingerprint
    assert run("vocab_rarity", vocab_rarity, PER_SAMPLE).fingerprint == index.fingerprint
    with pytest.raises(IndexExistsError):
        run("vocab_rarity", lambda batch: vocab_rarity(batch) + 1, PER_SAMPLE)
    arrowds.vacuum(save)
    assert Path(save, "vocab_rarity", "vocab_rarity_index_to_sample.bin").exists()
    assert arrowds.open_index(save, verify=True).fingerprint == index.fingerprint


def test_metrics_are_not_added_to_an_index_of_other_data(tmp_path: Path) -> None:
    analyzer_of(tmp_path).run_map_reduce()
    other = {"metric_names": ["other"], "metric_functions": [same], "metric_types": [PER_SAMPLE], "metric_dtypes": []}
    for names in (
        other,
        {"metric_names": ["value"], "metric_functions": [same]} | {"metric_types": [PER_SAMPLE], "metric_dtypes": []},
    ):
        analyzer = analyzer_of(tmp_path, **names)
        analyzer.dataset = TensorDataset(VALUES + 1)
        with pytest.raises(arrowds.errors.ArrowdsError, match="data"):
            analyzer.run_map()
    assert sorted(arrowds.open_index(tmp_path).metrics) == ["value"]


def test_floats_are_left_out_of_deepspeeds_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    described = {"metric_names": ["half", "value"], "metric_functions": [lambda batch: batch / 2, same]}
    described |= {"metric_types": [PER_SAMPLE] * 2, "metric_dtypes": []}
    index = analyzer_of(tmp_path, deepspeed_files=True, **described).run_map_reduce()
    assert index["half"].dtype == np.float32
    assert "those of half are not written" in caplog.text
    assert (tmp_path / "value" / "value_index_to_sample.bin").exists()
    assert not (tmp_path / "half").exists()


def test_hooks_without_files_or_a_reduce_are_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        nothing = {"custom_map_init": lambda *_: None, "custom_map_update": lambda *_: None}
        analyzer = analyzer_of(Path(folder), **nothing, custom_map_finalize=lambda *_: None)
        analyzer.run_map()
        with pytest.raises(ConfigError, match="needs a custom_reduce"):
            analyzer.run_reduce()

"""Metrics by a causal language model, against transformers' own loss of one sample at a time."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.errors import IndexExistsError, MetricError, MetricFailedError, MetricValueError
from arrowds.metrics import from_spec
from arrowds.metrics import models as metrics

SOURCE = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text()
TEXTS = ["def f(x):", SOURCE[:300], "a", "", "Ünïcödé 日本語 🙂", SOURCE[1000:1700], "x = 1\n" * 5, SOURCE[500:560]]
CONTEXT = 48
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def bpe(bos: str | None = "<s>") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([SOURCE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>" if bos else None)


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    # A model that is sure of itself: the losses of tokens differ by several nats.
    config = GPT2Config(vocab_size=400, bos_token_id=0, eos_token_id=1, initializer_range=0.4, **sizes)
    return GPT2LMHeadModel(config).eval()


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=400, bos_token_id=0, eos_token_id=1, pad_token_id=None, **sizes)
    ).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return bpe()


@pytest.fixture(scope="module", params=[gpt2, llama])
def folder(request, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / request.param.__name__
    saved(request.param(), path)
    tokenizer.save_pretrained(path)
    return path


def saved(model, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def measured(metric, column: pa.Array | list, name: str = "text") -> np.ndarray:
    values = metric.compute(pa.record_batch({name: column}), {})
    return np.array([np.nan if value is None else value for value in values.to_pylist()])


@torch.no_grad()
def reference(model, ids: list[int], max_length: int = 10**9, overlap: int = 0) -> float:
    """Total nats, as the strided loop of Hugging Face's guide to perplexity adds them up: one window at a time."""
    nats, previous = 0.0, 1
    stride = max_length - overlap
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length + 1, len(ids))
        if end <= previous:
            break
        read, targets = (torch.tensor([ids[begin + by : end - 1 + by]], device=model.device) for by in (0, 1))
        targets[:, : previous - begin - 1] = -100
        nats += model(read, labels=targets, shift_labels=targets).loss.item() * (end - previous)
        previous = end
    return nats


def ids_of(tokenizer, text: str) -> list[int]:
    return [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
@pytest.mark.parametrize(("max_length", "overlap"), [(CONTEXT, 0), (CONTEXT, 24), (16, 15), (7, 3), (1, 0)])
def test_the_loss_is_that_of_transformers_one_sample_at_a_time(folder, tokenizer, batch_tokens, max_length, overlap):
    model = AutoModelForCausalLM.from_pretrained(folder)
    metric = metrics.loss(folder, max_length=max_length, overlap=overlap, batch_tokens=batch_tokens, nulls="keep")
    rows = [ids_of(tokenizer, text) for text in TEXTS]
    assert max(map(len, rows)) > 2 * CONTEXT and min(map(len, rows)) == 1
    expected = [reference(model, ids, max_length, overlap) / (len(ids) - 1) if len(ids) > 1 else np.nan for ids in rows]
    np.testing.assert_allclose(measured(metric, TEXTS), expected, rtol=2e-5)


def test_bits_per_byte_perplexity_and_loss_say_the_same(folder, tokenizer):
    texts = [text for text in TEXTS if text]
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [ids_of(tokenizer, text) for text in texts]
    nats = np.array([reference(model, ids, CONTEXT, CONTEXT // 2) for ids in rows])
    bits, perplexity = (measured(make(folder), texts) for make in (metrics.bits_per_byte, metrics.perplexity))
    np.testing.assert_allclose(
        bits, [n / math.log(2) / len(t.encode()) for n, t in zip(nats, texts, strict=True)], rtol=2e-5
    )
    np.testing.assert_allclose(
        perplexity, [math.exp(n / (len(ids) - 1)) for n, ids in zip(nats, rows, strict=True)], rtol=5e-4
    )


def test_short_samples_have_the_loss_that_labels_give(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [ids for text in TEXTS if 1 < len(ids := tokenizer(text)["input_ids"]) <= CONTEXT]
    with torch.no_grad():
        expected = [model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() for ids in rows]
    assert len(expected) > 2
    np.testing.assert_allclose(measured(metrics.loss(folder, column="ids"), rows, "ids"), expected, rtol=2e-5)


def test_without_bos_the_first_token_is_left_out(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    values = measured(metrics.loss(folder, bos=False, nulls="keep"), [TEXTS[0], "a", "", None])
    np.testing.assert_allclose(values, [reference(model, ids) / (len(ids) - 1), np.nan, np.nan, np.nan], rtol=2e-5)


def test_a_sample_without_anything_to_predict_has_no_value(folder, tmp_path):
    data = pa.table({"text": ["some text", "", None]})
    with pytest.raises(MetricValueError, match="sample 1"):
        arrowds.analyze(data, metrics.loss(folder), tmp_path / "refused", progress=False)
    index = arrowds.analyze(data, metrics.loss(folder, nulls="keep"), tmp_path / "kept", progress=False)
    assert index["loss"].num_valid == 1


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_any_arrow_text(folder, kind):
    values = measured(metrics.loss(folder, nulls="keep"), pa.array([*TEXTS, None]).cast(kind))
    np.testing.assert_array_equal(values, measured(metrics.loss(folder, nulls="keep"), [*TEXTS, None]))


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64(), 3)])
def test_any_list_of_ids(folder, kind):
    rows = pa.array([[5, 6, 7], None, [8, 9, 10]], kind)
    expected = measured(metrics.loss(folder, column="ids"), [[5, 6, 7], [8, 9, 10]], "ids")
    values = measured(metrics.loss(folder, column="ids", nulls="keep"), rows.slice(0, 3), "ids")
    np.testing.assert_allclose(values, [expected[0], np.nan, expected[1]], rtol=1e-6)
    np.testing.assert_allclose(
        measured(metrics.loss(folder, column="ids"), rows.slice(2), "ids"), expected[1:], rtol=1e-6
    )


def test_a_batch_of_tensors(folder):
    ids = torch.randint(0, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    values = metrics.loss(folder, column="input_ids").compute({"input_ids": ids}, {}).to_pylist()
    np.testing.assert_allclose(values, measured(metrics.loss(folder, column="x"), ids.tolist(), "x"), rtol=1e-6)


def test_bfloat16(folder, tokenizer):
    texts = [text for text in TEXTS if text]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    expected = [reference(model.float(), ids := ids_of(tokenizer, text), 16, 8) / (len(ids) - 1) for text in texts]
    for dtype in ("bfloat16", torch.bfloat16):
        values = measured(metrics.loss(folder, max_length=16, overlap=8, dtype=dtype), texts)
        np.testing.assert_allclose(values, expected, rtol=3e-2)
        assert np.abs(values - expected).max() > 1e-5  # it is not what float32 gives
    assert metrics.loss(folder, dtype="bfloat16").definition() != metrics.loss(folder).definition()


class Bigrams(torch.nn.Module):
    """Predicts a token from the one before; fails on more tokens than fit."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = torch.nn.Embedding(256, 256)
        self.dropout = torch.nn.Dropout(0.5)
        self.most, self.sizes = most, []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if ids.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(tuple(ids.shape))
        return self.dropout(self.table(ids))


def rows_of(number: int, longest: int = 60) -> list[list[int]]:
    generator = np.random.default_rng(number)
    return [generator.integers(0, 256, generator.integers(2, longest)).tolist() for _ in range(number)]


def bigram_losses(model: Bigrams, rows: list[list[int]]) -> list[float]:
    table = model.table.weight.detach().double().numpy()
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    return [-logs[row[:-1], row[1:]].mean() for row in rows]


def test_a_module_in_memory_is_measured_in_eval_mode_and_left_in_its_own():
    model, rows = Bigrams(), rows_of(100)
    model.train()
    model.table.eval()
    values = measured(metrics.loss(model, column="ids"), rows, "ids")
    np.testing.assert_allclose(values, bigram_losses(model, rows), rtol=1e-5)
    assert model.training and model.dropout.training and not model.table.training


def test_forwards_have_rows_of_about_one_length():
    model, rows = Bigrams(), rows_of(300)
    measured(metrics.loss(model, column="ids", batch_tokens=512), rows, "ids")
    assert all(height * width <= 512 for height, width in model.sizes)
    padded_tokens = sum(height * width for height, width in model.sizes)
    assert padded_tokens < 1.1 * sum(len(row) - 1 for row in rows)


def test_out_of_memory_halves_the_forwards_and_remembers(caplog):
    model, rows = Bigrams(most=200), rows_of(200)
    metric = metrics.loss(model, column="ids", batch_tokens=4000)
    values = measured(metric, rows, "ids")
    np.testing.assert_allclose(values, bigram_losses(model, rows), rtol=1e-5)
    assert len(caplog.messages) == 5  # 4000, 2000, 1000, 500, 250 do not fit, as far as rows fill them
    measured(metric, rows, "ids")
    assert len(caplog.messages) == 5


def test_one_row_that_does_not_fit_is_an_error_that_says_what_helps():
    with pytest.raises(MetricError, match="window of 30 tokens; a smaller max_length"):
        measured(metrics.loss(Bigrams(most=20), column="ids"), [list(range(31))], "ids")


def test_the_difference_of_losses(folder, tokenizer, tmp_path):
    other = type(AutoModelForCausalLM.from_pretrained(folder))
    second = saved(gpt2(seed=7) if other is GPT2LMHeadModel else llama(seed=7), tmp_path / "other")
    texts = [text for text in TEXTS if text]
    values = measured(metrics.loss_difference(folder, second), texts)
    losses = [measured(metrics.loss(each, tokenizer), texts) for each in (folder, second)]
    np.testing.assert_allclose(values, losses[0] - losses[1], atol=1e-5)
    assert np.abs(values).min() > 1e-3


def test_models_of_different_tokenizers_are_not_compared_by_token(folder, tmp_path):
    second = saved(gpt2(), tmp_path / "other")
    tokenizer = bpe()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(second)
    with pytest.raises(MetricError, match="different tokenizers"):
        measured(metrics.loss_difference(folder, second), ["text"])


def test_metrics_of_one_model_share_its_forwards():
    model = Bigrams()
    names = ["one", "two"]
    list(
        metrics.ModelMetric.compute_together(
            [metrics.loss(model, column="ids", name=name) for name in names]
            + [metrics.perplexity(model, column="ids")],
            pa.record_batch({"ids": [[1, 2, 3]]}),
            {},
        )
    )
    assert model.sizes == [(1, 2)]


def test_an_index_appends_with_the_model_of_its_folder(folder, tokenizer, tmp_path):
    first, second = TEXTS[:2], [text for text in TEXTS[4:] if text]
    made = [metrics.loss(folder), metrics.bits_per_byte(folder, max_length=20, overlap=5, batch_tokens=64)]
    index = arrowds.analyze(pa.table({"text": first}), made, tmp_path / "index", progress=False)
    index = arrowds.append(pa.table({"text": second}), tmp_path / "index", progress=False)
    for metric in made:
        assert from_spec(metric.spec()) == metric
        np.testing.assert_allclose(index[metric.name].values, measured(metric, first + second), rtol=2e-5)


def test_changed_weights_are_another_metric(folder, tokenizer, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    data = pa.table({"text": TEXTS[:3]})
    index = arrowds.analyze(data, metrics.loss(copy), tmp_path / "index", progress=False)
    (copy / "README.md").write_text("Neither this nor the state of an optimizer changes what the model is.")
    (copy / "optimizer.pt").write_bytes(b"")
    again = arrowds.analyze(data, metrics.loss(copy), tmp_path / "index", progress=False)
    assert again.version == index.version
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    saved(model, copy)
    with pytest.raises(IndexExistsError, match="defined otherwise"):
        arrowds.analyze(data, metrics.loss(copy), tmp_path / "index", progress=False)
    with pytest.raises(MetricError, match="'loss' is not what the index was made with any more"):
        arrowds.append(data, tmp_path / "index", progress=False)
    anew = arrowds.analyze(data, metrics.loss(copy), tmp_path / "index", overwrite=True, progress=False)
    assert not np.array_equal(anew["loss"].values, index["loss"].values)


def test_a_changed_tokenizer_is_another_metric(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    before = metrics.loss(copy).definition()
    tokenizer = bpe()
    tokenizer.add_tokens(["self"])
    tokenizer.save_pretrained(copy)
    assert metrics.loss(copy).definition() != before
    assert metrics.loss(copy, tokenizer).definition() == metrics.loss(folder, tokenizer).definition() != before


@pytest.mark.parametrize("make", [Bigrams, gpt2, llama])
def test_a_model_in_memory_counts_by_its_weights(make):
    model = make()
    metric = metrics.loss(model, column="ids")
    before = metric.definition()
    assert metric.spec() is None and metric.unknown == ""
    measured(metric, [[1, 2, 3]], "ids")
    if isinstance(model, Bigrams):
        model.sizes.clear()
    model.train(not model.training)
    assert metric.definition() == before == metrics.loss(make(), column="ids").definition()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 0.5  # of tens of thousands
    assert metric.definition() != before
    halves, wholes = (metrics.loss(each, column="ids") for each in (make().bfloat16(), make().bfloat16().float()))
    assert halves.definition() != wholes.definition()  # of equal weights


def test_a_model_in_memory_is_the_same_in_another_process():
    code = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from arrowds.metrics import models
torch.manual_seed(0)
config = GPT2Config(vocab_size=400, n_positions=48, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
said = models.loss(GPT2LMHeadModel(config), column="ids").definition()
"""
    here: dict[str, str] = {}
    exec(code, here)
    there = subprocess.run([sys.executable, "-c", code + "print(said)"], check=True, capture_output=True, text=True)
    assert there.stdout.splitlines()[-1] == here["said"]


def test_a_run_stays_in_one_process_unless_more_are_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("arrowds.build.engines.local._in_workers", lambda *_: pytest.fail("workers were started"))
    monkeypatch.setattr("arrowds.build.engines.local._STARTUP_SECONDS", 0.0)
    monkeypatch.setattr("arrowds.build.plan._FEWEST_ROWS", 16)  # a part for each file
    for number in range(8):
        pl.DataFrame({"text": ["some text"] * 50}).write_parquet(tmp_path / f"{number}.parquet")
    index = arrowds.analyze(str(tmp_path / "*.parquet"), metrics.loss(folder), tmp_path / "index", progress=False)
    assert len(np.unique(index["loss"].values)) < 3


def test_two_workers_load_the_model_themselves(folder, tmp_path):
    data = pa.table({"text": [SOURCE[at : at + 50] for at in range(0, 2000, 10)]})
    index = arrowds.analyze(data, metrics.loss(folder), tmp_path / "index", workers=2, progress=False)
    np.testing.assert_allclose(
        index["loss"].values, measured(metrics.loss(folder), data["text"].combine_chunks()), rtol=2e-5
    )


def test_what_is_refused(folder, tokenizer, tmp_path):
    def refused(metric, column, match, name="text"):
        with pytest.raises(MetricError, match=match):
            measured(metric, column, name)

    refused(metrics.loss(folder, max_length=CONTEXT + 1), ["text"], "at most 48 tokens")
    refused(metrics.loss(folder, max_length=8, overlap=8), ["text"], "smaller than the 8 tokens")
    refused(metrics.loss(folder, column="ids"), [[1, 400]], "token id 400", "ids")
    refused(metrics.loss(folder, column="ids"), [[1, -1]], "token id -1", "ids")
    refused(metrics.loss(folder, column="ids"), [[1.5, 2.0]], "integer token ids", "ids")
    refused(metrics.loss(folder), [3], "type int64")
    refused(metrics.bits_per_byte(folder, column="ids"), [[1, 2]], "bytes of text", "ids")
    refused(metrics.loss(gpt2()), ["text"], "needs a tokenizer")
    refused(metrics.loss(folder, bpe(bos=None)), ["text"], "no BOS or EOS")
    refused(metrics.loss(saved(gpt2(), tmp_path / "untokenized")), ["text"], "holds no tokenizer")
    refused(metrics.loss(Bigrams(), column="ids", overlap=3), [[1, 2]], "overlap needs max_length", "ids")
    refused(metrics.loss(torch.nn.Flatten(), column="ids"), [[1, 2]], r"shape \(1, 1\)", "ids")
    refused(metrics.loss(tmp_path), ["text"], "holds no model")
    for wrong in (
        lambda: metrics.loss(gpt2(), dtype="bfloat16"),
        lambda: metrics.loss(None),
        lambda: metrics.loss(lambda ids: ids),
        lambda: metrics.loss(folder, 3),
        lambda: metrics.loss(folder, max_length=0),
        lambda: metrics.loss(folder, maxlength=3),
        lambda: metrics.loss_difference(folder, None),
    ):
        with pytest.raises(MetricError):
            wrong()


def test_a_model_without_all_of_its_weights_is_refused(folder, tmp_path):
    smaller = gpt2()
    del smaller.transformer.h[1]
    saved(smaller, tmp_path / "model")
    shutil.copy(saved(gpt2(), tmp_path / "whole") / "config.json", tmp_path / "model")
    with pytest.raises(MetricError, match="lacks 12 weights"):
        measured(metrics.loss(tmp_path / "model", column="ids"), [[1, 2]], "ids")


def test_what_a_module_raises_names_the_sample(tmp_path):
    class Fails(Bigrams):
        def forward(self, ids):
            if (ids == 13).any():
                raise RuntimeError("no 13")
            return super().forward(ids)

    with pytest.raises(MetricFailedError, match=r"sample 3: no 13"):
        data = pa.table({"ids": [[1, 2], [2, 3], [4, 4, 4], [13, 1], [1, 1]]})
        arrowds.analyze(data, metrics.loss(Fails(), column="ids"), tmp_path / "index", progress=False)


@cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_gives_the_losses_of_the_cpu(tmp_path, dtype):
    for make in (gpt2, llama):
        path = saved(make(), tmp_path / make.__name__)
        rows = [[token % 400 for token in row] for row in rows_of(200, 150)]
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).float()
        expected = [reference(model, row, 32, 16) / (len(row) - 1) for row in rows]
        metric = metrics.loss(path, column="ids", max_length=32, overlap=16, dtype=dtype, batch_tokens=2000)
        close = {"rtol": 1e-3} if dtype == "float32" else {"rtol": 3e-2, "atol": 0.2}  # of one token, in the worst case
        np.testing.assert_allclose(measured(metric, rows, "ids"), expected, **close)


@cuda
def test_cuda_that_runs_out_of_memory_goes_on_with_less(caplog):
    class Large(Bigrams):
        def forward(self, ids):
            free = torch.cuda.mem_get_info()[0]
            if ids.numel() > 300:
                torch.empty(2 * free, dtype=torch.uint8, device="cuda")  # which no device has
            return super().forward(ids)

    model, rows = Large().cuda(), rows_of(200)
    values = measured(metrics.loss(model, column="ids", batch_tokens=2000), rows, "ids")
    np.testing.assert_allclose(values, bigram_losses(model.cpu(), rows), rtol=1e-4)
    assert caplog.messages


def test_the_command_line_takes_a_model_of_a_folder(folder, tmp_path):
    pl.DataFrame({"body": [text for text in TEXTS if len(text) > 5]}).write_parquet(tmp_path / "data.parquet")
    metric = ["--metric", f"bits=models.bits_per_byte:{folder}:body"]
    arguments = ["analyze", str(tmp_path / "data.parquet"), "-o", str(tmp_path / "index"), *metric]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    expected = metrics.bits_per_byte(folder, column="body").compute(
        pl.read_parquet(tmp_path / "data.parquet").to_arrow().to_batches()[0], {}
    )
    np.testing.assert_allclose(arrowds.open_index(tmp_path / "index")["bits"].values, expected.to_numpy(), rtol=1e-6)
    assert CliRunner().invoke(app, [*arguments[:-1], "models.none:x"]).exit_code == 2

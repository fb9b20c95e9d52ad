"""The loss of a model: tokens per second, beside one sample at a time and padded batches in the order of the file.

python tests/benchmarks/bench_models.py [--device cuda --dtype bfloat16 --hidden 2048 --layers 16] [--samples 4000]

A Llama with random weights measures random ids, whose lengths are lognormal (median 200, longest 2048). All three run
in this process on the same samples, of which the slower ones take as many as --peer-samples. Tokens are those that are
predicted. The peers take the loss from logits as transformers does, in float32; batches have --rows samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from arrowds.metrics import models

LONGEST = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8_000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--peer-samples", type=int, default=100)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    given = parser.parse_args()
    model = llama(given.hidden, given.layers, given.vocabulary).to(given.device, getattr(torch, given.dtype)).eval()
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(200), 1, given.samples), 2, LONGEST).astype(int)
    rows = [generator.integers(0, given.vocabulary, length) for length in lengths]
    parameters = sum(tensor.numel() for tensor in model.parameters()) / 1e6
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"{parameters:,.0f} M parameters, {given.dtype}, {name}; {given.samples:,} samples, {lengths.sum():,} tokens")

    batch = pa.record_batch({"input_ids": pa.array(rows)})
    metric = models.loss(model, column="input_ids", batch_tokens=given.batch_tokens)
    rows_of_peers = rows[: given.peer_samples]
    ways: dict[str, tuple[list[np.ndarray], Callable[[list[np.ndarray]], np.ndarray]]] = {
        "one sample at a time": (rows_of_peers, lambda some: padded_losses(model, some, 1)),
        f"batches of {given.rows}": (rows_of_peers, lambda some: padded_losses(model, some, given.rows)),
        "arrowds": (rows, lambda some: np.array(metric.compute(batch.slice(0, len(some)), {}))),
    }
    rates, losses = {}, {}
    for way, (some, measure) in ways.items():
        measure(some[: 2 * given.rows])  # the first forwards also load kernels
        began = time.perf_counter()
        losses[way] = measure(some)  # ends with a copy to the host, so that the device is done
        rates[way] = sum(len(row) - 1 for row in some) / (time.perf_counter() - began)
    for way, rate in rates.items():
        most = np.abs(losses[way][: given.peer_samples] - losses["one sample at a time"]).max()
        print(
            f"{way:22} {rate:12,.0f} tokens/s   arrowds is {rates['arrowds'] / rate:6.2f} times as fast, {most:.1e} off"
        )


def llama(hidden: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=LONGEST,
        )
    )


@torch.no_grad()
def padded_losses(model: LlamaForCausalLM, rows: list[np.ndarray], size: int) -> np.ndarray:
    """Batches in the order of the file, padded, with a mask, as the usual loop over a DataLoader has them."""
    found = []
    for start in range(0, len(rows), size):
        some = [torch.from_numpy(row) for row in rows[start : start + size]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(model.device)
        lengths = torch.tensor([len(row) for row in some], device=model.device)
        mask = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
        logits = model(ids, attention_mask=mask.long(), use_cache=False).logits.float()
        targets = ids.masked_fill(~mask, -100)[:, 1:]
        nats = cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
        found.append((nats.sum(dim=1) / (lengths - 1)).cpu())
    return torch.cat(found).numpy()


if __name__ == "__main__":
    main()

"""Token-budget batching: CPU seconds, growth and fill, beside DeepSpeed's batch_by_seqlens on what it can manage.

    python tests/benchmarks/bench_batching.py [--samples 1000000] [--large 10000000]

Both sides are single-threaded, so that CPU seconds are what an idle machine takes. DeepSpeed's time grows with the cube
of the samples, so that it is run on 1000 and 2000 of the same lengths.
"""

import argparse
import logging
import resource
import statistics
import time
import warnings

import numpy as np

from arrowds.token_batches.plan import batch_by_tokens

BUDGET = 16384


def lognormal(samples):
    drawn = np.random.default_rng(0).lognormal(np.log(245), 0.9, samples)
    return np.clip(drawn, 1, 2048).astype(np.int64)


def median_seconds(work, rounds=5):
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def deepspeed_fill(batches, lengths):
    tokens = sum(int(lengths[ids].sum()) for _, ids in batches)
    return tokens / (BUDGET * len(batches))


def against_deepspeed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.data_pipeline.data_sampling.variable_batch_size_and_lr import batch_by_seqlens
    for samples in (1000, 2000):
        lengths = lognormal(samples)
        listed = lengths.tolist()
        pairs = []
        for _ in range(3):  # alternating
            theirs, result = median_seconds(lambda listed=listed: batch_by_seqlens(listed, BUDGET), rounds=1)
            ours, plan = median_seconds(lambda lengths=lengths: batch_by_tokens(lengths, BUDGET))
            pairs.append(theirs / ours)
        print(
            f"{samples} samples: DeepSpeed {theirs:.3f} s, fill {deepspeed_fill(result[0], lengths):.4f}; "
            f"arrowds {statistics.median(pairs):.0f} times faster, fill {plan.fill:.4f}"
        )


def every_mode(samples):
    lengths = lognormal(samples)
    print(f"\n{samples} samples, CPU seconds and fill")
    for order in ("random", "dataloader", "seqlen"):
        for packing in ("best_fit", "sequential"):
            for padded in (False, True):
                seconds, plan = median_seconds(
                    lambda order=order, packing=packing, padded=padded: batch_by_tokens(
                        lengths, BUDGET, order=order, packing=packing, padded=padded
                    ),
                    rounds=3,
                )
                print(
                    f"  {order:10} {packing:10} {'padded' if padded else 'sum':6} {seconds:.3f} s  "
                    f"fill {plan.fill:.4f}  {len(plan)} batches"
                )


def growth(samples, large):
    small_seconds, small = median_seconds(lambda: batch_by_tokens(lognormal_small, BUDGET))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lengths = lognormal(large)
    seconds, plan = median_seconds(lambda: batch_by_tokens(lengths, BUDGET), rounds=3)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(
        f"\n{samples} samples {small_seconds:.3f} s (fill {small.fill:.4f}), {large} samples {seconds:.3f} s "
        f"(fill {plan.fill:.4f}): {seconds / small_seconds:.1f} times for {large / samples:.0f} times the samples; "
        f"peak {peak / large:.0f} bytes a sample, its length included"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    against_deepspeed()
    every_mode(arguments.samples)
    lognormal_small = lognormal(arguments.samples)
    growth(arguments.samples, arguments.large)

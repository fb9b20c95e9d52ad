import contextlib
import io
import json
import statistics
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowds.errors import ConfigError
from arrowds.stats.aio import RULES, SCHEMA, best, check_config, deepspeed_config, plot, rank, read_logs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*")  # raised while DeepSpeed is imported

SWEEP = Path(__file__).parent / "fixtures" / "sweep"
ODD = Path(__file__).parent / "fixtures" / "odd"


def logs(*rows: tuple[str, int, float], **same: object) -> pa.Table:
    setting = {
        "block_size_bytes": 1 << 20,
        "io_parallel": 1,
        "processes": 1,
        "single_submit": False,
        "overlap_events": True,
        "gpu": False,
        "use_gds": False,
        "status": "ok",
    }
    return pa.Table.from_pylist(
        [
            setting | same | {"operation": op, "queue_depth": depth, "e2e_speed_gib_s": speed}
            for op, depth, speed in rows
        ],
        schema=SCHEMA,
    )


measured = st.lists(
    st.tuples(st.sampled_from(["read", "write"]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0.5, 1.0, 2.0, 7.0])),
    max_size=30,
)


@given(rows=measured, by=st.sampled_from(RULES))
def test_the_ranking_is_the_one_that_counting_by_hand_gives(rows: list[tuple[str, int, float]], by: str) -> None:
    speeds = {
        op: {
            depth: statistics.median(of_both)
            for depth in (1, 2, 4, 8)
            if (of_both := [speed for o, d, speed in rows if (o, d) == (op, depth)])
        }
        for op in ("read", "write")
    }
    scores = {}
    for depth in (1, 2, 4, 8):
        read, write = speeds["read"].get(depth), speeds["write"].get(depth)
        if by == "both" and read and write:
            product = read / max(speeds["read"].values()) * (write / max(speeds["write"].values()))
            scores[depth] = product**0.5
        elif by == "sum" and read and write:
            scores[depth] = read + write
        elif by in {"read_speed", "write_speed"} and (speed := read if by == "read_speed" else write):
            scores[depth] = speed
    if not scores:
        with pytest.raises(ConfigError, match="no setting has"):
            best(logs(*rows), by=by)
        return
    expected = sorted(scores, key=lambda depth: (-scores[depth], depth))
    ranked = rank(logs(*rows), by=by)
    assert ranked["queue_depth"].to_pylist() == expected
    assert ranked["score"].to_pylist() == pytest.approx([scores[depth] for depth in expected])
    assert best(logs(*rows), by=by).queue_depth == expected[0]


def test_the_median_ignores_one_lucky_run() -> None:
    table = logs(("read", 4, 1.0), ("read", 4, 1.1), ("read", 4, 50.0), ("read", 8, 2.0), ("read", 8, 2.1))
    setting = best(table, by="read_speed")
    assert (setting.queue_depth, setting.read_speed_gib_s, setting.read_logs) == (8, pytest.approx(2.05), 2)


def test_the_geometric_mean_is_fair_to_the_slow_direction_where_the_sum_is_not() -> None:
    table = logs(("read", 4, 9.0), ("write", 4, 1.0), ("read", 8, 7.0), ("write", 8, 2.0))
    assert best(table).queue_depth == 8
    assert best(table, by="sum").queue_depth == 4


def test_a_tie_goes_to_the_cheapest_setting_whatever_the_order() -> None:
    rows = [
        logs(("read", depth, 2.0), io_parallel=parallel, block_size_bytes=block, single_submit=single)
        for depth, parallel, block, single in (
            (8, 1, 4096, False),
            (4, 2, 4096, False),
            (4, 1, 8192, False),
            (4, 1, 4096, True),
            (4, 1, 4096, False),
        )
    ]
    for order in (rows, rows[::-1]):
        setting = best(pa.concat_tables(order), by="read_speed")
        found = (setting.io_parallel, setting.queue_depth, setting.block_size_bytes, setting.single_submit)
        assert found == (1, 4, 4096, False)


def test_bad_logs_and_other_engines_do_not_count() -> None:
    good = logs(("read", 4, 1.0))
    for other in (logs(("read", 8, 9.0), status="bad_result"), logs(("read", 8, 9.0), engine="torch_io")):
        assert best(pa.concat_tables([good, other]), by="read_speed").queue_depth == 4


def test_devices_and_sizes_are_not_mixed_into_one_median() -> None:
    table = pa.concat_tables([logs(("read", 4, 1.0), target="/slow:0"), logs(("read", 4, 5.0), target="/fast:0")])
    ranked = rank(table, by="read_speed")
    assert ranked.select(["target", "score"]).to_pylist() == [
        {"target": "/fast:0", "score": 5.0},
        {"target": "/slow:0", "score": 1.0},
    ]


def test_logs_of_the_older_scripts_pair_reads_with_writes_although_only_writes_name_a_size(tmp_path: Path) -> None:
    common = "block_size='1M', queue_depth=4, threads=1, single_submit=False, overlap_events=True, io_parallel=1"
    for operation, rest in (("read", "read_file='x'"), ("write", "write_file='x', write_size='400M'")):
        text = f"args = Namespace({common}, {rest})\nE2E {operation.title()} Speed = 2.0 GB/sec\n"
        (tmp_path / f"{operation}_block_overlap_t1_p1_d4_bs1M.txt").write_text(text)
    setting = best(read_logs(tmp_path))
    assert (setting.read_logs, setting.write_logs, setting.score) == (1, 1, 1.0)


def test_by_sum_the_choice_is_the_one_of_deepspeeds_tuner() -> None:
    from deepspeed.nvme.perf_generate_param import generate_main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        generate_main(str(SWEEP))
    theirs = json.loads(printed.getvalue().split("\n", 1)[1])["aio"]
    ours = deepspeed_config(read_logs(SWEEP), by="sum")["aio"]
    assert (ours["block_size"], ours["queue_depth"]) == (theirs["block_size"], theirs["queue_depth"])
    assert ours["intra_op_parallelism"] == theirs["num_threads"]
    assert (ours["single_submit"], ours["overlap_events"]) == (False, True)
    assert (theirs["single_submit"], theirs["overlap_events"]) == ("false", "true")


def test_deepspeeds_own_configuration_reads_the_block_as_it_is_meant() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    table = logs(("read", 9, 1.0), block_size_bytes=3 << 20, io_parallel=6, single_submit=True, overlap_events=False)
    block = deepspeed_config(table, by="read_speed")
    check_config(block)
    loaded = DeepSpeedConfig(json.loads(json.dumps({"train_batch_size": 1} | block))).aio_config
    assert loaded == {
        "block_size": 3 << 20,
        "queue_depth": 9,
        "intra_op_parallelism": 6,
        "single_submit": True,
        "overlap_events": False,
        "use_gds": False,
    }
    assert deepspeed_config(best(table, by="read_speed")) == block


def test_a_block_that_deepspeed_misreads_is_refused() -> None:
    block = deepspeed_config(logs(("read", 4, 1.0)), by="read_speed")
    block["aio"]["num_threads"] = 8  # type: ignore[typeddict-unknown-key]  # the key that DeepSpeed's own tuner prints
    with pytest.raises(ConfigError, match="DeepSpeed reads num_threads as None, expected 8"):
        check_config(block)


def test_what_can_not_be_ranked_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="by is 'speed', expected one of both"):
        best(logs(("read", 4, 1.0)), by="speed")
    with pytest.raises(ConfigError, match=r"no setting has both a read and a write log.* 1 reads and 0 writes"):
        best(logs(("read", 4, 1.0)))
    with pytest.raises(ConfigError, match="do not say block_size_bytes"):
        deepspeed_config(logs(("read", 4, 1.0), block_size_bytes=None), by="read_speed")


def test_the_picture_is_drawn_from_good_logs_alone(tmp_path: Path) -> None:
    plot(pa.concat_tables([read_logs(SWEEP), read_logs(ODD)]), tmp_path / "new" / "aio.svg")
    assert (tmp_path / "new" / "aio.svg").read_text().count("<svg") == 1
    with pytest.raises(ConfigError, match="none of the 1 logs has a result"):
        plot(logs(("read", 4, 1.0), status="failed"), tmp_path / "aio.png")
    with pytest.raises(ConfigError, match=r"aio\.doc can't be drawn"):
        plot(read_logs(SWEEP), tmp_path / "aio.doc")

"""Work shared by processes: two of them, on CPUs, in one group."""

from datetime import timedelta

import pytest
import torch

from mde_utils import processes
from mde_utils.processes import add_in_order, gather, rank_and_world, sum_over_processes

TASKS = range(7)


def parts_of(task):
    """Up to five parts, whose sum depends on the order; task 4 has none."""
    g = torch.Generator().manual_seed(task)
    for i in range((task + 2) % 6):
        yield {"all": torch.rand(50, generator=g).double() / 3, f"task {task}": torch.tensor(i)}


def one_by_one():
    total = {}
    for task in TASKS:
        for part in parts_of(task):
            for key, value in part.items():
                total[key] = total.get(key, 0) + value
    return total


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_one_process_alone():
    assert rank_and_world() == rank_and_world(False) == (0, 1)
    assert gather("own") == ["own"]
    assert_same(add_in_order(parts_of, TASKS), one_by_one())
    assert add_in_order(parts_of, []) == {}
    for call in (rank_and_world, lambda d: add_in_order(parts_of, TASKS, distributed=d)):
        with pytest.raises(ValueError, match="accelerate launch"):
            call(True)


def test_the_order_of_additions_tells_in_these_parts():
    for order in (TASKS[::-1], [1, 0, 3, 2, 5, 4, 6], [*TASKS[::2], *TASKS[1::2]]):
        assert not torch.equal(add_in_order(parts_of, order)["all"], one_by_one()["all"])


def test_a_failure_in_one_process_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        add_in_order(lambda task: [{"x": torch.tensor(1 // (3 - task))}], TASKS)


def _one_of_two(rank, address):
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    assert rank_and_world() == rank_and_world(True) == (rank, 2)
    assert rank_and_world(False) == (0, 1)
    assert gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    _check_adding(rank)
    _check_failures(rank)
    _check_sums(rank)
    torch.distributed.destroy_process_group()


def _check_adding(rank):
    bars = []
    processes.progress = lambda rounds, **options: bars.append(options) or rounds
    assert_same(add_in_order(parts_of, TASKS, desc="work"), one_by_one())
    assert bars == [{"desc": "work"}] * (rank == 0)
    done = []
    add_in_order(lambda task: done.append(task) or [], TASKS)
    assert done == list(TASKS)[rank::2]
    assert add_in_order(parts_of, []) == {}
    if rank == 1:
        assert_same(add_in_order(parts_of, TASKS, distributed=False), one_by_one())


def _check_failures(rank):
    def fail(task):
        yield {"x": torch.ones(1)}
        if task in failing:
            raise KeyError(f"no task {task}")

    failing = [3]  # the second round of process 1
    with pytest.raises(KeyError if rank == 1 else RuntimeError, match="no task 3") as caught:
        add_in_order(fail, TASKS)
    if rank == 0:
        assert "Process 1 of 2 failed: KeyError" in str(caught.value)
    failing = [4, 5]  # both at once: each shows its own
    with pytest.raises(KeyError, match=f"no task {4 + rank}"):
        add_in_order(fail, TASKS)
    failing = [6]  # process 1 has no task in the last round
    with pytest.raises(KeyError if rank == 0 else RuntimeError, match="no task 6"):
        add_in_order(fail, TASKS)
    failing = []  # the processes are still in step
    assert add_in_order(fail, TASKS)["x"].item() == len(TASKS)


def _check_sums(rank):
    data = torch.tensor([[2.0, 3.0], [5.0, 7.0]], dtype=torch.float64)  # a row a process

    def loss(weight, rows, total):
        response, count = total([(weight * rows).sum(0), torch.tensor(len(rows)).double()])
        assert response.shape == (2,) and count.shape == () and not count.requires_grad
        return ((response / count) ** 2).sum()

    alone = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    expected = loss(alone, data, lambda values: values)
    expected.backward()
    weight = alone.detach().clone().requires_grad_()
    shared = loss(weight, data[rank : rank + 1], sum_over_processes)
    shared.backward()
    assert shared.item() == expected.item()
    mean = alone.detach() * data.mean(0)
    torch.testing.assert_close(weight.grad, 2 * mean / 2 * data[rank] * 2)  # times both processes
    torch.testing.assert_close(sum(gather(weight.grad)) / 2, alone.grad)


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (f"file://{tmp_path / 'meet'}",), nprocs=2)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjac.planning import chunks
from torchjac.planning.chunks import available_memory, bytes_per_pass, choose_chunk_size

CPU = torch.device("cpu")
MIB = 2**20
PASSES = st.integers(0, 10**5)
BYTES = st.integers(0, 2**40)


@pytest.fixture
def free(monkeypatch):
    """Say how much memory there is."""

    def say(amount):
        monkeypatch.setattr(chunks, "available_memory", lambda device: amount)

    return say


@given(PASSES, BYTES)
def test_a_chunk_has_from_one_to_all_seeds(passes, size):
    assert 1 <= choose_chunk_size(passes, size, CPU) <= max(passes, 1)


@given(PASSES, BYTES, BYTES)
def test_larger_passes_never_make_larger_chunks(passes, size, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "available_memory", lambda device: 2**30)
        smaller, larger = sorted((size, more))
        assert choose_chunk_size(passes, larger, CPU) <= choose_chunk_size(passes, smaller, CPU)


@given(PASSES, BYTES, BYTES, BYTES)
def test_more_memory_never_makes_smaller_chunks(passes, size, free, more):
    sizes = []
    for amount in sorted((free, more)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "available_memory", lambda device, amount=amount: amount)
            sizes.append(choose_chunk_size(passes, size, CPU))
    assert sizes == sorted(sizes)


@given(PASSES, st.integers(1, 2**30), st.integers(64 * MIB, 2**40))
def test_a_chunk_of_several_seeds_fits_into_half_of_what_is_free(passes, size, free):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "available_memory", lambda device: free)
        chunk = choose_chunk_size(passes, size, CPU)
    assert chunk == 1 or chunk * size <= free / 2


def test_what_is_small_is_never_divided_and_never_measured(monkeypatch):
    def refuse(device):
        raise AssertionError("asking the system costs more than a small pass")

    monkeypatch.setattr(chunks, "available_memory", refuse)
    assert choose_chunk_size(100, 8, CPU) == 100
    assert choose_chunk_size(16, MIB, CPU) == 16


def test_a_machine_that_is_full_still_gets_one_seed_at_a_time(free):
    free(0)
    assert choose_chunk_size(100, MIB, CPU) == 1


def test_on_a_cpu_a_chunk_stays_small_however_much_memory_there_is(free):
    free(2**50)
    assert 32 < choose_chunk_size(10**4, MIB, CPU) <= 64


def test_on_a_gpu_a_chunk_takes_what_there_is(free):
    free(2**34)
    most = 2**33 // MIB
    assert 0.99 * most < choose_chunk_size(10**6, MIB, torch.device("cuda")) <= most


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 8))
def test_a_pass_holds_its_largest_result_and_its_row(largest, elements, itemsize):
    assert bytes_per_pass(largest, elements, itemsize) >= largest + elements * itemsize


def test_memory_is_read_from_the_system():
    assert MIB < available_memory(CPU) < 2**50


def test_memory_is_guessed_where_the_system_does_not_tell(monkeypatch):
    def missing(*args, **kwargs):
        raise OSError

    monkeypatch.setattr("builtins.open", missing)
    assert available_memory(CPU) > MIB
    monkeypatch.setattr(chunks.os, "sysconf", missing)
    assert available_memory(CPU) == 1024 * MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_of_a_gpu_is_its_own():
    device = torch.device("cuda", 0)
    assert 0 < available_memory(device) <= torch.cuda.get_device_properties(device).total_memory


def test_chunks_that_evaluate_anew_are_of_eight_seeds_if_that_is_not_too_much(free):
    free(2**40)
    sizes = {
        size: choose_chunk_size(100, size * MIB, CPU, anew=True) for size in (4, 16, 32, 128, 512)
    }
    assert {size: choose_chunk_size(100, size * MIB, CPU) for size in sizes} == {
        4: 10,
        16: 2,
        32: 1,
        128: 1,
        512: 1,
    }
    assert sizes == {4: 10, 16: 8, 32: 8, 128: 2, 512: 1}

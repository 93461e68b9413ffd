"""What only a GPU can show of the encoders: CUDA graphs, their branches, streams, threads, moves."""

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@torch.inference_mode()
@pytest.mark.parametrize("part", ["vision", "audio", "face"])
def test_encoders_replay_their_graphs(part):
    """Other inputs, another shape in between, a move: always what the plain forward gives."""
    import nanoemox

    encoder = getattr(nanoemox.load("demo", fast=True, dtype="float32", device="cuda"), part)
    shape = (1, 2, 32000) if part == "audio" else (1, 2, 3, 224, 224)
    inputs = [torch.rand(shape, device="cuda") for _ in range(4)]

    def tensors(out):
        return out if isinstance(out, tuple) else (out,)

    for moved in (False, True):
        if moved:
            encoder.to(torch.bfloat16)
        got = [tensors(encoder(x)) for x in (*inputs, inputs[0][:, :1], *inputs)][-4:]
        assert any(graph is not None for graph in encoder._graphs._by_shape.values())
        encoder.replays = False
        for out, x in zip(got, inputs, strict=True):
            for g, w in zip(out, tensors(encoder(x)), strict=True):
                torch.testing.assert_close(g, w, rtol=1e-2 if moved else 1e-4, atol=1e-2 if moved else 1e-4)
        encoder.replays = True


def clips(*batches):
    """frames and audio of random clips."""
    for B in batches:
        yield torch.rand(B, 8, 3, 224, 224, device="cuda") * 255, torch.rand(B, 8, 32000, device="cuda")


@pytest.fixture
def model():
    import nanoemox

    with torch.inference_mode():
        yield nanoemox.load("demo", fast=True, dtype="float32", device="cuda")


def plain(model, *inputs):
    """One kernel after the other, without a graph."""
    model.replays = model.vision.replays = model.audio.replays = model.face.replays = False
    try:
        return model.encode_streams(*inputs)
    finally:
        model.replays = model.vision.replays = model.audio.replays = model.face.replays = True


def same(got, want):
    for name in ("visual", "speech", "face", "fusion", "gates", "face_attention"):
        actual, expected = getattr(got, name), getattr(want, name)
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert got.features.keys() == want.features.keys()


def test_streams_are_encoded_side_by_side(model):
    """Other inputs, sizes and missing streams in turn, on two streams, and in a caller's graph."""
    inputs = [*clips(1, 1, 3, 1)]
    inputs += [(inputs[0][0], None), (None, inputs[0][1])]
    want = [plain(model, *arguments) for arguments in inputs]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for turn in range(5 * len(inputs)):
        with torch.cuda.stream(side if turn % 3 == 2 else torch.cuda.current_stream()):
            same(model.encode_streams(*inputs[turn % len(inputs)]), want[turn % len(inputs)])
    assert sum(graph is not None for graph in model._graphs._by_shape.values()) == 4
    arguments = [t.clone() for t in inputs[0]]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = model.encode_streams(*arguments)
    for new_inputs, expected in zip(inputs[:2], want, strict=False):
        for buffer, t in zip(arguments, new_inputs, strict=True):
            buffer.copy_(t)
        graph.replay()
        same(got, expected)


def test_threads_encode_at_once(model):
    """Each on its stream, none waiting for its results before the next call."""
    from concurrent.futures import ThreadPoolExecutor

    inputs = [*clips(1, 2, 1, 8)]
    want = [plain(model, *arguments) for arguments in inputs]
    torch.cuda.synchronize()

    def encode(number):
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            got = [model.encode_streams(*inputs[number]) for _ in range(10)]
            torch.cuda.current_stream().synchronize()
        return got

    with ThreadPoolExecutor(4) as pool:
        for number, got in enumerate(pool.map(encode, range(4))):
            for encoded in got:
                same(encoded, want[number])


def test_a_part_that_was_moved_is_captured_anew(model):
    from copy import deepcopy

    (arguments,) = clips(1)
    want = plain(model, *arguments)
    for change in (
        lambda m: m,
        lambda m: m.fusion.to("cpu").to("cuda"),
        lambda m: m.vision.to("cpu").to("cuda"),
    ):
        change(model)
        for _ in range(4):
            same(model.encode_streams(*arguments), want)
    twin = deepcopy(model)
    with torch.no_grad():
        for parameter in twin.audio_branch.parameters():
            parameter.mul_(2)
    for _ in range(4):
        same(model.encode_streams(*arguments), want)
        twice = twin.encode_streams(*arguments)
    same(twice, plain(twin, *arguments))

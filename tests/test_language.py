"""load_language: Hugging Face folders of every shape, in the reference form and on the decode engine."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import nanoemox
from nanoemox.errors import CheckpointError, UsageError

SIZES = dict(
    vocab_size=300, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
    pad_token_id=None,
)  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
CASES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen2 untied": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama, biases": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama, yarn": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=YARN)),
    "llama 3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama, wide heads": (LlamaForCausalLM, LlamaConfig(**SIZES, head_dim=48)),
}


def saved(folder, case, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = CASES[case][0](CASES[case][1]).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2) if "norm" not in name and "bias" not in name else parameter.add_(
                0.1 * torch.randn_like(parameter)
            )
    model.save_pretrained(folder, **options)
    return model


def generated(model, ids, count):
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(ids) :].tolist()


@torch.inference_mode()
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_hugging_faces(case, fast, tmp_path):
    model = saved(tmp_path, case)
    language = nanoemox.load_language(tmp_path, fast=fast, dtype="float32", device="cpu")
    assert (type(language.model).__name__ == "EngineLanguage") == fast
    prompts = [[1, 2, 3], list(range(40, 60)), [7]]
    expected = [generated(model, prompt, 20) for prompt in prompts]
    assert [language.generate(prompt, max_new_tokens=20)[0] for prompt in prompts] == expected
    assert language.generate(prompts, max_new_tokens=20) == expected  # a batch of different lengths
    embeds = [model.model.embed_tokens(torch.tensor(prompt)) for prompt in prompts]
    assert language.generate(embeds, max_new_tokens=20) == expected
    assert language.generate(embeds[0], max_new_tokens=20) == expected[:1]
    assert language.generate(torch.tensor([prompts[0], prompts[0]]), max_new_tokens=20) == [
        expected[0],
        expected[0],
    ]


def test_files_in_pieces_and_other_dtypes(tmp_path):
    model = saved(tmp_path, "qwen2 untied", torch.bfloat16, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu")
    assert language.generate([5, 6], max_new_tokens=8)[0] == generated(model.float(), [5, 6], 8)
    assert nanoemox.load_language(tmp_path, dtype="bfloat16", device="cpu").generate([5, 6], max_new_tokens=3)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised(quantize, tmp_path):
    saved(tmp_path, "llama, biases")
    exact = nanoemox.load_language(tmp_path, dtype="float32", device="cpu")
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu", quantize=quantize)
    assert language.model.nbytes < exact.model.nbytes
    ids = torch.arange(20)[None]
    logits = [model.start(model.embed(ids))[0] for model in (exact.model, language.model)]
    assert (logits[1] - logits[0]).norm() < {"int8": 0.03, "int4": 0.35}[quantize] * logits[0].norm()
    assert len(language.generate([[1], [2, 3]], max_new_tokens=4)) == 2


def test_stop_ids_streaming_sampling_and_cancelling(tmp_path):
    saved(tmp_path, "qwen2")
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu")
    answer = language.generate([1, 2], max_new_tokens=12)[0]
    cut = language.generate([1, 2], max_new_tokens=12, eos_ids=[answer[4]])[0]
    assert cut == answer[: answer.index(answer[4]) + 1]
    streamed = []
    language.generate([[1, 2], [3]], max_new_tokens=3, stream=lambda i, token: streamed.append((i, token)))
    assert [token for i, token in streamed if i == 0] == answer[:3] and len(streamed) == 6
    samples = {
        tuple(language.generate([1, 2], max_new_tokens=8, temperature=2.0, seed=s)[0]) for s in (1, 1, 2, 3)
    }
    assert 2 <= len(samples) <= 3
    assert language.generate([1, 2], max_new_tokens=8, temperature=2.0, top_k=1)[0] == answer[:8]
    steps = iter([False, False, True])
    assert len(language.generate([1, 2], max_new_tokens=12, cancelled=lambda: next(steps))[0]) == 3

    class Stop(Exception):
        pass

    def stop(i, token):
        raise Stop

    for _ in range(3):
        with pytest.raises(Stop):
            language.generate([1, 2], stream=stop)
    assert not language.model._used_slots  # no slot is lost
    assert language.generate([1, 2], max_new_tokens=12)[0] == answer


def test_shared_beginnings_change_nothing(tmp_path):
    saved(tmp_path, "llama")
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu").model
    prompts = [language.embed(torch.arange(20) + i) for i in range(3)]
    shared = language.embed(torch.arange(100, 130))
    batch, state = language.start(prompts, shared)
    for row, prompt in enumerate(prompts):
        alone, _ = language.start([torch.cat([shared, prompt])])
        torch.testing.assert_close(batch[row], alone[0], rtol=1e-4, atol=1e-4)
    step = language.step(torch.tensor([1, 2, 3]), state)
    language.keep(state, [2])
    assert state.positions == [51] and step.shape == (3, 300)


def test_threads_take_turns(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    saved(tmp_path, "qwen2")
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu")
    expected = [language.generate([i, i + 1], max_new_tokens=10) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert (
            list(pool.map(lambda i: language.generate([i, i + 1], max_new_tokens=10), range(6))) == expected
        )


def test_wrong_inputs_and_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        nanoemox.load_language(tmp_path / "nowhere")
    saved(tmp_path, "qwen2")
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu")
    for prompts, message in (
        ([], None),
        ([[]], "prompt 0 has 0 tokens"),
        ([300], "0 to 299"),
        ([-1], "0 to 299"),
    ):
        if message is None:
            assert language.generate(prompts) == []
        else:
            with pytest.raises(ValueError, match=message):
                language.generate(prompts)
    with pytest.raises(ValueError, match="128 positions"):
        language.generate([1], max_new_tokens=128)
    with pytest.raises(ValueError, match=r"rows \[L, 128\], got \[1, 3\]"):
        language.generate(torch.zeros(1, 3))
    with pytest.raises(UsageError, match="max_new_tokens"):
        language.generate([1], max_new_tokens=0)
    with pytest.raises(UsageError, match="use int8 or int4"):
        nanoemox.load_language(tmp_path, quantize="int2")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up" not in name}, file)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        nanoemox.load_language(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        nanoemox.load_language(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2' is not supported"):
        nanoemox.load_language(tmp_path)


def test_products_see_few_numbers_of_rows(tmp_path, monkeypatch):
    """PyTorch keeps a compiled product for each: prompts of every length would fill memory."""
    from nanoemox.fast.decode import prefill

    saved(tmp_path, "qwen2")
    language = nanoemox.load_language(tmp_path, dtype="float32", device="cpu")
    multiply, row_counts = prefill.multiply, set()

    def counting_multiply(x, *weights):
        row_counts.add(len(x))
        return multiply(x, *weights)

    monkeypatch.setattr(prefill, "multiply", counting_multiply)
    for length in range(1, 101, 9):
        language.generate([list(range(length)), [1, 2, 3]], max_new_tokens=1)
    assert row_counts and row_counts <= {32, 64, 96, 128}

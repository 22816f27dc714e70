"""Hugging Face folders: every dialect, every silent shape, every kind of damage."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file
from support import SMALL, assert_close, random_model, tokens_for

import griffin_np as gnp
from griffin_conformance.envelope import longest_chain
from griffin_conformance.strategies import configurations
from griffin_conformance.worlds import draw_parameters
from griffin_np.checkpoints.files import SafetensorsFile
from griffin_np.checkpoints.hf_config import config_from_json, config_to_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.errors import CheckpointError
from griffin_np.params import flatten, parameter_shapes

TWO_B = {
    "_block_types": ["recurrent", "recurrent", "attention"], "attention_bias": False,
    "attention_window_size": 2048, "conv1d_width": 4, "embeddings_scale_by_sqrt_dim": True,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560,
    "intermediate_size": 15360, "logits_soft_cap": 30.0, "lru_width": 2560,
    "model_type": "recurrent_gemma", "num_attention_heads": 10, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "vocab_size": 256000,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def without(values: dict, *keys: str) -> dict:
    return {k: v for k, v in values.items() if k not in keys}


DIALECTS = {
    "as released": TWO_B,
    "9B style: block_types, no scale key": {
        **without(TWO_B, "_block_types", "embeddings_scale_by_sqrt_dim"),
        "block_types": TWO_B["_block_types"],
    },
    "both pattern keys": {**TWO_B, "block_types": TWO_B["_block_types"]},
    "neither pattern key": without(TWO_B, "_block_types"),
    "transformers 5: rope_parameters": {
        **without(TWO_B, "rope_theta", "partial_rotary_factor"),
        "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "a decoy that nothing reads": {**TWO_B, "rotary_emb_base": 50000.0},
    "several end tokens": {**TWO_B, "eos_token_id": [1, 107]},
    "named by its architecture": {
        **without(TWO_B, "model_type"), "architectures": ["RecurrentGemmaForCausalLM"]
    },
    "width of the recurrence left out": without(TWO_B, "lru_width"),
    "nulls": {**TWO_B, "lru_width": None, "rope_scaling": None, "pad_token_id": None},
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_of_config_json_means_2b(dialect):
    """Traps T25 and T26."""
    assert config_from_json(DIALECTS[dialect]) == gnp.PRESETS["recurrentgemma-2b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "this is 'gemma', not 'recurrent_gemma'"),
        ({"model_type": None}, "this is 'no model_type'"),
        ({"hidden_size": None}, r"keys \['hidden_size'\] are missing"),
        ({"hidden_size": "2560"}, "hidden_size must be an integer, got '2560'"),
        ({"intermediate_size": 15361}, "intermediate_size must be even"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported"),
        ({"attention_bias": True}, "attention_bias true is not supported"),
        ({"head_dim": 128}, "head_dim 128 is not hidden_size / num_attention_heads"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_theta": 5e4}}, "keys that mean the same differ"),
        ({"block_types": ["recurrent"]}, "keys that mean the same differ"),
        ({"_block_types": ["mamba"]}, "block_pattern must be"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised by 'bitsandbytes'"),
        ({"quantization_config": "gptq"}, "quantization_config must be a JSON dict, got 'gptq'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be a JSON dict"),
        ({"architectures": "RecurrentGemmaForCausalLM"}, "architectures must be a JSON list"),
        ({"num_key_value_heads": 3}, "num_heads 10 is not divisible by num_kv_heads 3"),
        ({"eos_token_id": 256000}, "eos_id must be a token id"),
    ],
)
def test_configs_of_other_models_are_refused_by_key(change, message):
    with pytest.raises(CheckpointError, match=message):
        config_from_json({**TWO_B, **change})


def test_cap_null_and_zero_mean_no_cap():
    assert config_from_json({**TWO_B, "logits_soft_cap": None}).logits_soft_cap == 0
    assert config_from_json({**TWO_B, "logits_soft_cap": 0.0}).logits_soft_cap == 0


@settings(max_examples=50)
@given(configurations())
def test_configurations_survive_config_json(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config, "float32")))) == config


def write_folder(folder, config, tensors, split=None, **changes):
    """A folder as other programs write it, without our own writer."""
    folder.mkdir(exist_ok=True)
    values = {**config_to_json(config, "float32"), **changes}
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    if split is None:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for i, names in enumerate(np.array_split(sorted(tensors), split)):
        file = f"model-{i + 1:05d}-of-{split:05d}.safetensors"
        save_file({n: tensors[n] for n in names.tolist()}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names.tolist(), file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def hf_tensors(p, config) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint, spelled out name by name, from flat parameters."""
    out = {
        "model.embed_tokens.weight": p["embedding"],
        "model.final_norm.weight": p["final_norm"],
    }
    for i, kind in enumerate(config.block_types):
        a, b = f"model.layers.{i}.", f"blocks.{i}."
        out[a + "temporal_pre_norm.weight"] = p[b + "temporal_norm"]
        out[a + "channel_pre_norm.weight"] = p[b + "mlp_norm"]
        for theirs in ("gate", "up", "down"):
            out[f"{a}mlp_block.{theirs}_proj.weight"] = p[f"{b}mlp.{theirs}.weight"].T
            out[f"{a}mlp_block.{theirs}_proj.bias"] = p[f"{b}mlp.{theirs}.bias"]
        t = a + "temporal_block."
        if kind == "recurrent":
            r = b + "recurrent."
            for name in ("linear_x", "linear_y", "linear_out"):
                out[f"{t}{name}.weight"] = p[f"{r}{name}.weight"].T
                out[f"{t}{name}.bias"] = p[f"{r}{name}.bias"]
            out[t + "conv_1d.weight"] = p[r + "conv.weight"].T[:, None, :]
            out[t + "conv_1d.bias"] = p[r + "conv.bias"]
            out[t + "rg_lru.recurrent_param"] = p[r + "rg_lru.a_param"]
            out[t + "rg_lru.recurrent_gate_weight"] = p[r + "rg_lru.w_a"]
            out[t + "rg_lru.recurrent_gate_bias"] = p[r + "rg_lru.b_a"]
            out[t + "rg_lru.input_gate_weight"] = p[r + "rg_lru.w_x"]
            out[t + "rg_lru.input_gate_bias"] = p[r + "rg_lru.b_x"]
        else:
            for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                out[f"{t}{theirs}_proj.weight"] = p[f"{b}attention.{ours}.weight"].T
            out[t + "o_proj.bias"] = p[b + "attention.output.bias"]
    return out


# Every pair of weights that could be mistaken for each other has the same shape here.
SQUARE = SMALL.replace(lru_width=24, mlp_width=24, width=24, num_kv_heads=3)


def test_no_weight_is_transposed_or_swapped(tmp_path):
    """Trap T13 in each form: asymmetric weights of equal shapes must arrive where they belong."""
    expected = draw_parameters(SQUARE, "ordinary", 3)
    model = gnp.load(write_folder(tmp_path / "m", SQUARE, hf_tensors(expected, SQUARE)), "numpy")
    loaded = flatten(model.parameters)
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    names = [full for full, _, _ in tensor_names(SQUARE).values()]
    assert len(set(names)) == len(names) == len(parameter_shapes(SQUARE))


@settings(max_examples=15, deadline=None)
@given(config=configurations(), seed=st.integers(0, 999), split=st.sampled_from([None, 1, 2, 5]),
       dtype=st.sampled_from(["float32", "float16", "bfloat16"]))  # fmt: skip
def test_folders_of_others_load(config, seed, split, dtype, tmp_path_factory):
    stored = np.dtype({"bfloat16": bfloat16}.get(dtype, dtype))
    flat = draw_parameters(config, "ordinary", seed)
    tensors = {name: array.astype(stored) for name, array in hf_tensors(flat, config).items()}
    folder = write_folder(tmp_path_factory.mktemp("hf") / "m", config, tensors, split)
    model = gnp.load(folder, dtype="float64")
    assert model.config == config
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(model.parameters["embedding"], tensors[name].astype(np.float64))
    single = gnp.load(folder, "numpy")
    assert single.dtype == "float32"
    assert single.fingerprint == model.fingerprint
    tokens = tokens_for(config, (1, 9), seed)
    chain = longest_chain(config, 9)
    assert_close(single(tokens)[0], model(tokens)[0], "float32", chain=chain)


@settings(max_examples=15, deadline=None)
@given(config=configurations(), seed=st.integers(0, 999))
def test_saved_models_load_again_to_the_bit(config, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("save") / "m"
    model = random_model(config, seed)
    gnp.save(model, folder)
    again = gnp.load(folder)
    assert again.config == config
    assert again.fingerprint == model.fingerprint
    for name, array in flatten(model.parameters).items():
        np.testing.assert_array_equal(flatten(again.parameters)[name], array)
    ours = load_file(folder / "model.safetensors")
    theirs = hf_tensors(flatten(model.parameters), config)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_the_fingerprint_survives_rounding_to_bfloat16(tmp_path):
    model = random_model(SMALL)
    _, state = model(tokens_for(SMALL, (1, 9), 0))
    gnp.save(model, tmp_path / "half", "bfloat16")
    rounded = gnp.load(tmp_path / "half")
    assert rounded.fingerprint == model.fingerprint
    assert not np.array_equal(rounded.parameters["embedding"], model.parameters["embedding"])
    rounded([[1]], state=state)


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    from griffin_np.checkpoints import hf_save

    monkeypatch.setattr(hf_save, "SHARD_BYTES", 20_000)
    model = random_model(SMALL)
    gnp.save(model, tmp_path / "m")
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    again = gnp.load(tmp_path / "m")
    assert again.fingerprint == model.fingerprint
    chain = longest_chain(SMALL, 3)
    assert_close(again([[1, 2, 3]])[0], model([[1, 2, 3]])[0], "float32", chain=chain)


def test_weights_of_the_wanted_dtype_stay_on_disk(tmp_path):
    gnp.save(random_model(SMALL), tmp_path / "m")
    arrays = flatten(gnp.load(tmp_path / "m", "numpy").parameters)
    assert all(not array.flags.owndata and not array.flags.writeable for array in arrays.values())


def test_the_window_can_be_overridden(tmp_path):
    gnp.save(random_model(SMALL), tmp_path / "m")
    model = gnp.load(tmp_path / "m", window=5)
    assert model.config.window == 5
    assert model([[1, 2]])[1].layers[2].keys.shape == (1, 5, 1, 8)


@pytest.fixture
def tensors():
    return hf_tensors(draw_parameters(SMALL, "ordinary", 0), SMALL)


def test_tied_heads_are_accepted_and_others_refused(tmp_path, tensors):
    head = tensors["model.embed_tokens.weight"]
    gnp.load(write_folder(tmp_path / "tied", SMALL, {**tensors, "lm_head.weight": head}))
    other = head.copy()
    other[60, 3] += 1e-3
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: lm_head.weight differs from model.embed"
    ):
        gnp.load(write_folder(tmp_path / "untied", SMALL, {**tensors, "lm_head.weight": other}))


def test_padded_vocabularies_are_sliced(tmp_path, tensors):
    """Trap T32: 256128 rows where the vocabulary has 256000."""
    name = "model.embed_tokens.weight"
    padded = np.concatenate([tensors[name], np.ones((7, 24), np.float32)])
    model = gnp.load(
        write_folder(tmp_path / "m", SMALL, {**tensors, name: padded, "lm_head.weight": padded})
    )
    np.testing.assert_array_equal(model.parameters["embedding"], tensors[name])


def test_a_bare_model_without_prefix_loads(tmp_path, tensors):
    bare = {name.removeprefix("model."): array for name, array in tensors.items()}
    gnp.load(write_folder(tmp_path / "m", SMALL, bare))


def test_null_key_value_heads_are_checked_against_k_proj(tmp_path, tensors):
    with pytest.raises(CheckpointError, match="means 3 key-value heads .* but k_proj has 1"):
        gnp.load(write_folder(tmp_path / "m", SMALL, tensors, num_key_value_heads=None))
    many = hf_tensors(draw_parameters(SQUARE, "ordinary", 0), SQUARE)
    assert (
        gnp.load(write_folder(tmp_path / "n", SQUARE, many, num_key_value_heads=None)).config
        == SQUARE
    )


def test_every_misfit_is_named_at_once(tmp_path, tensors):
    bad = dict(tensors)
    del bad["model.layers.0.temporal_block.linear_x.bias"]
    bad["model.layers.1.mlp_block.up_proj.weight"] = np.zeros((24, 40), np.float32)
    bad["model.layers.2.temporal_block.q_proj.bias"] = np.zeros(24, np.float32)
    bad["model.layers.3.channel_pre_norm.weight"] = np.zeros(24, np.int8)
    with pytest.raises(CheckpointError) as error:
        gnp.load(write_folder(tmp_path / "m", SMALL, bad))
    for part in (
        "missing tensor model.layers.0.temporal_block.linear_x.bias",
        "model.layers.1.mlp_block.up_proj.weight has shape (24, 40), expected (40, 24)",
        "unknown tensor model.layers.2.temporal_block.q_proj.bias",
        "model.layers.3.channel_pre_norm.weight is int8, expected a floating dtype",
    ):
        assert part in str(error.value)


def test_damaged_folders_give_one_clear_error(tmp_path, tensors):
    with pytest.raises(CheckpointError, match="no checkpoint folder at .*nowhere"):
        gnp.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no file at .*config.json"):
        gnp.load(tmp_path / "empty")
    good = write_folder(tmp_path / "good", SMALL, tensors)

    def damaged(name: str):
        shutil.copytree(good, tmp_path / name)
        return tmp_path / name

    folder = damaged("json")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is no readable JSON"):
        gnp.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, got list"):
        gnp.load(folder)
    folder = damaged("none")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="pytorch_model.bin cannot be read, convert it"):
        gnp.load(folder)
    folder = damaged("cut")
    content = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, 100, len(content) // 2, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(
            CheckpointError, match="model.safetensors is no complete safetensors file"
        ):
            gnp.load(folder)
    folder = write_folder(tmp_path / "shards", SMALL, tensors, split=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no file at .*model-00002-of-00003.safetensors"):
        gnp.load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="not in a file of this folder"):
        gnp.load(folder)
    index.write_text(json.dumps({"weight_map": {"ghost": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks ghost"):
        gnp.load(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        gnp.load(folder)


def test_saving_overwrites_nothing_and_leaves_nothing_half_done(tmp_path, monkeypatch):
    model = random_model(SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="full exists already"):
        gnp.save(model, tmp_path / "full")
    with pytest.raises(CheckpointError, match="there is no folder"):
        gnp.save(model, tmp_path / "no" / "where")
    with pytest.raises(CheckpointError, match="not 'int8'"):
        gnp.save(model, tmp_path / "new", "int8")
    from griffin_np.checkpoints import hf_save

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(hf_save, "write_json", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        gnp.save(model, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model = random_model(SMALL)
    model.parameters["final_norm"][3] = np.nan
    with pytest.raises(
        CheckpointError, match="final_norm holds values that are not finite in float32"
    ):
        gnp.save(model, tmp_path / "m")
    model.parameters["final_norm"][3] = 1e6
    with pytest.raises(
        CheckpointError, match="final_norm holds values that are not finite in float16"
    ):
        gnp.save(model, tmp_path / "m", "float16")
    assert not list(tmp_path.iterdir())


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    gnp.save(random_model(SMALL), tmp_path / "m")
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir()}
    assert len(modes) == 1


def test_generation_defaults_are_read(tmp_path, tensors):
    folder = write_folder(tmp_path / "m", SMALL, tensors, eos_token_id=[1, 7])
    assert gnp.load(folder).generation.eos_ids == (1, 7)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 5, "eos_token_id": 4})
    )
    found = gnp.load(folder).generation
    assert (found.temperature, found.top_k, found.top_p, found.eos_ids) == (0.6, 5, None, (4,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, "generation_config.json: temperature must be in"),
        ({"do_sample": True, "top_k": -3}, "generation_config.json: top_k must be an integer"),
        ({"eos_token_id": [1, 1000]}, "eos_token_id 1000 is no id of the vocabulary"),
    ],
)
def test_impossible_generation_defaults_are_refused(tmp_path, tensors, values, message):
    folder = write_folder(tmp_path / "m", SMALL, tensors)
    (folder / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        gnp.load(folder)


def test_safetensors_views_are_what_the_library_reads(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((3, 5)), "b": rng.integers(0, 9, 7).astype(np.int8),
              "empty": np.zeros((0, 4), np.float32)}  # fmt: skip
    save_file(arrays, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.array(name), array)
        file.release(name)
        np.testing.assert_array_equal(file.array(name), array)


def test_unknown_backends_and_dtypes_are_refused(tmp_path):
    gnp.save(random_model(SMALL), tmp_path / "m")
    with pytest.raises(ValueError, match="no backend 'torch'; choose one of numpy"):
        gnp.load(tmp_path / "m", backend="torch")
    with pytest.raises(ValueError, match="the numpy backend has no dtype 'int4'"):
        gnp.load(tmp_path / "m", "numpy", dtype="int4")


def test_heads_need_not_divide_the_width_where_nothing_attends(tmp_path):
    config = gnp.GriffinConfig(width=10, depth=2, num_heads=3, vocab_size=9, lru_width=12,
                               block_pattern=("recurrent",))  # fmt: skip
    gnp.save(random_model(config), tmp_path / "m")
    assert gnp.load(tmp_path / "m").config == config

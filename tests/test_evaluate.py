"""Perplexity and comparison, against a direct computation document by document."""

import json
import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL, assert_close, random_model

import griffin_np as gnp
from griffin_conformance.envelope import longest_chain
from griffin_kernels.xla.data import read_documents, train_tokenizer
from griffin_np import documents, estimates, evaluate
from griffin_np.cli import main
from griffin_np.cli.compare import parse_model
from griffin_np.documents import SEPARATOR
from griffin_np.errors import ConfigError, SamplingError, TokenizerError
from griffin_np.evaluate import compare, perplexity
from griffin_np.sampling import log_softmax
from griffin_np.tokenizer import Tokenizer

WORDS = "the cat sat on a mat and the dog ran to the big red house with a small blue ball".split()

DOCUMENTS = [
    "the cat sat",
    "on a mat\n\nand the dog\nran\n\n\n  to the big\nred house ",
    "with",
    "a small blue ball — größer\n" * 3 + "the end",
    "<bos>a ball",
    " ".join(WORDS),
]

WAYS = [(1, 512), (1, 7), (3, 16), (8, 64), (4, 1)]
"""Rows and columns of calls."""


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    text = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 5
    return train_tokenizer(text, 320, tmp_path_factory.mktemp("vocabulary") / "tokenizer.model")


def make(tokenizer, seed: int = 0, dtype: str = "float64"):
    model = random_model(SMALL.replace(vocab_size=tokenizer.vocab_size), seed, dtype)
    model.attach_tokenizer(tokenizer)
    return model


@pytest.fixture(scope="session")
def model(tokenizer):
    return make(tokenizer)


@pytest.fixture(scope="session")
def other(tokenizer):
    return make(tokenizer, seed=1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(f"\n{SEPARATOR}\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    return path


def log_p(model) -> list[np.ndarray]:
    """Log-probabilities of each document's tokens, (n, V), in one call each."""
    ids = [model.tokenizer.encode(text) for text in DOCUMENTS]
    return [log_softmax(model([tokens])[0][0]) for tokens in ids]


def targets(model) -> list[list[int]]:
    tokenizer = model.tokenizer
    return [[*tokenizer.encode(text)[1:], tokenizer.eos_id] for text in DOCUMENTS]


def losses(model) -> list[np.ndarray]:
    return [-p[np.arange(len(t)), t] for p, t in zip(log_p(model), targets(model), strict=True)]


def close(actual, expected, what="value", tokens: int = 1000):
    """Computed along other chunks, then averaged over so many tokens."""
    chain = 2 * (longest_chain(SMALL, 200) + tokens)
    assert_close(actual, expected, "float64", what, chain=chain)


def cluster_error(values: list[np.ndarray]) -> float:
    """Standard error of the mean over tokens if documents are drawn, by its definition."""
    everything = np.concatenate(values)
    residuals = [float((v - everything.mean()).sum()) for v in values]
    D = len(values)
    return math.sqrt(D / (D - 1) * sum(r * r for r in residuals)) / len(everything)


class TestPerplexity:
    @pytest.mark.parametrize(("batch", "chunk"), WAYS)
    @pytest.mark.parametrize("part", [1, 20, 2**20])
    def test_it_is_that_of_single_documents(self, model, file, monkeypatch, batch, chunk, part):
        """However documents are packed into rows, cut into chunks, and read in parts."""
        monkeypatch.setattr(documents, "PART", part)
        result = perplexity(model, file, batch=batch, chunk=chunk)
        expected = losses(model)
        every = np.concatenate(expected)
        assert result.documents == len(DOCUMENTS)
        assert result.tokens == len(every)
        assert result.bytes == sum(len(text.encode()) for text in DOCUMENTS)
        close(result.nll, every.mean())
        close(result.nll_standard_error, cluster_error(expected))
        assert result.perplexity == math.exp(result.nll)
        assert result.perplexity_standard_error == result.perplexity * result.nll_standard_error
        close(result.bits_per_byte, every.sum() / math.log(2) / result.bytes)
        assert result.tokens_per_second > 0

    def test_documents_of_one_length_have_the_textbook_error(self):
        means = estimates.Means()
        rng = np.random.default_rng(0)
        values = rng.standard_normal((2, 9, 5)) + 100
        for d in range(9):
            means.add(np.full(5, d), values[:, d])
            means.close([d])
        textbook = values.mean(axis=2).std(axis=1, ddof=1) / math.sqrt(9)
        close(np.array(means.standard_error()) / 100, textbook / 100)
        close(np.array(means.mean()) / 100, values.mean(axis=(1, 2)) / 100)

    @pytest.mark.parametrize(("batch", "chunk"), WAYS)
    def test_a_limit_takes_the_first_tokens_of_the_file(self, model, file, batch, chunk):
        expected = losses(model)
        ends = np.cumsum([len(part) for part in expected])
        every = np.concatenate(expected)
        for limit in (1, 5, int(ends[0]), int(ends[1]) - 1, 40):
            result = perplexity(model, file, limit=limit, batch=batch, chunk=chunk)
            assert result.tokens == limit
            assert result.documents == int(np.searchsorted(ends, limit)) + 1
            close(result.nll, every[:limit].mean())
        whole = perplexity(model, file, limit=10**6, batch=batch, chunk=chunk)
        assert whole.tokens == len(every)

    def test_bytes_of_a_document_that_is_cut(self, model, file):
        first = DOCUMENTS[0].encode()
        tokens = model.tokenizer.encode(DOCUMENTS[0], bos=False)
        for limit in range(1, len(tokens) + 1):
            expected = len(model.tokenizer.decode(tokens[:limit]).encode())
            assert perplexity(model, file, limit=limit).bytes == expected <= len(first)

    def test_one_document_has_no_error(self, model, tmp_path):
        path = tmp_path / "one.txt"
        path.write_text("the cat sat")
        result = perplexity(model, path)
        assert result.documents == 1
        assert result.nll_standard_error is result.perplexity_standard_error is None

    def test_large_vocabularies_get_shorter_chunks(self, model, file, monkeypatch):
        lengths = []
        advance = model.advance

        def watched(tokens, *rest):
            lengths.append(tokens.shape[1])
            return advance(tokens, *rest)

        monkeypatch.setattr(model, "advance", watched)
        monkeypatch.setattr(evaluate, "LOGITS", 2 * 10 * model.config.vocab_size)
        monkeypatch.setattr(evaluate, "SLAB", 3 * model.config.vocab_size)
        close(perplexity(model, file, batch=2).nll, np.concatenate(losses(model)).mean())
        assert max(lengths) == 8

    def test_losses_of_a_vocabulary_larger_than_a_slab(self):
        rng = np.random.default_rng(0)
        logits = (10 * rng.standard_normal((3, evaluate.SLAB + 1))).astype(np.float32)
        wanted = np.array([0, 17, evaluate.SLAB])
        expected = -log_softmax(logits)[np.arange(3), wanted]
        np.testing.assert_array_equal(evaluate._loss(logits, wanted), expected)

    def test_progress_ends_at_what_was_expected(self, model, file):
        seen = []
        result = perplexity(model, file, chunk=8, progress=lambda *facts: seen.append(facts))
        assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
        assert seen[-1] == (result.tokens, result.tokens, result.nll)

    def test_damaged_weights_are_found(self, tokenizer, file):
        broken = make(tokenizer)
        broken.parameters["embedding"][5] = np.nan
        with pytest.raises(SamplingError, match="logits in document 1 are not finite"):
            perplexity(broken, file)

    @pytest.mark.parametrize("option", ["limit", "batch", "chunk"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    def test_options_out_of_range_are_named(self, model, file, option, value):
        with pytest.raises(ConfigError, match=f"{option} must be an integer of at least 1, got"):
            perplexity(model, file, **{option: value})


line = st.sampled_from(
    [
        "",
        "",
        "the cat",
        " ",
        "a  b ",
        "größer",
        SEPARATOR,
        SEPARATOR,
        f"{SEPARATOR} ",
        "\u2028x\x0c",
    ]
)


class TestText:
    @given(
        lines=st.lists(line, max_size=12),
        end=st.sampled_from(["\n", "\r\n", "\r"]),
        final=st.booleans(),
        part=st.sampled_from([1, 8, 20, 1000]),
    )
    def test_documents_are_those_of_training(
        self, tokenizer, tmp_path_factory, lines, end, final, part
    ):
        """Where separators are whole lines, as the training data's are."""
        path = tmp_path_factory.getbasetemp() / "drawn.txt"
        path.write_bytes((end.join(lines) + final * end).encode())
        expected = []
        for text in "\n".join(lines).split("\n"):
            if text == SEPARATOR or not expected:
                expected.append([])
            if text != SEPARATOR:
                expected[-1].append(text)
        expected = ["\n".join(part).strip("\n") for part in expected]
        expected = [text for text in expected if text.strip()]
        if expected and f"{SEPARATOR} " not in lines:
            assert expected == read_documents([path])
        before, documents.PART = documents.PART, part
        try:
            found, tokens, fresh = [], [], True
            for text, last in documents.parts_of(path, tokenizer):
                if fresh:
                    found.append("")
                    tokens.append([])
                found[-1] += text
                tokens[-1] += tokenizer.encode(text, bos=False)
                fresh = last
        finally:
            documents.PART = before
        assert found == expected
        assert tokens == [tokenizer.encode(text, bos=False) for text in expected]

    def test_a_text_is_cut_only_where_no_token_can_cross(self, tokenizer):
        assert documents.cuts_at_lines(tokenizer)
        assert documents.cuts_at_lines(gnp.load().tokenizer)

    @pytest.mark.parametrize(
        "options",
        [
            {"add_dummy_prefix": True},
            {"remove_extra_whitespaces": True},
            {"normalization_rule_name": "nmt_nfkc"},
            {"user_defined_symbols": ["\nthe"]},
        ],
    )
    def test_other_vocabularies_read_documents_whole(self, options, monkeypatch, tmp_path):
        import io

        import sentencepiece

        written = io.BytesIO()
        gemma = {
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "normalization_rule_name": "identity",
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(WORDS)] * 5), model_writer=written, model_type="bpe",
            vocab_size=300, byte_fallback=True, minloglevel=2, **gemma | options,
        )  # fmt: skip
        tokenizer = Tokenizer(written.getvalue())
        assert not documents.cuts_at_lines(tokenizer)
        monkeypatch.setattr(documents, "PART", 1)
        path = tmp_path / "text.txt"
        path.write_text("the cat\nthe dog")
        assert list(documents.parts_of(path, tokenizer)) == [("the cat\nthe dog", True)]

    def test_memory_does_not_grow_with_the_text(self, tokenizer, tmp_path, monkeypatch):
        monkeypatch.setattr(documents, "PART", 2**14)
        path = tmp_path / "long.txt"
        text = " ".join(WORDS) + "\n"
        peaks = []
        for size in (2**18, 2**20):
            path.write_text(text * (size // len(text)))
            source = documents.Documents(path, tokenizer, None)
            tracemalloc.start()
            try:
                calls = documents.chunks(source, 2, 64)
                count = sum(int((call.targets >= 0).sum()) for call in calls)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert count == source.tokens > size / 16
        assert peaks[1] < 1.1 * peaks[0]

    def test_characters_may_lie_across_reads(self, model, tmp_path):
        path = tmp_path / "wide.txt"
        text = "a" + "€" * 2**16
        path.write_text(text, encoding="utf-8")
        assert "".join(t for t, _ in documents.parts_of(path, model.tokenizer)) == text
        content = text.encode()
        for offset in (0, 2**16, 2**17 - 1, len(content)):
            wrong = content[:offset] + b"\xff" + content[offset:]
            path.write_bytes(wrong)
            try:
                wrong.decode()
            except UnicodeDecodeError as error:
                first = error.start
            with pytest.raises(TokenizerError, match=rf"not UTF-8 text: .* at offset {first} "):
                list(documents.parts_of(path, model.tokenizer))
        path.write_bytes(content[:-1])
        with pytest.raises(TokenizerError, match=f"at offset {len(content) - 3} .unexpected end"):
            list(documents.parts_of(path, model.tokenizer))


class TestCompare:
    @pytest.mark.parametrize(("batch", "chunk"), WAYS)
    def test_a_model_is_no_way_from_itself(self, model, file, batch, chunk):
        result = compare(model, model, file, batch=batch, chunk=chunk)
        assert result.kl == result.kl_quantile == result.kl_max == result.logit_difference == 0
        assert result.kl_standard_error == result.agreement_standard_error == 0
        assert result.agreement == result.perplexity_ratio == 1
        assert result.a == result.b
        assert result.a.nll == perplexity(model, file, batch=batch, chunk=chunk).nll

    @pytest.mark.parametrize(("batch", "chunk"), WAYS)
    def test_it_meets_the_definitions(self, model, other, file, batch, chunk):
        result = compare(model, other, file, batch=batch, chunk=chunk)
        pairs = list(zip(log_p(model), log_p(other), strict=True))
        kl = [(np.exp(a) * (a - b)).sum(axis=1) for a, b in pairs]
        same = [(a.argmax(axis=1) == b.argmax(axis=1)).astype(float) for a, b in pairs]
        gaps = [b - a for a, b in zip(losses(model), losses(other), strict=True)]
        every = np.concatenate(kl)
        close(result.kl, every.mean())
        close(result.kl_standard_error, cluster_error(kl))
        close(result.kl_max, every.max())
        quantile = np.sort(every)[math.ceil(0.99 * len(every)) - 1]
        assert abs(result.kl_quantile / quantile - 1) < 0.002
        close(result.agreement, np.concatenate(same).mean())
        close(result.agreement_standard_error, cluster_error(same))
        close(result.log_ratio, np.concatenate(gaps).mean())
        close(result.log_ratio_standard_error, cluster_error(gaps))
        close(result.perplexity_ratio * result.a.perplexity / result.b.perplexity, 1)
        assert result.perplexity_ratio_standard_error == (
            result.perplexity_ratio * result.log_ratio_standard_error
        )
        for side, read in ((model, result.a), (other, result.b)):
            alone = perplexity(side, file, batch=batch, chunk=chunk)
            assert (read.tokens, read.documents, read.bytes) == (
                alone.tokens, alone.documents, alone.bytes,
            )  # fmt: skip
            close(read.nll, alone.nll)
            close(read.nll_standard_error, alone.nll_standard_error)
        logits = [[m([m.tokenizer.encode(t)])[0][0] for t in DOCUMENTS] for m in (model, other)]
        close(
            result.logit_difference,
            max(np.abs(a - b).max() for a, b in zip(*logits, strict=True)),
        )

    @given(values=st.lists(st.one_of(st.just(0.0), st.floats(1e-11, 1e3)), min_size=1))
    def test_quantiles(self, values):
        found = estimates.Quantiles()
        for start in range(0, len(values), 3):
            found.add(np.array(values[start : start + 3]))
        assert found.largest == max(values)
        for share in (0.01, 0.5, 0.99, 1.0):
            exact = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
            assert found.quantile(share) == pytest.approx(exact, rel=0.002)

    def test_values_outside_the_histogram_stay_at_its_ends(self):
        found = estimates.Quantiles()
        found.add(np.array([1e-30, 1e-13, 1e9]))
        assert found.quantile(0.5) == 0
        assert 9e3 < found.quantile(1) < found.largest == 1e9

    def test_other_vocabularies_are_refused(self, model, file, tokenizer):
        larger = random_model(SMALL.replace(vocab_size=tokenizer.vocab_size + 1))
        larger.attach_tokenizer(tokenizer)
        with pytest.raises(ConfigError, match="vocabularies of 320 and 321 tokens"):
            compare(model, larger, file)
        foreign = make(tokenizer)
        foreign.tokenizer = gnp.load().tokenizer
        with pytest.raises(ConfigError, match="different tokenizers"):
            compare(model, foreign, file)


class TestModelNames:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("demo", (None, None, None)),
            ("demo:int4", (None, None, "int4")),
            ("demo@numpy", (None, "numpy", None)),
            ("demo:float32@numpy", (None, "numpy", "float32")),
            ("demo@numpy:float32", (None, "numpy", "float32")),
            ("m", ("m", None, None)),
            ("m:int8", ("m", None, "int8")),
            ("./m/@jax:float32", ("./m/", "jax", "float32")),
            ("a:int8", ("a:int8", None, None)),  # a folder of that name
            ("a:int8:int4", ("a:int8", None, "int4")),
            ("u@v/m", ("u@v/m", None, None)),
            ("u@v/m@numpy", ("u@v/m", "numpy", None)),
            ("./demo", ("./demo", None, None)),
            # None of these folders exists; what is left is named in the error.
            (r"C:\models\m", (r"C:\models\m", None, None)),
            (r"C:\models\m:int8", (r"C:\models\m", None, "int8")),
            ("C:m", ("C:m", None, None)),
            ("C:m@jax", ("C:m", "jax", None)),
            ("nowhere", ("nowhere", None, None)),
            ("demo:int4:int8", ("demo:int4", None, "int8")),
            (":int8", (":int8", None, None)),
        ],
    )
    def test_endings_are_told_from_paths(self, tmp_path, monkeypatch, text, expected):
        monkeypatch.chdir(tmp_path)
        for name in ("m", "a:int8", "u@v/m"):
            (tmp_path / name).mkdir(parents=True)
        assert parse_model(text) == expected


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "m"
    gnp.save(make(tokenizer, dtype="float32"), place)
    return str(place)


class TestCommands:
    def test_perplexity_as_json(self, run, folder, file):
        code, out, err = run(
            "perplexity", "--data", file, "-m", folder, "--json", "--batch", 2, "--backend", "numpy"
        )
        assert (code, err) == (0, "")
        facts = json.loads(out)
        assert list(facts) == [
            "model", "backend", "dtype", "documents", "tokens", "bytes", "nll", "perplexity",
            "perplexity_standard_error", "bits_per_byte", "tokens_per_second",
        ]  # fmt: skip
        assert (facts["model"], facts["backend"], facts["dtype"]) == (folder, "numpy", "float32")
        expected = perplexity(gnp.load(folder, "numpy"), file, batch=2)
        assert facts["nll"] == expected.nll
        assert facts["perplexity_standard_error"] == expected.perplexity_standard_error

    def test_perplexity_as_text(self, run, folder, file, tmp_path):
        code, out, _ = run("perplexity", "--data", file, "-m", folder, "--limit", 20)
        assert code == 0
        for pattern in (
            r"perplexity +[\d.]+ ± [\d.]+\n",
            r"bits per byte +\d",
            r"20 tokens in 2 document",
            "numba float32\n",
        ):
            assert re.search(pattern, out), pattern
        one = tmp_path / "one.txt"
        one.write_text("the cat")
        assert re.match(r"perplexity +[\d.]+\n", run("perplexity", "--data", one, "-m", folder)[1])

    def test_compare_as_json_and_text(self, run, folder, file):
        argv = ["compare", folder, f"{folder}:float64@numpy", "--data", file]
        code, out, err = run(*argv, "--json")
        assert (code, err) == (0, "")
        facts = json.loads(out)
        assert list(facts) == [
            "a", "b", "documents", "tokens", "bytes", "kl", "kl_standard_error", "kl_quantile_99",
            "kl_max", "agreement", "agreement_standard_error", "perplexity_ratio",
            "perplexity_ratio_standard_error", "logit_difference", "tokens_per_second",
        ]  # fmt: skip
        keys = ["model", "backend", "dtype", "perplexity", "perplexity_standard_error"]
        assert list(facts["a"]) == list(facts["b"]) == keys
        assert [facts[side]["dtype"] for side in "ab"] == ["float32", "float64"]
        assert 0 < facts["kl"] <= facts["kl_max"]
        assert 0 < facts["logit_difference"] < 1
        code, out, _ = run(*argv, "--limit", 12)
        assert code == 0
        for part in ("A ", "KL(A || B)", "99 % quantile", "same top token", "perplexity B / A"):
            assert part in out

    @pytest.mark.parametrize(
        ("content", "argv", "message"),
        [
            (None, [], "cannot read text.txt: No such file"),
            (b"the cat\n\xffx", [], "text.txt is not UTF-8 text: byte 0xff at offset 8"),
            (b"", [], "text.txt holds no text"),
            (f" \n{SEPARATOR}\n\n{SEPARATOR}\n".encode(), [], "text.txt holds no text"),
            (b"the cat", ["--limit", "0"], "limit must be an integer of at least 1, got 0"),
            (b"the cat", ["--batch", "0"], "batch must be an integer of at least 1, got 0"),
            (b"the cat", ["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        ],
    )
    def test_errors_are_one_line(self, run, folder, tmp_path, monkeypatch, content, argv, message):
        monkeypatch.chdir(tmp_path)
        if content is not None:
            (tmp_path / "text.txt").write_bytes(content)
        for verb in (["perplexity", "-m", folder], ["compare", folder, folder]):
            code, out, err = run(*verb, "--data", "text.txt", *argv)
            assert (code, out) == (2, "")
            assert re.fullmatch(f"griffin-np: error: {message}.*\n", err)

    def test_models_that_cannot_be_had_are_named(self, run, folder, file):
        for other, message in (
            ("nowhere:int8", "no checkpoint folder at nowhere"),
            (f"{folder}:int3", "the numba backend has no dtype 'int3'"),
            (f"{folder}@torch", "no backend 'torch'"),
            ("demo", "the models have vocabularies of 320 and "),
        ):
            code, out, err = run("compare", folder, other, "--data", file)
            assert (code, out) == (2, "")
            assert err.startswith(f"griffin-np: error: {message}")
            assert err.count("\n") == 1

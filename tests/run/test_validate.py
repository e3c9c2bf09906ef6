"""Measuring a finished run, and trying it with a prompt."""

from dataclasses import replace

import pytest
import tokenizers
from tokenizers import models, normalizers

from gossamer.data.config import CorpusConfig
from gossamer.data.dataset import prepare_for_evaluation
from gossamer.data.tokenizer import EOT, Tokenizer, train_bpe
from gossamer.errors import UserError
from gossamer.infer.generation import sample_run
from gossamer.run import loop
from gossamer.run.validate import bytes_of_tokens, evaluate_run


@pytest.mark.parametrize("heads", [0, 1])
def test_draft_acceptance_is_told_of_models_with_drafts(tiny_recipe, tmp_path, heads):
    model, training = replace(tiny_recipe.model, num_nextn_predict_layers=heads), replace(tiny_recipe.training, steps=1)
    loop.train(replace(tiny_recipe, model=model, training=training), tmp_path / "run")
    found = evaluate_run(tmp_path / "run", device="cpu")
    assert ("mtp_acceptance" in found) == (heads == 1)
    assert found["tokens"] > 0 and found["documents"] == 1


def test_a_prompt_that_is_no_text_is_refused_before_it_is_shown(tiny_recipe, tmp_path):
    loop.train(replace(tiny_recipe, training=replace(tiny_recipe.training, steps=1)), tmp_path / "run")
    with pytest.raises(UserError, match="half of a surrogate pair"):
        next(sample_run(tmp_path / "run", "line \udcff", 5, {}, "cpu"))


@pytest.mark.parametrize("normalizer", [normalizers.NFKC(), normalizers.Lowercase(), None])
def test_bits_per_byte_count_the_texts_own_bytes(tmp_path, normalizer):
    """Over all of a text the bytes are those on the disk, however the tokenizer rewrites it (a definition)."""
    core = train_bpe(["a text to learn from"], 257)._core
    core.normalizer = normalizer
    tokenizer = Tokenizer(core, EOT)
    text = "\ufb01nal \u2460 \u0130\u0130 \u00bd \ufb02ame \u2026 " * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    shard = prepare_for_evaluation(
        (str(tmp_path / "text.txt"),), CorpusConfig(cache_dir=str(tmp_path / "cache")), tokenizer
    )
    each = bytes_of_tokens(shard, tokenizer)
    assert each[shard.tokens].sum() == pytest.approx(len(text.encode()), rel=1e-12)
    if normalizer is None:
        assert (each == tokenizer.num_bytes_per_token()).all()


def test_bits_per_byte_of_a_text_of_unknown_tokens(tmp_path):
    core = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, EOT: 1}, unk_token="<unk>"))
    core.add_special_tokens(["<unk>", EOT])
    tokenizer = Tokenizer(core, EOT, {"eos_token": EOT})
    (tmp_path / "text.txt").write_text("what is this")
    shard = prepare_for_evaluation(
        (str(tmp_path / "text.txt"),), CorpusConfig(cache_dir=str(tmp_path / "cache")), tokenizer
    )
    assert bytes_of_tokens(shard, tokenizer)[shard.tokens].sum() == pytest.approx(12)

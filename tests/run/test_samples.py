"""Whether a prompt suits the text, and what stands in for one."""

from dataclasses import replace

from gossamer.data.dataset import prepare
from gossamer.run.samples import held_out_words, is_in_training_text, why_unreadable


def test_a_prompt_is_known_by_the_text_and_by_its_characters(tiny_recipe):
    dataset = prepare(tiny_recipe.corpus, progress=False)
    assert is_in_training_text("line 1: the", dataset) and why_unreadable("line 1: the", dataset.tokenizer) is None
    assert not is_in_training_text("the line", dataset) and why_unreadable("the line", dataset.tokenizer) is None
    assert "'R'" in why_unreadable("ROMEO:", dataset.tokenizer)
    assert "surrogate" in why_unreadable("line \udcff", dataset.tokenizer)


def test_held_out_words_stand_in_where_documents_are_long(tiny_recipe):
    dataset = prepare(tiny_recipe.corpus, progress=False)
    words = held_out_words(dataset, 64)
    assert len(words.split()) == 12
    assert words in dataset.tokenizer.decode(next(iter(dataset.validation.values())).tokens.tolist()).replace("\n", " ")
    assert held_out_words(dataset, 64) == words and why_unreadable(words, dataset.tokenizer) is None
    assert held_out_words(dataset, 4096) == "", "each row begins a document"


def test_held_out_text_without_spaces_gives_a_few_characters(tiny_recipe, tmp_path):
    (tmp_path / "genome.txt").write_text("ACGT" * 20_000)
    dataset = prepare(replace(tiny_recipe.corpus, paths=(str(tmp_path / "genome.txt"),)), progress=False)
    assert len(held_out_words(dataset, 64)) == 80

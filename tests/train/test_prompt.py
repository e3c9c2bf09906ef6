"""Whether a prompt suits the text."""

from gossamer.data.dataset import prepare
from gossamer.train.prompt import misfit, occurs


def test_a_prompt_is_known_by_the_text_and_by_its_characters(tiny_recipe):
    dataset = prepare(tiny_recipe.corpus, progress=False)
    assert occurs("line 1: the", dataset) and misfit("line 1: the", dataset.tokenizer) is None
    assert not occurs("the line", dataset) and misfit("the line", dataset.tokenizer) is None
    assert "'R'" in misfit("ROMEO:", dataset.tokenizer)
    assert "surrogate" in misfit("line \udcff", dataset.tokenizer)

"""What `import gossamer` offers."""

import pytest

import gossamer
from gossamer.errors import UserError


def test_the_package_exports_lazily() -> None:
    assert gossamer.UserError is UserError
    assert {"load", "save", "CausalLM", "ModelConfig", "Tokenizer"} <= set(dir(gossamer))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = gossamer.lod

"""Optimizers without torch.compile's machinery are PyTorch's own."""

import subprocess
import sys

import pytest
import torch

from gossamer.train.eager import AdamW


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_pytorchs_and_resumes(fused):
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": fused}
    eager, usual = AdamW([mine], **options), torch.optim.AdamW([theirs], **options)
    for step in range(4):
        if step == 2:
            saved = eager.state_dict()
            eager = AdamW([mine], **options)
            eager.load_state_dict(saved)
        mine.grad = torch.randn(3, 4)
        theirs.grad = mine.grad.clone()
        eager.step()
        usual.step()
        eager.zero_grad()
        assert mine.grad is None
        assert torch.equal(mine, theirs)
    assert str(eager.state_dict()) == str(usual.state_dict())


def test_a_step_imports_no_compiler():
    code = """
import sys, torch
from gossamer.train.eager import AdamW
from gossamer.train.muon import Muon
matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
(matrix @ vector).sum().backward()
for optimizer in Muon({matrix: lambda weight: [weight]}, 0.1, 0.9, 0.1), AdamW([vector], fused=True):
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print(sorted(name for name in sys.modules if name.startswith("torch._dynamo")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

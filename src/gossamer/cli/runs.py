"""Verbs that make a run, measure it, describe it and hand its model on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from gossamer.cli.shared import AUTO, Device, Json, RunFolder, existing_folder, existing_model, print_answer, print_path
from gossamer.errors import UserError
from gossamer.infer.options import Weights
from gossamer.reading import TextErrors, user_path
from gossamer.typed import Metavar


def train(
    recipe: str | None = None,
    budget: Annotated[str | None, Metavar("AMOUNT")] = None,
    out: Annotated[str | None, Metavar("DIR")] = None,
    resume: bool = False,
    profile: bool = False,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train a model by a recipe, or for a budget.

    Without either, a small model learns to write Python in a few minutes.

    Args:
        recipe: a recipe that comes with gossamer (80b-a3b, budget, continue, demo, micro, mini, nano, novels,
            qwen3.5-0.8b, qwen3.5-122b-a10b, qwen3.5-27b, qwen3.5-2b, qwen3.5-35b-a3b, qwen3.5-397b-a17b, qwen3.5-4b,
            qwen3.5-9b, shakespeare-char, small), or the path of a YAML file (default: demo, or continue with --from)
        budget: what the run may spend, as 90s, 10m, 2h, 5usd or 1e17flop, in place of a recipe: the size of the
            network, its batch and its learning rate are chosen for it on this device
        out: folder of the run (default: runs/ and the name of the recipe, or of the first --data without a recipe)
        resume: continue the run in that folder, by its own config.yaml and from its newest checkpoint, if it has one
        profile: write a trace of three steps, after three of warmup, to the profile folder of the run, for Perfetto,
            chrome://tracing or TensorBoard
        overrides: values of the recipe by dotted name
    """
    began = time.perf_counter()
    from gossamer.run.start import fresh_recipe, require_undecided, resumed_recipe, run_folder
    from gossamer.train.recipe import BUDGET_RECIPE, CONTINUE_RECIPE, DEFAULT_RECIPE

    values = dict(overrides or {})
    default = CONTINUE_RECIPE if values.get("training.init_from") else DEFAULT_RECIPE
    recipe_name = (default if budget is None else BUDGET_RECIPE) if recipe is None else recipe
    folder = user_path(out) if out is not None else run_folder(recipe, recipe_name, values.get("corpus.paths", ()))
    if "model.vocab_size" in values:
        raise UserError("--model.vocab_size follows from the tokenizer; --corpus.vocab_size sets a trained one's size")
    if budget is not None:
        if "training.budget" in values:
            raise UserError("--budget and --training.budget set the same value; give one of them")
        require_undecided(recipe, values)
        values["training.budget"] = budget
    loaded = resumed_recipe(folder, recipe, values) if resume else fresh_recipe(folder, recipe_name, values)
    from gossamer.device import prepare_process
    from gossamer.report import write_report
    from gossamer.run.loop import train as run_training

    prepare_process()
    sized = budget is not None and not resume
    run_training(loaded, folder, resume, profile, sized_by_budget=sized, began=began, report=write_report)


def eval(
    run: RunFolder,
    data: Annotated[tuple[str, ...], Metavar("PATH")] = (),
    errors: TextErrors = "strict",
    device: Device = AUTO,
    weights: Weights = "stored",
    json: Json = False,
) -> None:
    """Measure a trained model's loss, perplexity and bits per byte on text.

    Args:
        data: text to measure on, files and folders (default: the run's own validation text)
        errors: what to do about bytes that are not UTF-8: strict refuses them, replace reads each as U+FFFD
        weights: stored, or int8 to round them as gossamer serve --weights int8 does
    """
    folder = existing_model(run)
    from gossamer.device import prepare_process
    from gossamer.run.validate import evaluate_run

    prepare_process()
    print_answer(evaluate_run(folder, paths=data, errors=errors, device=device, weights=weights), json)


def report(run: tuple[str, ...], out: Annotated[str | None, Metavar("FILE")] = None) -> None:
    """Write a page about a run, or one that compares several runs.

    It shows the recipe, the curves, what the run cost and what the model wrote.

    Args:
        run: folder of a run; several are compared
        out: file to write (default: report.html in the run's folder, or comparison.html beside the first of several)
    """
    folders = [existing_folder(name, "a folder that `gossamer train` wrote") for name in run]
    path = None if out is None else user_path(out)
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    from gossamer.report import write_comparison, write_report

    print_path(write_report(folders[0], path) if len(folders) == 1 else write_comparison(folders, path))


def export(
    run: RunFolder,
    out: str,
    to: Literal["hf", "gguf", "adapter"] = "hf",
    layout: Literal[
        "stored", "qwen3_next", "qwen3_5", "qwen3_5_per_expert", "qwen3_5_language_model", "experts"
    ] = "stored",
) -> None:
    """Write a trained model in the format of other programs.

    Args:
        out: folder to write, or for gguf the file, NAME.gguf
        to: hf writes a Hugging Face directory, which transformers, vLLM and SGLang read; a prompt then has to begin
            with the tokenizer's end-of-text token, as documents do in training. gguf writes the file that llama.cpp
            reads, which adds that token by itself, as gossamer sample does. Both add the adapter of a tuned run to
            the weights; adapter writes it alone, as PEFT reads it
        layout: names and shapes of the tensors in a Hugging Face directory. stored keeps those of the model that is
            read; the others are those of Qwen3-Next, of Qwen3.5 and its successors, of these with a tensor for each
            expert, and of these under the names of a checkpoint that also sees pictures. Of an adapter, experts
            writes a module for each matrix of each expert, as vLLM reads them
    """
    folder = existing_model(run)
    if to != "gguf" and out.lower().endswith(".gguf"):
        raise UserError(f"{out}: names a GGUF file, but --to {to} writes a folder; add --to gguf")
    if to == "hf" and out.lower().endswith((".safetensors", ".bin", ".pt")):
        raise UserError(f"{out}: names a file, but --to hf writes a folder; name that")
    owner, kind = ("adapter", "an adapter") if layout == "experts" else ("hf", "a Hugging Face directory")
    if layout != "stored" and to != owner:
        raise UserError(f"--layout {layout}: is of {kind}, but --to {to} writes something else; leave it out")
    from gossamer import hub

    if to == "gguf":
        hub.export_gguf(folder, Path(out))
    elif to == "adapter":
        hub.export_adapter(folder, Path(out), apart=layout == "experts")
    else:
        hub.export(folder, Path(out), None if layout == "stored" else layout)
    print_path(out)

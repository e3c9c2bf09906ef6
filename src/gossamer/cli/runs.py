"""Verbs that make a run, measure it, describe it and hand its model on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from gossamer.cli.shared import answer, existing, made
from gossamer.errors import UserError
from gossamer.reading import user_path
from gossamer.typed import Range


def train(
    recipe: str | None = None,
    data: tuple[str, ...] | None = None,
    tokenizer: str | None = None,
    errors: Literal["strict", "replace"] | None = None,
    out: str | None = None,
    resume: bool = False,
    profile: bool = False,
    device: str | None = None,
    budget: str | None = None,
    price: Annotated[float, Range(0, 10**9, above=True)] | None = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train a model by a recipe, or for a budget; any value of the recipe can be overridden by its dotted name.

    Args:
        recipe: one that comes with gossamer (80b-a3b, budget, demo, micro, mini, nano, novels, shakespeare-char,
            small), or path of a YAML file (default: demo)
        data: text to train on, files and folders; short for --corpus.paths
        tokenizer: bpe, char, or a folder with a tokenizer.json; short for --corpus.tokenizer
        errors: what to do about bytes that are not UTF-8; short for --corpus.errors
        out: folder of the run (default: runs/ and the name of the recipe; with data and no recipe, of the first data)
        resume: go on with the run in that folder from its newest checkpoint, if it has one, by its own config.yaml
        profile: write a trace of three steps, after three of warm-up, to the profile folder of the run, for Perfetto,
            chrome://tracing or TensorBoard
        device: auto, cpu, cuda, cuda:1, npu …; short for --training.device
        budget: what the run may take, as 90s, 10m, 2h, 5usd or 1e17flop, in place of a recipe: the network's size, its
            batch and learning rate are chosen for it on this device
        price: cost of one device for an hour (money); short for --training.price
        overrides: values of the recipe by dotted name
    """
    began = time.perf_counter()
    from gossamer.run.start import fresh_recipe, require_dialled, resumed_recipe, run_folder
    from gossamer.train.recipe import BUDGET_RECIPE, DEFAULT_RECIPE

    chosen = (DEFAULT_RECIPE if budget is None else BUDGET_RECIPE) if recipe is None else recipe
    wanted = dict(overrides or {})
    for short, key, value in (
        ("data", "corpus.paths", data),
        ("tokenizer", "corpus.tokenizer", tokenizer),
        ("errors", "corpus.errors", errors),
        ("device", "training.device", device),
        ("budget", "training.budget", budget),
        ("price", "training.price", price),
    ):
        if value is not None:
            if key in wanted:
                raise UserError(f"--{short} and --{key} set the same value; give one of them")
            wanted[key] = value
    folder = user_path(out) if out is not None else run_folder(recipe, chosen, wanted.get("corpus.paths", ()))
    if "model.vocab_size" in wanted:
        raise UserError("--model.vocab_size follows from the tokenizer; --corpus.vocab_size sets a trained one's size")
    if budget is not None:
        require_dialled(recipe, wanted)
    merged = resumed_recipe(folder, recipe, wanted) if resume else fresh_recipe(folder, chosen, wanted)
    from gossamer.device import prepare_process
    from gossamer.report import write_report
    from gossamer.run.loop import train as run_training

    prepare_process()
    dial = budget is not None and not resume
    run_training(merged, folder, resume, profile, dial=dial, began=began, report=write_report)


def eval(
    run: str,
    data: tuple[str, ...] = (),
    errors: Literal["strict", "replace"] = "strict",
    device: str = "auto",
    weights: Literal["stored", "int8"] = "stored",
    json: bool = False,
) -> None:
    """Measure a trained model's loss, perplexity and bits per byte on text.

    Args:
        run: folder of a run, or a Hugging Face directory
        data: text to measure on, files and folders; none: the run's own validation split
        errors: what to do about bytes that are not UTF-8
        device: auto, cpu, cuda, cuda:1, npu …
        weights: stored, or int8: rounded as gossamer serve --weights int8 does
        json: answer with one JSON object
    """
    folder = existing(run)
    from gossamer.device import prepare_process
    from gossamer.run.evaluate import evaluate_run

    prepare_process()
    answer(evaluate_run(folder, paths=data, errors=errors, device=device, weights=weights), json)


def report(run: tuple[str, ...], out: str | None = None) -> None:
    """Write a page about a run, its recipe, curves and samples; or one that compares several runs.

    Args:
        run: folder of a run; several are compared
        out: file to write (default: report.html in the run's folder; comparison.html beside the first of several)
    """
    folders = [existing(name, "a folder that `gossamer train` wrote") for name in run]
    path = None if out is None else user_path(out)
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    from gossamer.report import write_comparison, write_report

    made(write_report(folders[0], path) if len(folders) == 1 else write_comparison(folders, path))


def export(run: str, out: str, to: Literal["hf", "gguf"] = "hf") -> None:
    """Write a model for other programs.

    Args:
        run: folder of a run, or a Hugging Face directory
        out: folder to write; for gguf a file, NAME.gguf
        to: hf, the Hugging Face directory that transformers, vLLM and SGLang read; there a prompt has to begin with the
            tokenizer's end-of-text token, as documents do in training, which `gossamer sample` adds by itself.
            gguf, the file that llama.cpp reads, which begins prompts so by itself
    """
    folder = existing(run)
    if to != "gguf" and out.lower().endswith(".gguf"):
        raise UserError(f"{out}: names a GGUF file, but --to {to} writes a folder; add --to gguf")
    if to == "hf" and out.lower().endswith((".safetensors", ".bin", ".pt")):
        raise UserError(f"{out}: names a file, but --to hf writes a folder; name that")
    from gossamer import hub

    if to == "gguf":
        hub.export_gguf(folder, Path(out))
    else:
        hub.export(folder, Path(out))
    made(out)

"""The command line: one verb a function; its signature and docstring are the command's options and help.

A user's mistake, however it is noticed, becomes one line on standard error and exit status 2. Nothing heavy is imported
before it is known which verb runs, so that `gossamer --help` answers at once.
"""

from __future__ import annotations

import json as jsonlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gossamer import __version__
from gossamer.errors import UserError, is_out_of_memory, nearest, nearest_path

# Of the process, unless the user has set them; read when PyTorch is imported.
ENVIRONMENT = {
    # On a machine that others use too, threads that spin for long while they wait for one another were measured to make
    # a training step ten times slower; on an idle one this costs a few percent.
    "GOMP_SPINCOUNT": "1000",
}


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
    price: float | None = None,
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
    from gossamer.train.recipe import BUDGET_RECIPE, DEFAULT_RECIPE
    from gossamer.train.start import fresh_recipe, require_dialled, resumed_recipe, run_folder

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
    folder = Path(out).expanduser() if out is not None else run_folder(recipe, chosen, wanted.get("corpus.paths", ()))
    if "model.vocab_size" in wanted:
        raise UserError("--model.vocab_size follows from the tokenizer; --corpus.vocab_size sets a trained one's size")
    if budget is not None:
        require_dialled(recipe, wanted)
    merged = resumed_recipe(folder, recipe, wanted) if resume else fresh_recipe(folder, chosen, wanted)
    from gossamer.train.loop import train as run_training

    run_training(merged, folder, resume, profile, dial=budget is not None and not resume, began=began)


def sample(
    run: str,
    prompt: str = "",
    max_tokens: int = 200,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Continue a prompt with a trained model; the text appears as it is made.

    Args:
        run: folder of a run, or a Hugging Face directory
        prompt: text to continue; empty begins a document
        max_tokens: of the continuation at most (tokens)
        temperature: 0 takes the likeliest token always, 1 follows the model's probabilities (default: the
            checkpoint's, else 0.8)
        top_p: smallest set of likeliest tokens to choose from, by their summed probability, above 0 and at most 1
            (default: the checkpoint's, else 0.95)
        seed: same seed, same text
        device: auto, cpu, cuda, cuda:1, npu …
    """
    if max_tokens < 1:
        raise UserError(f"--max_tokens {max_tokens}: must be >= 1")
    _check_sampling(temperature, top_p)
    folder = _existing(run)
    from gossamer.infer.sample import sample_run

    pieces = sample_run(
        folder, prompt=prompt, tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, device=device
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


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
    folder = _existing(run)
    from gossamer.train.evaluate import evaluate_run

    _answer(evaluate_run(folder, paths=data, errors=errors, device=device, weights=weights), json)


def report(run: tuple[str, ...], out: str | None = None) -> None:
    """Write a page about a run, its recipe, curves and samples; or one that compares several runs.

    Args:
        run: folder of a run; several are compared
        out: file to write (default: report.html in the run's folder; comparison.html beside the first of several)
    """
    folders = [_existing(name, "a folder that `gossamer train` wrote") for name in run]
    path = None if out is None else Path(out).expanduser()
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    from gossamer.train.report import write_comparison, write_report

    print(write_report(folders[0], path) if len(folders) == 1 else write_comparison(folders, path))


def export(run: str, out: str, to: Literal["hf", "gguf"] = "hf") -> None:
    """Write a model for other programs.

    Args:
        run: folder of a run, or a Hugging Face directory
        out: folder to write; for gguf a file, NAME.gguf
        to: hf, the Hugging Face directory that transformers, vLLM and SGLang read; there a prompt has to begin with the
            tokenizer's end-of-text token, as documents do in training, which `gossamer sample` adds by itself.
            gguf, the file that llama.cpp reads, which begins prompts so by itself
    """
    folder = _existing(run)
    from gossamer import hub

    if to == "gguf":
        hub.export_gguf(folder, Path(out))
    else:
        hub.export(folder, Path(out))
    print(out)


def serve(
    run: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: str | None = None,
    name: str | None = None,
    cors: tuple[str, ...] = (),
    max_batch: int = 16,
    cache_tokens: int | None = None,
    prefix_cache_bytes: int = 256 << 20,
    draft_length: int | None = None,
    weights: Literal["stored", "int8"] = "stored",
    max_queue: int = 128,
    max_body: int = 4 << 20,
    max_tokens: int = 32768,
    queue_timeout: float = 120.0,
    request_timeout: float = 1800.0,
    drain: float = 30.0,
    log_prompts: bool = False,
    device: str = "auto",
) -> None:
    """Serve a trained model behind an OpenAI-compatible API, until SIGTERM or Ctrl-C.

    Args:
        run: folder of a run, or a Hugging Face directory
        host: address to listen on; any but this machine's own asks for --keys
        port: TCP port; 0 takes a free one
        keys: file of API keys, a line KEY or NAME KEY each; read again whenever it changes
        name: what the model is called in the API (default: the folder's name)
        cors: origins of web pages that may call the API, * for all
        max_batch: requests that decode at the same time
        cache_tokens: tokens whose keys and values are held (default: as many as max_batch requests of 4096 need)
        prefix_cache_bytes: memory for snapshots that spare a repeated prompt's computation (bytes); 0: none
        draft_length: tokens that the multi-token-prediction head proposes a step (default: as many as pay)
        weights: stored, or int8: rounded for decoding, a quarter of the bytes (gossamer eval --weights tells the loss)
        max_queue: requests that may wait; one more is answered with 429
        max_body: of a request at most (bytes)
        max_tokens: of an answer at most (tokens)
        queue_timeout: from a request's arrival to its first token at most (seconds)
        request_timeout: from a request's arrival to its end at most (seconds)
        drain: for running requests to end after SIGTERM (seconds)
        log_prompts: write prompts and answers to the request log
        device: auto, cpu, cuda, cuda:1, npu …
    """
    folder = _existing(run)
    from gossamer.infer.options import EngineOptions
    from gossamer.serve.build import EngineConfig
    from gossamer.serve.options import ServeOptions

    engine = EngineOptions(
        max_batch=max_batch,
        cache_tokens=cache_tokens,
        prefix_cache_bytes=prefix_cache_bytes,
        draft_length="auto" if draft_length is None else draft_length,
        weights=weights,
    )
    options = ServeOptions(
        host=host,
        port=port,
        keys=None if keys is None else Path(keys).expanduser(),
        name=name or folder.resolve().name,
        cors=cors,
        max_queue=max_queue,
        max_body=max_body,
        max_tokens=max_tokens,
        queue_timeout=queue_timeout,
        request_timeout=request_timeout,
        drain=drain,
        log_prompts=log_prompts,
    )
    from gossamer.serve.server import serve as run_service

    run_service(folder, options, EngineConfig(device, engine))


def chat(
    run: str,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    device: str = "auto",
) -> int:
    """Talk with a trained model in the terminal; /help lists what can be done besides.

    Args:
        run: folder of a run, or a Hugging Face directory
        system: message that comes before the conversation
        max_tokens: of an answer at most (default: a quarter of the model's context)
        temperature: 0 takes the likeliest token always (default: the checkpoint's, else 0.8)
        top_p: smallest set of likeliest tokens to choose from, by their summed probability (default: the
            checkpoint's, else 0.95)
        seed: same seed, same answers (default: others each time)
        device: auto, cpu, cuda, cuda:1, npu …
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max_tokens {max_tokens}: must be >= 1")
    _check_sampling(temperature, top_p)
    folder = _existing(run)
    from gossamer.serve.terminal import chat as talk

    return talk(folder, system, max_tokens, {"temperature": temperature, "top_p": top_p, "seed": seed}, device)


def plan(
    model: str = "80b-a3b",
    chip: str = "h100",
    count: int | None = None,
    tokens: float = 15e12,
    compare: str | None = None,
    sequence_length: int = 4096,
    batch_tokens: int = 16_777_216,
    mtp_steps: int = 1,
    fp8: bool = False,
    finetune: Literal["full", "lora"] | None = None,
    serve: bool = False,
    batch: int = 64,
    context: int = 32_768,
    price: float | None = None,
    catalogue: str | None = None,
    certificate: str | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Say what a training run, or serving, would take on chips: memory, layouts, time, energy and money.

    Args:
        model: a preset (80b-a3b, mini, micro …), a recipe's YAML file, or a Hugging Face config.json or its folder, of
            this family or another (llama, qwen3, qwen3_moe, olmo2, deepseek_v3 …)
        chip: what it runs on (h100, h200, h20, ppu-810e, 910c, p800 …); several with commas between are compared
        count: chips (default: 2048 to train; the fewest that hold the network to serve)
        tokens: length of the run (tokens)
        compare: more chips to compare with, commas between
        sequence_length: length of a row, one document each (tokens)
        batch_tokens: size of an optimizer step over all chips (tokens)
        mtp_steps: tokens beyond the next that a multi-token-prediction head learns; 0 leaves it out
        fp8: products of the layers are computed in FP8 where the chip has it
        finetune: full, or lora (all weights in bfloat16, adapters of half a percent of them trained); MTP is left out
        serve: plan decoding instead of training
        batch: sequences that are decoded together
        context: length that each of them has (tokens)
        price: cost of a chip for an hour (US dollars), instead of the catalogue's
        catalogue: YAML file with chips of your own, in the form of the one that comes with gossamer
        certificate: certificate.json that gossamer certify wrote on such a chip: measured rates instead of assumed ones
        out: picture to write, .png, .svg or .pdf, of the chips beside one another
        json: answer with one JSON object
    """
    from gossamer.cost.planner import Job
    from gossamer.train import planned
    from gossamer.train.report import plan_text

    picture = None if out is None else _picture(out, serve)
    work = planned.planned_network(model)
    wanted = planned.wanted_chips([chip, compare or ""], catalogue, certificate, price)
    if serve:
        services = planned.serving_plans(work, wanted, count or 0, batch, context)
        if json:
            _answer({"serving": [service.to_dict() for service in services]}, json)
        else:
            print(plan_text.describe_serving(services), end="")
        return
    if mtp_steps < 0:
        raise UserError(f"--mtp_steps {mtp_steps}: must be >= 0")
    steps, trained = (0, planned.LORA_SHARE if finetune == "lora" else 1.0) if finetune else (mtp_steps, 1.0)
    job = Job(sequence_length, batch_tokens, steps, fp8, trained)
    plans = planned.training_plans(work, wanted, 2048 if count is None else count, tokens, job)
    if picture is not None:
        from gossamer.train.report.plan_picture import draw_plans

        picture.write_bytes(draw_plans(plans, picture.suffix[1:]))
    if json:
        _answer({"plans": [one.to_dict() for one in plans]}, json)
    else:
        print(plan_text.describe_plans(plans) if len(plans) > 1 else plan_text.describe_plan(plans[0]), end="")


def _picture(out: str, serve: bool) -> Path:
    """The path of a picture that can be written."""
    path = Path(out).expanduser()
    if serve:
        raise UserError("--out draws training plans; leave it out with --serve")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {out}: must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    return path


def doctor(device: str = "auto", json: bool = False) -> None:
    """Show what gossamer finds here: the device, what it can do, and which implementation every operation uses.

    Args:
        device: auto, cpu, cuda, cuda:1, npu …
        json: answer with one JSON object
    """
    from gossamer import device as devices
    from gossamer import ops

    chosen = devices.resolve(device)
    machine, operations = devices.describe(chosen), ops.describe(chosen)
    if json:
        _answer({"gossamer": __version__, "device": machine, "ops": operations}, json)
    else:
        _answer({"gossamer": __version__} | machine | {name: _choice(op) for name, op in operations.items()}, json)


def certify(device: str = "auto", quick: bool = False, out: str | None = None, json: bool = False) -> int:
    """Check everything that gossamer computes on a device, measure it, and write a certificate with a page.

    Exit status: 0 the device passes, 1 it fails, 2 a mistake, or the device stopped answering.

    Args:
        device: auto, cpu, cuda, cuda:1, npu …
        quick: fewer inputs, under a minute on two CPU cores
        out: folder to write certificate.json and certificate.html into (default: certificates/<device>)
        json: answer with the certificate
    """
    from gossamer.certify import certify as run_certification

    found, _ = run_certification(device, quick, out, json)
    if json:
        _answer(found, json)
    return 0 if found["verdict"] == "pass" else 1


def _choice(operation: dict[str, Any]) -> str:
    """The implementation of an operation that runs, then the others, each with what keeps it from running."""
    runs, states = operation["runs"], operation["implementations"]
    others = ", ".join(f"{name}: {state}" for name, state in states.items() if name != runs)
    return f"{runs} ({others})" if others else runs


VERBS: dict[str, Callable[..., int | None]] = {
    verb.__name__: verb for verb in (train, sample, eval, report, export, serve, chat, plan, doctor, certify)
}


def _check_sampling(temperature: float | None, top_p: float | None) -> None:
    if temperature is not None and temperature < 0:
        raise UserError(f"--temperature {temperature}: must be >= 0")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top_p {top_p}: must be above 0 and at most 1")


def _existing(run: str, what: str = "a folder that `gossamer train` wrote, or a Hugging Face directory") -> Path:
    folder = Path(run).expanduser()
    if not folder.is_dir():
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        hint = nearest_path(run, siblings) or f" ({what})"
        raise UserError(f"no run {run!r}{hint}")
    return folder


def _answer(values: dict[str, Any], json: bool) -> None:
    """Print a verb's answer: one JSON object, or a line a value."""
    if json:
        print(jsonlib.dumps(values, ensure_ascii=False, default=str))
        return
    lines: dict[str, Any] = {}
    for name, value in values.items():
        lines |= {f"{name} {key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    width = max(len(name) for name in lines)
    for name, value in lines.items():
        print(f"{name:<{width}}  {', '.join(map(_short, value)) if isinstance(value, tuple) else _short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# From the words of the command line to a call.


def _help() -> str:
    lines = [f"  {name:<8} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: gossamer VERB [options]",
            "",
            "Train and serve Qwen3-Next-class language models at the lowest cost, on the chips you have.",
            "",
            *lines,
            "",
            "  gossamer VERB --help  options of a verb, with types, units and defaults",
            "  --version             print the version",
            "  --debug               show the traceback of an error, after any verb",
        ]
    )


def _run(arguments: Sequence[str]) -> int:
    """Run a command line; gives the exit status that its verb says, 0 if it says none."""
    if not arguments:
        raise UserError(f"which verb? one of {', '.join(VERBS)} (gossamer --help)")
    verb, *rest = arguments
    if verb in ("--help", "-h"):
        print(_help())
    elif verb == "--version":
        print(f"gossamer {__version__}")
    elif verb in VERBS:
        from gossamer.options import parse

        return VERBS[verb](**parse(verb, VERBS[verb], rest)) or 0
    else:
        what = "option" if verb.startswith("-") else "verb"
        hint = nearest(verb, [*VERBS, "--help", "--version", "--debug"]) or f"; there are {', '.join(VERBS)}"
        raise UserError(f"unknown {what} {verb!r}{hint}")
    return 0


def _fail(status: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print("gossamer:", " ".join(message.split()), file=sys.stderr)
    return status


def _reason(error: BaseException) -> str | None:
    """One line for an error that is no programmer's mistake; None for one that is."""
    if isinstance(error, UserError):
        return str(error)
    if "No space left on device" in str(error):  # OSError from Python, other types from libraries that write weights
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if missing := re.search(r"Could not run '(\S+)' with arguments from the '(\w+)' backend", str(error)):
        return f"{missing[2]!r} has no operator {missing[1]}; docs/new-chip.md says what to do about it"
    if is_out_of_memory(error):
        return "out of memory; training needs less with a smaller --training.batch_size or --training.sequence_length"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    0; 1 of a device that is not certified; 2 for a mistake; 130 interrupted; 141 for a closed pipe.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # --help of a verb
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail(130, "interrupted", debug)
    except BrokenPipeError:
        # The reader has gone; without this the interpreter would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        return _fail(2, reason, debug)


if __name__ == "__main__":
    sys.exit(main())

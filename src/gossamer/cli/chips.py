"""Verbs about chips: what a run would take on those of the catalogue, and what the one that is here can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from gossamer import __version__
from gossamer.cli.shared import answer
from gossamer.errors import UserError
from gossamer.reading import user_path
from gossamer.typed import Range

_Tokens = Annotated[int, Range(1, 1 << 40)]


def plan(
    model: str = "80b-a3b",
    chip: str = "h100",
    count: Annotated[int, Range(1, 1 << 20)] | None = None,
    tokens: Annotated[float, Range(1, 1e20)] = 15e12,
    compare: str | None = None,
    sequence_length: Annotated[int, Range(2, 1 << 30)] = 4096,
    batch_tokens: Annotated[int, Range(2, 1 << 40)] = 16_777_216,
    mtp_steps: Annotated[int, Range(0, 64)] = 1,
    fp8: bool = False,
    finetune: Literal["full", "lora"] | None = None,
    serve: bool = False,
    batch: Annotated[int, Range(1, 1 << 24)] = 64,
    context: _Tokens = 32_768,
    price: Annotated[float, Range(0, 10**9, above=True)] | None = None,
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
        tokens: length of the run (tokens; 300B and 15T may be written, as all counts may with K, M, B or T)
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
    from gossamer.plan import Job, planned
    from gossamer.plan import text as plan_text

    picture = None if out is None else _picture(out, serve)
    work = planned.planned_network(model)
    wanted = planned.wanted_chips([chip, compare or ""], catalogue, certificate, price)
    if serve:
        services = planned.serving_plans(work, wanted, count or 0, batch, context)
        if json:
            answer({"serving": [service.to_dict() for service in services]}, json)
        else:
            print(plan_text.describe_serving(services), end="")
        return
    steps, trained = (0, planned.LORA_SHARE if finetune == "lora" else 1.0) if finetune else (mtp_steps, 1.0)
    job = Job(sequence_length, batch_tokens, steps, fp8, trained)
    plans = planned.training_plans(work, wanted, 2048 if count is None else count, tokens, job)
    if picture is not None:
        from gossamer.plan.picture import draw_plans

        picture.write_bytes(draw_plans(plans, picture.suffix[1:]))
    if json:
        answer({"plans": [one.to_dict() for one in plans]}, json)
    else:
        print(plan_text.describe_plans(plans) if len(plans) > 1 else plan_text.describe_plan(plans[0]), end="")


def _picture(out: str, serve: bool) -> Path:
    """The path of a picture that can be written."""
    path = user_path(out)
    if serve:
        raise UserError("--out draws training plans; leave it out with --serve")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {out}: must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    return path


def doctor(device: str = "auto", speed: bool = False, json: bool = False) -> None:
    """Show what gossamer finds here: the device, what it can do, and which implementation every operation uses.

    Args:
        device: auto, cpu, cuda, cuda:1, npu …
        speed: measure the device too, in some seconds, and say what keeps it from being as fast as it should be
        json: answer with one JSON object
    """
    from gossamer import device as devices
    from gossamer import ops

    devices.prepare_process()
    chosen = devices.resolve(device)
    machine, operations = devices.describe(chosen), ops.describe(chosen)
    if not speed:
        found = None
    else:
        from gossamer.certify.doctor import examine_speed

        found = examine_speed(chosen)
    if json:
        answer(
            {"gossamer": __version__, "device": machine, "ops": operations} | ({"speed": found} if found else {}), json
        )
        return
    answer({"gossamer": __version__} | machine | {name: _choice(op) for name, op in operations.items()}, json)
    if found is not None:
        from gossamer.certify.doctor import report

        print(f"\n{report(found)}")


def _choice(operation: dict[str, Any]) -> str:
    """The implementation of an operation that runs, then the others, each with what keeps it from running."""
    runs, states = operation["runs"], operation["implementations"]
    others = ", ".join(f"{name}: {state}" for name, state in states.items() if name != runs)
    return f"{runs} ({others})" if others else runs


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
    from gossamer.device import prepare_process

    prepare_process()
    found, _ = run_certification(device, quick, out, json)
    if json:
        answer(found, json)
    return 0 if found["verdict"] == "pass" else 1

"""Verbs about chips: what a run would cost on those of the catalogue, and what the one that is here can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from gossamer import __version__
from gossamer.cli.shared import AUTO, Device, Json, print_answer
from gossamer.errors import UserError
from gossamer.reading import user_path
from gossamer.typed import Help, Metavar, Range, Unit

_Chips = Annotated[int, Range(1, 1 << 20), Unit("chips")]
_Price = Annotated[float, Range(0, 10**9, excludes_minimum=True), Metavar("PRICE")]
_File = Annotated[str, Metavar("FILE")]


def plan(
    model: str = "80b-a3b",
    chip: str = "h100",
    compare: Annotated[str | None, Metavar("CHIPS")] = None,
    count: _Chips | None = None,
    tokens: Annotated[float, Range(1, 1e20), Unit("tokens")] = 15e12,
    sequence_length: Annotated[int, Range(2, 1 << 30), Unit("tokens")] = 4096,
    batch_tokens: Annotated[int, Range(2, 1 << 40), Unit("tokens")] = 16_777_216,
    mtp_steps: Annotated[int, Range(0, 64), Unit("tokens")] = 1,
    fp8: bool = False,
    finetune: Literal["full", "lora"] | None = None,
    serve: bool = False,
    batch: Annotated[int, Range(1, 1 << 24), Unit("requests")] = 64,
    context: Annotated[int, Range(1, 1 << 40), Unit("tokens")] = 32_768,
    price: _Price | None = None,
    catalogue: _File | None = None,
    certificate: _File | None = None,
    out: _File | None = None,
    json: Json = False,
) -> None:
    """Estimate what training or serving a model would take on chips.

    The answer says which layouts fit into their memory, and how much time, energy and money a run takes.

    Args:
        model: a preset (80b-a3b, qwen3.5-35b-a3b, mini …), a recipe's YAML file, or a Hugging Face config.json or its
            folder, of this family or another (llama, qwen3, qwen3_moe, olmo2, deepseek_v3 …)
        chip: chip to run on (h100, h200, h20, ppu-810e, 910c, p800 …); several, with commas between, are compared
        compare: more chips to compare with, with commas between
        count: number of chips (default: 2048 to train, the fewest that hold the network to serve)
        tokens: tokens to train on; 300B and 15T can be written, as all counts can with K, M, B or T
        sequence_length: length of a row, each a document of its own
        batch_tokens: size of an optimizer step over all chips
        mtp_steps: tokens beyond the next that a multi-token-prediction head learns; 0 leaves the head out
        fp8: compute the products of the layers in FP8 where the chip has it
        finetune: plan fine-tuning instead, without the multi-token-prediction head: full, or lora (all weights in
            bfloat16, and adapters of half a percent of them trained)
        serve: plan decoding instead of training
        batch: requests that are decoded together
        context: length of each request
        price: cost of a chip for an hour in US dollars, instead of the catalogue's
        catalogue: YAML file with chips of your own, in the form of the catalogue that comes with gossamer
        certificate: certificate.json that gossamer certify wrote on such a chip; its measured rates replace assumed
            ones
        out: picture of the chips beside one another to write, .png, .svg or .pdf
    """
    from gossamer.plan import Job, arguments, describe

    picture = None if out is None else _picture(out, serve)
    network = arguments.planned_network(model)
    chips = arguments.choose_chips([chip, compare or ""], catalogue, certificate, price)
    if serve:
        services = arguments.serving_plans(network, chips, count or 0, batch, context)
        if json:
            print_answer({"serving": [service.to_dict() for service in services]}, json)
        else:
            print(describe.describe_serving(services), end="")
        return
    steps, trained = (0, arguments.LORA_SHARE if finetune == "lora" else 1.0) if finetune else (mtp_steps, 1.0)
    job = Job(sequence_length, batch_tokens, steps, fp8, trained)
    plans = arguments.training_plans(network, chips, 2048 if count is None else count, tokens, job)
    if picture is not None:
        picture.write_bytes(describe.draw_plans(plans, picture.suffix[1:]))
    if json:
        print_answer({"plans": [one.to_dict() for one in plans]}, json)
    else:
        print(describe.describe_plans(plans) if len(plans) > 1 else describe.describe_plan(plans[0]), end="")


def _picture(out: str, serve: bool) -> Path:
    """Return the path of a picture that can be written (UserError otherwise)."""
    path = user_path(out)
    if serve:
        raise UserError("--out draws training plans; leave it out with --serve")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {out}: must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    return path


def doctor(device: Device = AUTO, speed: bool = False, json: Json = False) -> None:
    """Show the device, what it can do, and which implementation each operation uses.

    Args:
        speed: also measure the device, in a few seconds, and say what keeps it from being as fast as it should be
    """
    from gossamer import device as devices
    from gossamer import ops
    from gossamer.model import decode  # noqa: F401 (so that the operations of decoding are listed, too)

    devices.prepare_process()
    where = devices.resolve(device)
    machine, operations = devices.describe(where), ops.describe(where)
    examination = None
    if speed:
        from gossamer.certify.doctor import examine_speed

        examination = examine_speed(where)
    if json:
        answer = {"gossamer": __version__, "device": machine, "ops": operations}
        print_answer(answer | ({"speed": examination} if examination else {}), json)
        return
    lines = {name: _implementations(operation) for name, operation in operations.items()}
    print_answer({"gossamer": __version__} | machine | lines, json)
    if examination is not None:
        from gossamer.certify.doctor import report

        print(f"\n{report(examination)}")


def _implementations(operation: dict[str, Any]) -> str:
    """The implementation of an operation that runs, then the others, each with the reason why it does not."""
    runs, states = operation["runs"], operation["implementations"]
    others = ", ".join(f"{name}: {state}" for name, state in states.items() if name != runs)
    return f"{runs} ({others})" if others else runs


def certify(
    device: Device = AUTO,
    quick: bool = False,
    out: Annotated[str | None, Metavar("DIR")] = None,
    json: Annotated[bool, Help("print the certificate as one JSON object")] = False,
) -> int:
    """Check everything that gossamer computes on a device, and write a certificate.

    It is a JSON file with measurements, and a page that shows them. The exit status is 0 if the device passes, 1 if it
    fails, and 2 for a mistake or a device that stopped answering.

    Args:
        quick: check fewer inputs, in less than a minute on two CPU cores
        out: folder to write certificate.json and certificate.html to (default: certificates/<device>)
    """
    from gossamer.certify import certify as run_certification
    from gossamer.device import prepare_process

    prepare_process()
    certificate, _ = run_certification(device, quick, out, json)
    if json:
        print_answer(certificate, json)
    return 0 if certificate["verdict"] == "pass" else 1

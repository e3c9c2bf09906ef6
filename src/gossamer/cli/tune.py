"""The verb that teaches a trained model by examples."""

from __future__ import annotations

import json as jsonlib
import re
import time
from pathlib import Path
from typing import Annotated, Any

from gossamer.cli.shared import AUTO, Json, TuningFlags, existing_model
from gossamer.errors import UserError
from gossamer.reading import user_path
from gossamer.typed import Help, Metavar, Range, Unit

_SHORT = {
    "steps": "training.steps",
    "seconds": "training.seconds",
    "budget": "training.budget",
    "learning_rate": "optimizer.learning_rate",
    "seed": "training.seed",
    "price": "training.price",
    "device": "training.device",
}


def tune(
    base: Annotated[str, Help("what is tuned: folder of a run, a Hugging Face directory, or a GGUF file")],
    data: Annotated[tuple[str, ...], Metavar("FILE")] = (),
    recipe: Annotated[str | None, Metavar("RECIPE")] = None,
    out: Annotated[str | None, Metavar("DIR")] = None,
    resume: bool = False,
    plan: bool = False,
    look: Annotated[int, Range(0, 1_000_000), Unit("samples")] = 0,
    json: Json = False,
    overrides: Annotated[dict[str, Any] | None, TuningFlags(_SHORT)] = None,
) -> int | None:
    """Teach a trained model by examples: conversations, texts with their completions, preferences or ratings.

    What the examples hold says how is learned. Before and after, the model is measured on examples that are held out
    and on text that it must not get worse on; if it got worse, the exit status is 1.

    Args:
        data: the examples: files of JSONL, JSON or Parquet, folders of them, hf:NAME[[:CONFIG]:SPLIT] for a dataset of
            the Hub, or - for standard input
        recipe: a recipe that comes with gossamer, or the path of a YAML file, whose values are put on the defaults of
            tuning
        out: folder of the run (default: runs/ and the names of the base and of the first --data)
        resume: continue the run in that folder, by its own config.yaml and from its newest checkpoint, if it has one
        plan: say what the run would take, and train nothing; the exit status is 1 if it does not fit into memory
        look: show so many of the samples that are learned, and train nothing
        overrides: values of the recipe by dotted name
    """
    began = time.perf_counter()
    from gossamer.run.start import require_free, resumed_recipe

    model = existing_model(base)
    values = dict(overrides or {}) | {"training.init_from": str(model.absolute())}
    if "model.vocab_size" in values or "training.sequence_length" in values:
        raise UserError("--model.vocab_size and --training.sequence_length follow from the base and --context")
    if data and "corpus.paths" in values:
        raise UserError("--data and --corpus.paths set the same value; give one of them")
    values |= {"corpus.paths": data} if data else {}
    if not resume and recipe is None and not values.get("corpus.paths"):
        raise UserError("--data: name the files with examples")
    folder = user_path(out) if out is not None else _folder(model, values.get("corpus.paths", ()))
    if resume and (plan or look):
        raise UserError("--resume continues a run, and --plan and --look train nothing; leave one of them out")
    if look and (plan or json):
        other = "--plan" if plan else "--json"
        raise UserError(f"--look shows samples to people, and trains nothing; leave {other} out")
    if not resume and not look:
        require_free(folder)
    own = resumed_recipe(folder, recipe, values, tuning=True) if resume else None
    device = str(values.get("training.device", AUTO)) if own is None else own.training.device
    from gossamer.device import prepare_process
    from gossamer.train.world import World
    from gossamer.tune.examples import Material, begun_material, resumed_material

    prepare_process()

    def prepare(world: World) -> Material:
        return begun_material(recipe, values, world) if own is None else resumed_material(own, values)

    if look:
        from gossamer.tune.look import print_samples

        print_samples(prepare(World()), look)
        return None
    if plan:
        from gossamer.tune.plan import plan_tuning

        planned = plan_tuning(prepare, device)
        print(jsonlib.dumps(planned.to_json()) if json else "\n".join(planned.lines()))
        return None if planned.fits else 1
    from gossamer.report import write_report
    from gossamer.tune.run import tune as run_tuning

    verdict = run_tuning(prepare, device, folder, resume, began, write_report)
    if verdict is None:
        return None
    if json:
        print(jsonlib.dumps(verdict.to_json()))
    return 1 if verdict.regressions else None


def _folder(base: Path, paths: tuple[str, ...] | list[str]) -> Path:
    """Return the folder of a run that was given none."""
    names = [base.resolve().name, *(Path(path).stem for path in paths[:1] if path != "-")]
    return Path("runs") / "-".join(re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in names)
